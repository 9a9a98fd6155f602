"""A changed sweep file is refused, with what would be lost of the jobs that it changes."""

import json
import shutil

import pytest
from helpers_cli import call
from helpers_sweeps import complete, fail, ledger_of

from altcore.errors import BadInput
from altcore.sweep import Exit, verify
from altcore.sweep.attempt import lease

NOTHING = "--accept-changes accepts it: none of these jobs trained a step, so nothing is lost"


def fails_after(step):
    """Return what lets an attempt fail after a checkpoint of this step."""

    def fails(ledger, job):
        held = lease(ledger.folder / "jobs" / job.name, 1, {})
        (held.attempt.work / job.name / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        ledger.end(job, held, Exit(status="failed", error="ValueError"))

    return fails


def begins(ledger, job):
    """Let an attempt begin."""
    lease(ledger.folder / "jobs" / job.name, 1, {})


def test_a_priority_may_change_at_any_time(tmp_path):
    """Also of jobs that began: these are the same runs, in another order."""
    keys = {"variants": {"a": {}, "b": {}}}
    complete(ledger_of(tmp_path, **keys), ledger_of(tmp_path, **keys).job("a-seed42"))
    ledger = ledger_of(tmp_path, **keys, priority={"b": 1})
    assert [(job.name, job.priority) for job in ledger.jobs()] == [
        ("b-seed42", 1),
        ("a-seed42", 100),
    ]
    assert verify(ledger, ledger.jobs(), []).completed == ["a-seed42"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (lambda ledger, job: None, NOTHING),
        (lambda ledger, job: fail(ledger, job, "BadInput: gpt.sizee"), NOTHING),
        (fails_after(0), NOTHING),
        (fails_after(2), "1 of these jobs trained: give the sweep another name"),
        (begins, "1 of these jobs trained"),
        (complete, "1 of these jobs trained: give the sweep another name, or accept it with "),
    ],
)
def test_the_refusal_says_what_would_be_lost(tmp_path, what, told):
    """Nothing if no job trained, as after a mistake in the file; else how many did."""
    ledger = ledger_of(tmp_path, seeds=2)
    what(ledger, ledger.jobs()[0])
    with pytest.raises(BadInput, match=f"2 changed: .*: {told}"):
        ledger_of(tmp_path, base={"gpt.size": "tiny", "max_steps": 7}, seeds=2)


def test_the_refusal_names_the_keys_with_both_values(tmp_path):
    keys = {"grid": {"learning_rate": [0.5, 2]}, "seeds": 2}
    ledger_of(tmp_path, **keys)
    told = r"4 changed: base-learning_rate0\.5-seed42, .* \(max_steps was 6 and is 7\)"
    with pytest.raises(BadInput, match=told):
        ledger_of(tmp_path, **keys, base={"gpt.size": "tiny", "max_steps": 7})


def test_a_whole_number_of_a_grid_may_be_written_with_or_without_a_point(tmp_path):
    """It names the same jobs, and these are the same runs."""
    ledger = ledger_of(tmp_path, grid={"learning_rate": [0.5, 1.0]})
    names = ["base-learning_rate0.5-seed42", "base-learning_rate1-seed42"]
    assert ledger.names() == names
    assert ledger_of(tmp_path, grid={"learning_rate": [0.5, 1]}).names() == names


@pytest.fixture
def done(tmp_path):
    """Two completed jobs, whose base keys are in a file of their own."""
    (tmp_path / "common.yaml").write_text("learning_rate: 0.001\n")
    ledger = ledger_of(tmp_path, seeds=2, config=str(tmp_path / "common.yaml"))
    for job in ledger.jobs():
        complete(ledger, job)
    return ledger


def edit(ledger):
    (ledger.folder.parent / "common.yaml").write_text("learning_rate: 0.01\n")


def lose(ledger):
    (ledger.folder.parent / "common.yaml").unlink()


def remove(ledger):
    shutil.rmtree(ledger.folder / "jobs" / "base-seed43")
    shutil.rmtree(ledger.run_of("base-seed43"))


OTHERS = "2 jobs are not those that the sweep file asks for: base-seed42, base-seed43"
LOST = "only the jobs that the sweep has are looked at"
GONE = "1 of 2 jobs are completed; missing: base-seed43 (not in the folder of the sweep)"


@pytest.mark.parametrize(("change", "told"), [(edit, OTHERS), (lose, LOST), (remove, GONE)])
def test_runs_that_are_not_what_the_file_asks_for_are_named(done, capsys, change, told):
    """By an export and an archive, on stderr and in what they write."""
    change(done)
    where = ("toy", "--sweeps-dir", done.folder.parent)
    for command in ("export", "collect"):
        assert told in " ".join(call(capsys, "sweep", command, *where).err.split())
    assert told in (done.folder / "export" / "README.md").read_text()
    listings = ("export/runs_metadata.json", "archive/toy_archives.json")
    for found in (json.loads((done.folder / listing).read_text()) for listing in listings):
        assert list(found["changed"]) == (done.names() if change is edit else [])
        assert list(found["without_result"]) == (["base-seed43"] if change is remove else [])


def test_an_archive_stays_of_a_variant_that_the_file_asks_for(tmp_path, capsys):
    """Its jobs may be made again: it is the only copy of their runs."""
    ledger = ledger_of(tmp_path, variants={"a": {}, "b": {}})
    for job in ledger.jobs():
        complete(ledger, job)
    where = ("toy", "--sweeps-dir", tmp_path)
    call(capsys, "sweep", "collect", *where)
    shutil.rmtree(ledger.folder / "jobs" / "b-seed42")
    shutil.rmtree(ledger.run_of("b-seed42"))
    call(capsys, "sweep", "collect", *where)
    assert (ledger.folder / "archive" / "b.tar.gz").is_file()


ABSENT = "1 job is not there that the sweep file asks for: base-seed43 (altcore sweep run adds"


def test_a_job_that_was_removed_is_missed_by_status_and_added_by_run(done, capsys, monkeypatch):
    """Which is told the sweep's name: the sweep's own file is compared with it as any other one."""
    where = ("toy", "--sweeps-dir", done.folder.parent)
    ended = Exit(status="failed", error="none")
    monkeypatch.setattr("altcore.sweep.worker.run_job", lambda *_, **__: ended)
    assert "not there" not in call(capsys, "sweep", "status", *where).out
    remove(done)
    assert f"alert: {ABSENT}" in " ".join(call(capsys, "sweep", "status", *where).out.split())
    found = call(capsys, "sweep", "run", *where)
    assert (found.code, done.names()) == (1, ["base-seed42", "base-seed43"])
    assert "1 job: base 1; into" in found.err
    assert "1/2 runs completed" in found.out


@pytest.mark.parametrize(
    ("change", "told"), [(edit, "2 changed: base-seed42, base-seed43"), (lose, "common.yaml")]
)
def test_a_sweep_told_by_its_name_is_not_run_as_something_else(done, capsys, change, told):
    """Nor if nobody knows what it was; status says that."""
    change(done)
    where = ("toy", "--sweeps-dir", done.folder.parent)
    found = call(capsys, "sweep", "run", *where)
    assert found.code == 2
    assert told in found.err
    out = call(capsys, "sweep", "status", *where).out
    assert ("it is not known which jobs" in out) == (change is lose)
