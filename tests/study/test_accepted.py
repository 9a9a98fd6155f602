"""An answer rests only on runs that are what the study accepted; any other is made again."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers_epochs import Points
from helpers_sweeps import complete, ledger_of

from altcore.errors import UnreadableFile
from altcore.study import cautions
from altcore.study.accepted import problem_of
from altcore.study.arms import twin
from altcore.study.runner import Runner, Trial
from altcore.sweep import Ledger

STEPS = 6
LINES = [{"step": step, "loss": 1.0} for step in range(1, STEPS + 1)]
ONE, OTHER = "base-seed43", "base-seed42"


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    """A folder with two accepted runs."""
    ledger = ledger_of(tmp_path_factory.mktemp("study"), seeds=2)
    for job in ledger.jobs():
        complete(ledger, job, lines=LINES, max_steps=STEPS, val_loss=3.0)
    return ledger.folder


@pytest.fixture
def ledger(accepted, tmp_path):
    """The same folder, for each test anew."""
    shutil.copytree(accepted, tmp_path / "toy")
    return Ledger(tmp_path / "toy")


def edit(path, change):
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


def exchange(ledger):
    one, other = ledger.run_of(ONE), ledger.run_of(OTHER)
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def copy_over(ledger):
    shutil.rmtree(ledger.run_of(ONE))
    shutil.copytree(ledger.run_of(OTHER), ledger.run_of(ONE))


def rename_copy(ledger):
    """It says that it is the run of the job."""
    copy_over(ledger)
    edit(ledger.run_of(ONE) / "summary.json", lambda told: told.update(name=ONE))


def link(ledger):
    shutil.rmtree(ledger.run_of(ONE))
    ledger.run_of(ONE).symlink_to(ledger.run_of(OTHER))


def a_file(ledger):
    shutil.rmtree(ledger.run_of(ONE))
    ledger.run_of(ONE).write_text("")


def unsealed(ledger):
    def change(told):
        told["val_loss"] = 2.0
        del told["digest"]

    edit(ledger.run_of(ONE) / "summary.json", change)


def unsealed_and_unrecorded(ledger):
    """What was accepted is not known any more."""
    shutil.rmtree(ledger.folder / "jobs" / ONE / "attempts")
    unsealed(ledger)


def no_summary(ledger):
    (ledger.run_of(ONE) / "summary.json").unlink()


def cut(ledger):
    """What is left would pass for a run that diverged."""
    path = ledger.run_of(ONE) / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))


def edited_losses(ledger):
    path = ledger.run_of(ONE) / "metrics.jsonl"
    path.write_text(path.read_text().replace("1.0", "2.0"))


def edited_job(ledger):
    edit(ledger.folder / "jobs" / ONE / "job.json", lambda job: job["factors"].update(seed=7))


def no_job(ledger):
    shutil.rmtree(ledger.folder / "jobs" / ONE)


FAULTS = {
    exchange: "runs/base-seed43/summary.json is that of another run, 'base-seed42'",
    copy_over: "summary.json is that of another run, 'base-seed42'",
    rename_copy: "summary.json is not what it was when the run was accepted",
    link: "base-seed43 is a symbolic link",
    a_file: "base-seed43 is not the folder of a run",
    unsealed: "summary.json is not what it was when the run was accepted",
    unsealed_and_unrecorded: "summary.json was changed since the run ended",
    no_summary: "summary.json is missing",
    cut: "metrics.jsonl is not what it was when the run was accepted",
    edited_losses: "metrics.jsonl is not what it was when the run was accepted",
    edited_job: "job.json: it is not what a sweep wrote of the job 'base-seed43'",
    no_job: "job.json is missing",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_run_that_is_not_what_was_accepted_is_named(ledger, fault):
    assert problem_of(ledger, ONE, STEPS) == ""
    fault(ledger)
    told = problem_of(ledger, ONE, STEPS)
    assert FAULTS[fault] in told
    assert f"{ledger.folder}/" not in told
    ledger.retire(ONE)  # whatever it is
    assert problem_of(ledger, ONE, STEPS) == ""
    assert len(list((ledger.folder / "retired").iterdir())) == 1


def test_a_shorter_record_is_named(ledger):
    assert "lacks a part of its record" in problem_of(ledger, ONE, STEPS + 1)


def test_such_a_run_is_made_again(start, shelf, tmp_path):
    """Its outcome is the first one; the terminal and the answer say so, and nothing is deleted."""
    shelf.install("workload", "points", Points)
    config = start.config(max_steps=2, workload="points", optimizer="sgd")
    trials = [Trial(twin(), seed) for seed in range(3)]
    told = []

    def study():
        return Runner(tmp_path / "study", config, told.append)

    first = study().outcomes(trials)
    runs = sorted((tmp_path / "study/runs").iterdir())
    runs[0].rename(tmp_path / "aside")
    runs[1].rename(runs[0])
    runs[0].with_name(runs[1].name).write_text("a file")
    with (runs[2] / "events.jsonl").open("a") as file:
        file.write('{"event": "collapse", "cause": "diverged", "step": 2}\n')
    told.clear()
    again = study()
    assert again.outcomes(trials) == first
    assert again.done == 3
    why = ["summary.json is that of another run", "is not the folder of a run", "events.jsonl was"]
    lines = [line for line in told if "is made again" in line]
    for name, line, part in zip(runs, lines, why, strict=True):
        assert line.startswith(f"{name.name} is made again: ")
        assert part in line
    named = [caution.split()[2] for caution in cautions.about_runs(again.made_again)]
    assert named == [run.name for run in runs]
    assert len(list((tmp_path / "study/retired").iterdir())) == 3
    last = study()
    assert (last.outcomes(trials), last.done, last.made_again) == (first, 0, {})


def test_a_run_that_is_gone_is_made_again_and_told(start, shelf, tmp_path):
    """It is none that waits to be made; not when the study is asked once more."""
    shelf.install("workload", "points", Points)
    config = start.config(max_steps=2, workload="points", optimizer="sgd")
    told = []
    first = Runner(tmp_path / "study", config, told.append).outcomes([Trial(twin(), 0)])
    assert not [line for line in told if "again" in line]
    (run,) = (tmp_path / "study/runs").iterdir()
    run.rename(tmp_path / "aside")
    again = Runner(tmp_path / "study", config, told.append)
    assert again.outcomes([Trial(twin(), 0)]) == first
    problem = f"runs/{run.name} is missing"
    assert f"{run.name} is made again: {problem}" in told
    assert (again.done, again.made_again) == (1, {run.name: problem})
    last = Runner(tmp_path / "study", config, told.append)
    assert (last.outcomes([Trial(twin(), 0)]), last.done, last.made_again) == (first, 0, {})


def test_a_damaged_job_does_not_keep_a_study_from_going_on(start, shelf, tmp_path):
    """One that has no run yet; one that nobody asks for is left alone."""
    shelf.install("workload", "points", Points)
    config = start.config(max_steps=2, workload="points", optimizer="sgd")
    trial = Trial(twin(), 1)
    study = Runner(tmp_path / "study", config, lambda _: None)
    job = study._job(trial, {})
    study._ledger.add([job])
    (study._ledger.folder / "jobs/stray").mkdir()
    for name in (job.name, "stray"):
        (study._ledger.folder / "jobs" / name / "job.json").write_text("{}")
    study.outcomes([trial])
    assert study.done == 1
    assert list(study.made_again) == [job.name]
    assert "job.json: it is not what a sweep wrote" in study.made_again[job.name]


@pytest.mark.parametrize("file", ["summary.json", "metrics.jsonl", "config.yaml"])
def test_no_run_is_made_again_for_a_file_that_cannot_be_read(ledger, monkeypatch, file):
    """It may be as it was: the study ends, and says which file it is."""
    opened, path_open, place = os.open, Path.open, ledger.run_of(ONE) / file

    def refuse(path):
        if not isinstance(path, int) and Path(path) == place:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "open", lambda p, *a, **k: refuse(p) or opened(p, *a, **k))
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: refuse(p) or path_open(p, *a, **k))
    with pytest.raises(UnreadableFile, match=rf"{file} cannot be read: .*\(EIO\)"):
        problem_of(ledger, ONE, STEPS)
    monkeypatch.undo()
    assert problem_of(ledger, ONE, STEPS) == ""
