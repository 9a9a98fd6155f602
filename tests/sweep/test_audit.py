"""An accepted run counts as long as it is what was accepted, and what its job asks for."""

import csv
import json
import shutil

import pytest
from helpers_cli import call
from helpers_sweeps import complete, fail, ledger_of

from altcore.sweep import Ledger, State, SweepFile, export, open_sweep, status_of, survey, verify

LINES = [{"step": step, "loss": 1.0} for step in range(1, 7)]
ONE, OTHER, LAST = "base-seed43", "base-seed42", "base-seed44"


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """A sweep of three completed jobs."""
    ledger = ledger_of(tmp_path_factory.mktemp("audit"), seeds=3)
    for job in ledger.jobs():
        facts = {"workload_facts": {"sha256": "a" * 64}, "final_loss": 1.0, "final_loss_step": 6}
        complete(ledger, job, lines=LINES, max_steps=6, **facts)
    survey(ledger)  # what it kept hides nothing later
    return ledger.folder


@pytest.fixture
def ledger(completed, tmp_path):
    """The same sweep, for each test anew."""
    shutil.copytree(completed, tmp_path / "toy")
    return Ledger(tmp_path / "toy")


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def replace_run(ledger):
    shutil.rmtree(ledger.run_of(ONE))
    shutil.copytree(ledger.run_of(OTHER), ledger.run_of(ONE))


def empty_run(ledger):
    shutil.rmtree(ledger.run_of(ONE))
    ledger.run_of(ONE).mkdir()


def in_run(file, before, after):
    return lambda ledger: edit(ledger.run_of(ONE) / file, before, after)


def link(ledger):
    lines = ledger.run_of(ONE) / "metrics.jsonl"
    lines.rename(ledger.folder / "elsewhere.jsonl")
    lines.symlink_to(ledger.folder / "elsewhere.jsonl")


def in_job(ledger):
    edit(ledger.folder / "jobs" / ONE / "job.json", '"seed": 43', '"seed": 44')


def other_job(ledger):
    shutil.rmtree(ledger.folder / "jobs" / ONE)
    shutil.copytree(ledger.folder / "jobs" / OTHER, ledger.folder / "jobs" / ONE)


def cut(file, size):
    return lambda ledger: (ledger.run_of(ONE) / file).write_text(
        (ledger.run_of(ONE) / file).read_text()[:size]
    )


AT_ONCE = {
    "no run": (empty_run, "summary.json is missing"),
    "no summary": (lambda ledger: (ledger.run_of(ONE) / "summary.json").unlink(), "is missing"),
    "no lines": (
        lambda ledger: (ledger.run_of(ONE) / "metrics.jsonl").unlink(),
        "metrics.jsonl is missing",
    ),
    "a link": (link, "metrics.jsonl is a symbolic link"),
    "half a summary": (cut("summary.json", 200), "summary.json is not JSON"),
    "another run": (replace_run, f"summary.json is that of another run, '{OTHER}'"),
    "another status": (
        in_run("summary.json", '"finished"', '"interrupted"'),
        "is 'interrupted', which was accepted as finished",
    ),
    "a flipped job": (in_job, "job.json: it is not what a sweep wrote"),
    "another job": (other_job, f"job.json is that of another job, '{OTHER}'"),
}
"""What a look at the status finds."""
IN_AUDIT = {
    "other steps": (in_run("summary.json", '"steps": 6', '"steps": 5'), "summary.json is not what"),
    "another loss": (in_run("summary.json", "loss", "lost"), "summary.json is not what it was"),
    "fewer lines": (cut("metrics.jsonl", 30), "metrics.jsonl is not what it was"),
    "another setting": (in_run("config.yaml", "0.001", "0.5"), "config.yaml is not what it was"),
}
CHECKED = SweepFile(checks={"loss": [0, 10]})
CASES = {**AT_ONCE, **IN_AUDIT}


def told(ledger):
    """Return what verify says of the one damaged run; it must say nothing of the others."""
    found = verify(ledger, None, [])
    assert (list(found.completed), list(found.damaged)) == ([OTHER, LAST], [ONE])
    assert str(found) == "2/3 runs completed, 1 run damaged"
    assert not found.is_whole
    return found.damaged[ONE]


@pytest.mark.faults(len(CASES))
def test_what_is_not_what_was_accepted_is_named_and_counts_for_nothing(completed, tmp_path):
    """By verify and by export, with its file; each job has a row, and the others count."""
    for case, (damage, problem) in CASES.items():
        shutil.copytree(completed, tmp_path / case / "toy")
        ledger = Ledger(tmp_path / case / "toy")
        damage(ledger)
        row = survey(ledger)[1]
        assert not status_of(CHECKED, ledger).outside  # of a damaged run no value is told
        if case in AT_ONCE:
            assert (row.state, row.why) == (State.DAMAGED, told(ledger))
        assert problem in told(ledger), case
        asked, _ = open_sweep("toy", str(tmp_path / case))
        made = export(asked, ledger, tmp_path / case / "out")
        assert problem in made.problems[ONE]
        metadata = json.loads((tmp_path / case / "out" / "runs_metadata.json").read_text())
        assert problem in metadata["damaged"][ONE]
        with (tmp_path / case / "out" / "runs.csv").open() as table:
            rows = list(csv.DictReader(table))
        assert [row["state"] for row in rows] == ["completed", "damaged", "completed"]
        assert [row["in_statistics"] for row in rows] == ["true", "false", "true"]


def forget(ledger):
    """Remove what was written down of the run when it was accepted."""
    shutil.rmtree(ledger.folder / "jobs" / ONE / "attempts")


def test_a_run_of_which_nothing_was_written_down_is_said_to_be(ledger, capsys):
    """It is compared with what its job asks for, and is no fault."""
    forget(ledger)
    found = verify(ledger, None, [])
    assert (found.is_whole, list(found.unrecorded)) == (True, [ONE])
    done = call(capsys, "sweep", "verify", "toy", "--sweeps-dir", ledger.folder.parent)
    assert done.code == 0
    assert f"unrecorded: {ONE}: compared with what its job asks for" in done.out


def test_a_run_that_was_made_again_is_not_compared_with_the_one_before(tmp_path):
    """Its worker was killed before it wrote down what it published."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    for loss, seconds in ((1.0, 5.0), (2.0, 7.0)):
        shutil.rmtree(ledger.run_of(job.name), ignore_errors=True)
        complete(ledger, job, lines=LINES, max_steps=6, val_loss=loss, seconds=seconds)
        (row,) = survey(ledger)
        assert row.run_seconds == seconds  # of this run alone
    (ledger.standing(job.name).last.folder / "exit.json").unlink()
    shutil.rmtree(ledger.folder / "cache")
    found = verify(ledger, None, [])
    assert (found.is_whole, list(found.unrecorded)) == (True, [job.name])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (in_run("config.yaml", '"seed": 43', '"seed": 42'), "seed is that of another job, 42"),
        (cut("metrics.jsonl", 90), "ends with step 3, and the run with step 6"),
        (in_run("metrics.jsonl", '"step": 2', '"stop": 2'), "is damaged in line 2"),
        (in_run("metrics.jsonl", '6, "loss": 1.0', '6, "loss": 2.0'), "metrics.jsonl was changed"),
    ],
)
def test_such_a_run_is_damaged_if_it_contradicts_itself_or_its_job(ledger, damage, problem):
    """Its record ends with its last step, and says the same as its summary."""
    forget(ledger)
    damage(ledger)
    assert problem in told(ledger)


def test_what_a_retry_changed_is_read_from_the_run_if_its_attempts_are_gone(ledger):
    """So it stays out of the statistics."""
    in_run("config.yaml", '"learning_rate": 0.001', '"learning_rate": 0.5')(ledger)
    forget(ledger)
    row = survey(ledger)[1]
    assert (row.state, row.changed, row.in_statistics) == (
        State.COMPLETED,
        {"learning_rate": 0.5},
        False,
    )


def test_a_lease_that_hides_what_a_retry_changed_is_found(tmp_path):
    """A run whose second attempt was accepted is compared with its configuration."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    fail(ledger, job, "out of memory")
    complete(ledger, job, changed={"learning_rate": 0.5})
    assert verify(ledger, None, []).is_whole
    lease = ledger.standing(job.name).attempts[1].folder / "lease.json"
    edit(lease, '"learning_rate": 0.5', '"learning_rate": 0.25')
    shutil.rmtree(ledger.folder / "cache")
    assert "learning_rate is 0.5, which is not what" in verify(ledger, None, []).damaged[job.name]


def test_an_earlier_attempt_that_cannot_be_read_is_named(tmp_path):
    """Or the seconds of its job would be too few without a word."""
    ledger = ledger_of(tmp_path)
    (job,) = ledger.jobs()
    fail(ledger, job, "gone", status="lost")
    complete(ledger, job)
    path = ledger.standing(job.name).attempts[0].folder / "exit.json"
    path.write_text("{")
    assert verify(ledger, None, []).damaged[job.name].startswith(f"{path} is not JSON")


def test_runs_of_other_data_are_named(tmp_path, capsys):
    """Those that ask for the same and had something else; other settings may mean other data."""
    ledger = ledger_of(tmp_path, seeds=3, variants={"a": {}, "b": {"gpt.n_layer": 1}})
    for i, job in enumerate(ledger.jobs()):
        complete(ledger, job, workload_facts={"sha256": ("b" if i >= 2 else "a") * 64})
    found = verify(ledger, None, [])
    assert found.other_data == {
        "a-seed44": f"sha256 of its data is {'b' * 12}, and {'a' * 12} in a-seed42"
    }
    assert str(found) == "5/6 runs completed, 1 run of other data"
    assert not found.is_whole
    done = call(capsys, "sweep", "export", "toy", "--sweeps-dir", tmp_path)
    assert "a-seed44: sha256 of its data" in done.err
    told = json.loads((ledger.folder / "export" / "runs_metadata.json").read_text())
    assert told["other_data"] == dict(found.other_data)


def test_files_that_settings_name_are_data(tmp_path, capsys):
    """Those of a workload that digests nothing; other settings may ask for other data: a line."""
    ledger = ledger_of(tmp_path, seeds=2, variants={"a": {}, "b": {"gpt.n_layer": 1}})
    for i, job in enumerate(ledger.jobs()):
        complete(ledger, job, environment={"files": {"gpt.data": ("b" if i else "a") * 64}})
    found = verify(ledger, None, [])
    a, b = "a" * 12, "b" * 12
    assert found.other_data == {"a-seed43": f"file of gpt.data is {b}, and {a} in a-seed42"}
    line = f"file of gpt.data is {a} in 1 run (a-seed42), {b} in 3 (a-seed43, ...)"
    assert found.data == [line]
    done = call(capsys, "sweep", "verify", "toy", "--sweeps-dir", tmp_path)
    assert line in " ".join(done.out.split())
    done = call(capsys, "sweep", "export", "toy", "--sweeps-dir", tmp_path)
    assert line in " ".join(done.err.split())


def test_runs_of_other_code_are_named(tmp_path, capsys):
    """A format or a plugin that was upgraded between two jobs; other plugins are not others."""
    ledger = ledger_of(tmp_path, seeds=3, variants={"a": {}, "b": {"gpt.n_layer": 1}})
    for i, job in enumerate(ledger.jobs()):
        code = {
            "format MINE": {"from": f"third-fmt 1.{i == 5:d}"},
            f"own-{job.variant}": {"from": "own 1"},
        }
        complete(ledger, job, environment={"code": code, "altcore": "0.2" if i else "0.1"})
    found = verify(ledger, None, [])
    told = "format MINE is third-fmt 1.1, and third-fmt 1.0 in a-seed42"
    assert found.other_code == {"b-seed44": told}
    assert str(found) == "5/6 runs completed, 1 run of other code"
    assert not found.is_whole
    done = call(capsys, "sweep", "verify", "toy", "--sweeps-dir", tmp_path)
    assert done.code == 1
    assert f"other code: b-seed44: {told}" in " ".join(done.out.split())
    done = call(capsys, "sweep", "export", "toy", "--sweeps-dir", tmp_path)
    assert f"b-seed44: {told}" in " ".join(done.err.split())
    assert "not all runs were made alike: altcore differ" in " ".join(done.err.split())
    told = json.loads((ledger.folder / "export" / "runs_metadata.json").read_text())
    assert told["other_code"] == dict(found.other_code)


def test_what_is_left_out_of_an_archive_is_told(ledger, capsys):
    """A job whose file is damaged, and a run that is not what was accepted."""
    in_job(ledger)
    edit(ledger.run_of(LAST) / "metrics.jsonl", '"step": 2', '"step": 3')
    done = call(capsys, "sweep", "collect", "toy", "--sweeps-dir", ledger.folder.parent)
    assert "base.tar.gz: 1 run\n" in done.out
    assert f"left out: {LAST}: {ledger.run_of(LAST)}/metrics.jsonl is not what it was" in done.err
    assert f"left out: {ONE}: {ledger.folder}/jobs/{ONE}/job.json" in done.err


def test_a_damaged_run_has_no_series_from_an_earlier_export(ledger, tmp_path):
    """Or whoever reads the folder of an export takes it for a result."""
    asked = SweepFile(series={"loss": "loss"})
    export(asked, ledger, tmp_path / "out")
    (tmp_path / "out" / "series" / "mine.csv").touch()
    edit(ledger.run_of(ONE) / "metrics.jsonl", '"step": 2', '"step": 3')
    export(asked, ledger, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out" / "series").iterdir()}
    assert names == {OTHER, LAST, "mine"}


def test_a_run_without_its_job_is_named(ledger, capsys):
    """By each command, in place of a run that is missing; `run` adds the job to it again."""
    shutil.rmtree(ledger.folder / "jobs" / ONE)
    (ledger.folder / "runs" / "notes").mkdir()
    problem = f"{ledger.folder}/jobs/{ONE}/job.json is missing"
    where = ("toy", "--sweeps-dir", ledger.folder.parent)
    status = call(capsys, "sweep", "status", "--show-failed", *where)
    assert f"damaged: {ONE}: {problem}" in status.out
    assert told(ledger).startswith(problem)
    found = call(capsys, "sweep", "verify", *where)
    assert found.out.splitlines()[0] == "2/3 runs completed, 1 run damaged"
    assert f"{ONE}: {problem}" in call(capsys, "sweep", "export", *where).err
    with (ledger.folder / "export" / "statistics.csv").open() as table:
        assert [row["variant"] for row in csv.DictReader(table)] == ["base"]
    ledger_of(ledger.folder.parent, seeds=3)
    assert list(verify(ledger, None, []).unrecorded) == [ONE]


def test_a_damaged_file_is_named_by_status_and_list(ledger, capsys):
    """Not the verdict of a run that is no result any more."""
    in_job(ledger)
    edit(ledger.run_of(LAST) / "summary.json", '"finished"', '"failed"')
    where = ("toy", "--sweeps-dir", ledger.folder.parent)
    shown = call(capsys, "sweep", "status", "--show-failed", *where)
    assert shown.code == 1
    assert f"damaged: {ONE}: {ledger.folder}/jobs/{ONE}/job.json: it is not" in shown.out
    assert f"damaged: {LAST}: {ledger.run_of(LAST)}/summary.json says" in shown.out
    listed = call(capsys, "sweep", "list", "--status", "damaged", *where).out
    assert listed.count("summary.json says") + listed.count("job.json: it is not") == 2
    assert "learned" not in listed
