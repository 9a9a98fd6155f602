"""A sweep is whole only when every job has a run with all that it must have."""

import json
import shutil

import pytest
from attrs import evolve
from helpers_cli import call
from helpers_sweeps import complete, fail, ledger_of

from altcore.errors import BadInput
from altcore.sweep import Ledger, Measure, SweepFile, read_sweep, save_sweep, verify
from altcore.sweep.values import Values
from altcore.sweep.verification import lacking

LINES = [{"step": step, "loss": 1.0} for step in range(1, 7)]


def lines(*steps, name="x/y", discarded=()):
    """Return the record of six steps that has a measure on some of them."""
    own = [{**line, **({name: 1} if line["step"] in steps else {})} for line in LINES]
    return [{**x, "discarded": True} if x["step"] in discarded else x for x in own]


@pytest.mark.parametrize(
    ("every", "recorded", "told"),
    [
        (None, lines(3), ""),
        (None, lines(), "x/y: no value"),
        (1, lines(1, 2, 3, 4, 5, 6), ""),
        (1, lines(1, 2, 3, 4, 5), "x/y: no value in steps 6 to 6"),
        (2, lines(2, 4, 6), ""),
        (2, lines(1, 3, 5), ""),
        (2, lines(2, 4), "x/y: no value in steps 5 to 6"),
        (2, lines(2, 5, 6), "x/y: no value in steps 3 to 4"),
        (2, lines(3, 4, 6), "x/y: no value in steps 1 to 2"),
        (2, lines(2, 6, discarded=[4]), ""),
        (2, lines(discarded=[2, 4, 6]), "x/y: no value"),
        (2, lines(2, 4, 6, name="x/y/layer.0"), ""),
        (2, lines(2, 4, 6, name="x/yz"), "x/y: no value"),
    ],
)
def test_a_measure_must_be_there_as_often_as_it_was_asked_for(tmp_path, every, recorded, told):
    """From the first step to the last one."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job, lines=recorded)
    assert lacking(Values(ledger.run_of(job.name)), [Measure(name="x/y", every=every)]) == told


@pytest.fixture
def ledger(tmp_path):
    """Five jobs: one whole run, one without the measure, one failed, one lost, one waiting."""
    ledger = ledger_of(tmp_path, seeds=5, requires=["x/y"])
    first, second, third, fourth, _ = ledger.jobs()
    complete(ledger, first, lines=lines(3))
    complete(ledger, second, lines=LINES)
    fail(ledger, third, "ValueError: no")
    fail(ledger, fourth, "gone", status="lost")
    return ledger


def test_each_job_is_named_by_what_it_lacks(ledger):
    """A job whose folder was removed is missing as well."""
    jobs = ledger.jobs()
    names = [job.name for job in jobs]
    found = verify(ledger, [*jobs, evolve(jobs[0], name="other")], [Measure(name="x/y")])
    assert list(found.completed) == names[:1]
    assert found.incomplete == {names[1]: "x/y: no value"}
    assert found.failed == {names[2]: "ValueError: no"}
    assert list(found.missing) == [*names[3:], "other"]
    assert str(found) == "1/6 runs completed, 1 run failed, 1 run incomplete, 3 runs missing"
    assert not found.is_whole


def test_a_run_with_a_changed_setting_or_a_collapse_is_complete(tmp_path):
    """Both are results."""
    ledger = ledger_of(tmp_path, seeds=2)
    first, second = ledger.jobs()
    fail(ledger, first, "out of memory")
    complete(ledger, first, changed={"gpt.batch_size": 16})
    complete(ledger, second, status="collapsed")
    found = verify(ledger, None, [])
    assert found.is_whole
    assert str(found) == "2/2 runs completed"


def test_a_run_whose_record_cannot_be_read_is_damaged(tmp_path):
    """Whatever must be in it."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job, lines=LINES)
    (ledger.run_of(job.name) / "summary.json").write_text("{")
    assert "summary.json" in verify(ledger, None, [Measure(name="loss")]).damaged[job.name]
    assert "summary.json" in verify(ledger, None, []).damaged[job.name]


def test_a_run_that_was_removed_is_missing_everywhere_and_made_again(tmp_path, capsys):
    """No verdict of it is told as if the job had failed."""
    ledger = ledger_of(tmp_path)
    where = ("toy", "--sweeps-dir", tmp_path)
    (job,) = ledger.jobs()
    complete(ledger, job, verdict="did not learn")
    shutil.rmtree(ledger.run_of(job.name))
    done = call(capsys, "sweep", "verify", *where)
    assert (done.code, done.out) == (
        1,
        "0/1 runs completed, 1 run missing\nmissing: base-seed42: its run is missing\n",
    )
    listed = call(capsys, "sweep", "list", *where).out
    assert "its run is missing" in listed
    assert "did not learn" not in listed
    status = call(capsys, "sweep", "status", *where)
    assert "waiting        1, of them 1 completed, but the run is missing" in status.out
    again = call(capsys, "sweep", "retry", "toy", job.name, "--sweeps-dir", tmp_path)
    assert "is waiting: its run is missing, and altcore sweep run makes it again" in again.err
    complete(ledger, job)
    assert verify(ledger, [job], []).is_whole


def test_the_command(ledger, capsys):
    """Exits with 1, names ten of each kind, and all if asked."""
    where = ("toy", "--sweeps-dir", ledger.folder.parent)
    shutil.rmtree(ledger.folder / "jobs" / "base-seed46")
    done = call(capsys, "sweep", "verify", *where)
    assert done.code == 1
    assert done.out.splitlines() == [
        "1/5 runs completed, 1 run failed, 1 run incomplete, 2 runs missing",
        "failed: base-seed44: ValueError: no",
        "incomplete: base-seed43: x/y: no value",
        "missing: base-seed45",
        "missing: base-seed46",
    ]
    found = json.loads(call(capsys, "sweep", "verify", "--json", *where).out)
    assert found["missing"] == {"base-seed45": "", "base-seed46": ""}


def test_the_command_names_ten_jobs_of_each_kind(tmp_path, capsys):
    """Or all of them; and nothing is missing when every run is there."""
    ledger = ledger_of(tmp_path, seeds=12)
    where = ("toy", "--sweeps-dir", tmp_path)
    lines = call(capsys, "sweep", "verify", *where).out.splitlines()
    assert (len(lines), lines[-1]) == (12, "missing: 2 more (--all names them)")
    assert len(call(capsys, "sweep", "verify", "--all", *where).out.splitlines()) == 13
    for job in ledger.jobs():
        complete(ledger, job)
    done = call(capsys, "sweep", "verify", *where)
    assert (done.code, done.out) == (0, "12/12 runs completed\n")


def test_jobs_that_the_file_asks_for_no_longer_are_named(tmp_path, capsys):
    """Whoever edited the sweep's own file sees it: its runs answer another question."""
    ledger = ledger_of(tmp_path, seeds=2, grid={"learning_rate": [0.001]})
    for job in ledger.jobs():
        complete(ledger, job)
    asked = read_sweep(ledger.folder / "sweep.yaml")
    save_sweep(evolve(asked, base={**asked.base, "max_steps": 7}, seeds=1), ledger.folder)
    done = call(capsys, "sweep", "verify", "toy", "--sweeps-dir", tmp_path)
    assert done.code == 1
    assert done.out.splitlines() == [
        "0/2 runs completed, 2 runs changed",
        "changed: base-learning_rate0.001-seed42: the sweep file asks for another run of this name",
        "changed: base-learning_rate0.001-seed43: the sweep file does not ask for it",
    ]


def test_the_file_of_base_keys_is_found_from_elsewhere(tmp_path, capsys, monkeypatch):
    """A path from the working directory in which the sweep was begun."""
    (tmp_path / "base.yaml").write_text("gpt.size: tiny\n")
    monkeypatch.chdir(tmp_path)
    ledger = ledger_of(tmp_path, config="base.yaml")
    complete(ledger, ledger.jobs()[0])
    monkeypatch.chdir("/")
    done = call(capsys, "sweep", "verify", "toy", "--sweeps-dir", tmp_path)
    assert (done.code, done.out, done.err) == (0, "1/1 runs completed\n", "")


def test_the_command_without_the_file_of_base_keys(tmp_path, capsys):
    """What the ledger has is verified, and that is said: nobody knows whether it is all."""
    (tmp_path / "base.yaml").write_text("gpt.size: tiny\n")
    ledger = ledger_of(tmp_path, config=str(tmp_path / "base.yaml"))
    complete(ledger, ledger.jobs()[0])
    (tmp_path / "base.yaml").unlink()
    done = call(capsys, "sweep", "verify", "toy", "--sweeps-dir", tmp_path)
    assert (done.code, done.out) == (1, "1/1 runs completed\n")
    assert "only the jobs of" in done.err
    found = json.loads(
        call(capsys, "sweep", "verify", "--json", "toy", "--sweeps-dir", tmp_path).out
    )
    assert "only the jobs of" in found["unknown"]


def test_the_jobs_of_a_study_are_those_of_its_ledger(tmp_path, capsys):
    """Its file asks for none, so each command takes them from there, or says whose they are."""
    ledger = ledger_of(tmp_path / "like")
    study = SweepFile(name="toy", study=True)
    (job,) = ledger.jobs()
    ledger = Ledger(tmp_path / "toy", study.rules)
    jobs = [evolve(job, name=f"arm-{i}", identity={"code": "1"}) for i in range(3)]
    ledger.add(jobs)
    save_sweep(study, ledger.folder)
    for one in jobs[:2]:
        complete(ledger, one, val_loss=1.0)
    fail(ledger, jobs[2], "ValueError: no")

    def sweep(command, *more):
        return call(capsys, "sweep", command, *more, "--sweeps-dir", tmp_path)

    assert sweep("verify", "toy").out.splitlines()[0] == "2/3 runs completed, 1 run failed"
    assert sweep("plan", "toy").out.splitlines() == ["arm-0", "arm-1", "arm-2"]
    assert sweep("status", "toy").out.startswith("toy: 3 jobs")
    assert len(sweep("list", "toy").out.splitlines()) == 4
    assert sweep("export", "toy").code == 0
    file = ledger.folder / "sweep.yaml"
    for command in (("run", file), ("check", "toy"), ("plan", "toy", "--set", "max_steps=2")):
        done = sweep(*command)
        assert done.code == 2
        assert "study: no sweep file asks for the jobs of a study" in done.err
    done = sweep("retry", "toy", "arm-2", "--set", "learning_rate=0.1")
    assert "arm-2 is a run of a study" in done.err
    assert sweep("retry", "toy", "arm-2").code == 0
    assert ledger.names() == ["arm-0", "arm-1", "arm-2"]


@pytest.mark.parametrize(
    ("epochs", "told"),
    [
        (4.0, ""),  # three steps each
        (6.0, "x/y: no value in steps 1 to 2"),
        (None, "requires.every: 1 epoch: the workload counts no epochs"),
    ],
)
def test_a_measure_may_be_needed_by_epochs(tmp_path, epochs, told):
    ledger = ledger_of(tmp_path, requires=[{"name": "x/y", "every": "1 epoch"}])
    (job,) = ledger.jobs()
    lines = [{"step": step, **({"x/y": 1.0} if step % 3 == 0 else {})} for step in range(1, 13)]
    complete(ledger, job, lines=lines, steps=12, epochs=epochs)
    measures = SweepFile(requires=[{"name": "x/y", "every": "1 epoch"}]).measures
    assert lacking(Values(ledger.run_of(job.name)), measures) == told


@pytest.mark.parametrize("every", ["2 epoches", 0, -1, "0 epochs", 1.5])
def test_what_is_no_interval_is_refused(every):
    with pytest.raises(BadInput, match=r"requires\.every"):
        SweepFile(requires=[{"name": "x/y", "every": every}])


def test_a_run_that_went_on_without_lines_of_its_record_is_incomplete(tmp_path, capsys):
    """Its means are of other steps than those of other runs; no measure is asked for."""
    ledger = ledger_of(tmp_path, seeds=2)
    first, second = ledger.jobs()
    complete(ledger, first, lines=LINES)
    change = {"kind": "record", "what": "metrics.jsonl", "before": "whole", "now": "cut", "step": 4}
    complete(ledger, second, lines=LINES[2:], changes=[change])
    done = call(capsys, "sweep", "verify", "toy", "--sweeps-dir", tmp_path)
    told = "metrics.jsonl was changed, or lost lines, before it went on from step 4"
    assert (done.code, done.out.splitlines()) == (
        1,
        ["1/2 runs completed, 1 run incomplete", f"incomplete: {second.name}: {told}"],
    )
