"""Damaged files, planted links, odd names, and a folder that was moved: named, and nothing more."""

import json
import shutil
from collections import Counter

import pytest
import torch  # noqa: F401 - forked children need not import it
from helpers_cli import call
from helpers_crashes import forked
from helpers_sweep_faults import bits_of, nothing_outside, toy, work

from altcore.errors import BadInput
from altcore.sweep import (
    Ledger,
    State,
    SweepFile,
    Watch,
    begin_sweep,
    bring_up_to_date,
    jobs_of,
    open_sweep,
    status_of,
    verify,
)

FIRST, SECOND = "base-learning_rate0.1-seed42", "base-learning_rate0.2-seed42"
GRID = {"learning_rate": [0.1, 0.2]}
TORN = ["", "{", "[]", "null", "{}", "\0\0\0", '{"process": 3}', '{"a": ' * 5000, "123"]
ATTEMPT = {
    "lease.json": [
        '{"token": "a", "began": 0, "process": {"host": "a", "machine": "b", "pid": "x", '
        '"began": "y"}}',
        '{"token": "a", "began": 0, "changed": [], "process": {"host": "a", "machine": "b", '
        '"pid": 1, "began": "y"}}',
    ],
    "exit.json": ['{"status": 3}', '{"status": "failed", "used": []}'],
    "job.json": ['{"name": "../x", "config": {}, "digest": "a"}'],
}
CASES = [(file, text) for file, own in ATTEMPT.items() for text in [*TORN, *own]]


@pytest.fixture
def ledger(tmp_path, corpus):
    """A sweep of two jobs."""
    return toy(tmp_path / "sweeps" / "toy", corpus, grid=GRID)


def states(ledger):
    return [ledger.standing(name).state for name in ledger.names()]


@pytest.fixture(scope="module")
def begun(tmp_path_factory, corpus):
    """A sweep of two jobs: the first was begun by a process that is gone, the second is done."""
    ledger = toy(tmp_path_factory.mktemp("begun") / "toy", corpus, grid=GRID)
    first = ledger.jobs()[0]
    assert forked(lambda: ledger.take(first, Watch(60))) == 0
    (ledger.folder / "jobs" / FIRST).rename(ledger.folder / "aside")
    work(ledger)
    (ledger.folder / "aside").rename(ledger.folder / "jobs" / FIRST)
    assert states(ledger) == [State.RUNNING, State.COMPLETED]
    return ledger.folder


@pytest.mark.faults(len(CASES))
def test_a_damaged_file_is_named_and_hides_no_other_job(begun, tmp_path):
    """Nobody takes the job, nothing about it is written, and everything else goes on."""
    for case, (file, text) in enumerate(CASES):
        ledger = Ledger(tmp_path / str(case))
        shutil.copytree(begun, ledger.folder)
        job = ledger.folder / "jobs" / FIRST
        place = job / file if file == "job.json" else job / "attempts" / "001" / file
        place.write_text(text)
        told = []
        with nothing_outside(job):
            assert work(ledger, tell=told.append) == 0
        (line,) = told
        assert str(place) in line, (file, text)
        stands = status_of(SweepFile(), ledger, now=0.0)
        assert stands.counts["completed"] == 1
        assert [row.name for row in stands.failed] == [FIRST]
        assert str(place) in stands.failed[0].why
        assert verify(ledger, None, []).damaged == {FIRST: stands.failed[0].why}
        assert states(ledger) == [State.DAMAGED, State.COMPLETED]
        assert str(place) in ledger.standing(FIRST).problem


def test_a_damaged_job_is_neither_new_nor_removed(ledger):
    """The sweep's file goes on with the others, and says what is wrong."""
    path = ledger.folder / "jobs" / FIRST / "job.json"
    jobs = ledger.jobs()
    path.write_text("{")
    changes = bring_up_to_date(ledger, jobs)
    assert not changes.added
    assert not changes.removed
    (problem,) = changes.damaged
    assert str(path) in problem
    assert path.read_text() == "{"


@pytest.mark.parametrize("text", ["", "base: [", "- a", "nothing: 1", "base: {max_steps: x"])
def test_a_damaged_sweep_file_is_named(ledger, text, capsys):
    """By its path; `altcore sweep` says so with its code for bad input."""
    path = ledger.folder / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"sweep\.yaml"):
        open_sweep("toy", str(ledger.folder.parent))
    outcome = call(capsys, "sweep", "work", "toy/..", "--sweeps-dir", ledger.folder.parent)
    assert outcome.code == 2


LINKS = ("jobs/x", f"jobs/{FIRST}", f"jobs/{FIRST}/attempts", f"jobs/{FIRST}/attempts/001")
LINKS += (f"runs/{FIRST}",)


@pytest.mark.parametrize("link", LINKS)
def test_nothing_is_written_through_a_planted_link(ledger, tmp_path, link):
    """It is named, is no result, and the other job has one."""
    outside = tmp_path / "outside"
    (outside / "work").mkdir(parents=True)
    (outside / "lease.json").write_text("{}")
    place = ledger.folder / link
    if place.is_dir():
        shutil.copytree(place, outside, dirs_exist_ok=True)
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    told = []
    with nothing_outside(outside):
        work(ledger, tell=told.append)
    assert any(f"{place} is a symbolic link" in line for line in told)
    assert ledger.standing(SECOND).state is State.COMPLETED
    assert not (ledger.folder / "runs" / FIRST).is_dir() or link == "jobs/x" or "runs" in link


@pytest.mark.parametrize("link", ["jobs", "runs", "retired", "workers", "sweep.yaml"])
def test_a_link_in_a_sweeps_folder_is_refused(ledger, tmp_path, link):
    """Before anything is written."""
    (tmp_path / "outside").mkdir()
    place = ledger.folder / link
    if place.is_dir():
        shutil.rmtree(place)
    place.symlink_to(tmp_path / "outside")
    asked = SweepFile(name="toy", grid=GRID)
    with nothing_outside(tmp_path), pytest.raises(BadInput, match=f"{place} is a symbolic link"):
        begin_sweep(asked, jobs_of(asked), str(ledger.folder.parent))


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "a\0b", "", ".", "..", "x" * 300, "<b>"])
def test_an_odd_name_is_refused(tmp_path, name):
    """As that of a sweep or of a variant."""
    with nothing_outside(tmp_path):
        with pytest.raises(BadInput):
            open_sweep(name, str(tmp_path))
        with pytest.raises(BadInput):
            SweepFile(variants={name: {}})


def test_odd_values_make_names_of_files_alone(tmp_path, corpus):
    """Whatever stands in a grid, a job's name is a name, and no two are the same."""
    tags = [["../../x"], ["/etc"], ["\n"], ["<b>"], ["ä" * 300], []]
    ledger = toy(tmp_path / "toy", corpus, grid={"tags": tags})
    assert len(ledger.names()) == len(tags)
    assert Counter(p.parent for p in tmp_path.rglob("job.json")).total() == len(tags)
    assert {p.parent for p in ledger.folder.glob("jobs/*")} == {ledger.folder / "jobs"}


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_sweep_that_was_moved_or_copied_goes_on(ledger, tmp_path, how):
    """In the middle of a run, too: what it was called before is of no matter."""
    whole = Ledger(tmp_path / "whole")
    whole.add(ledger.jobs())
    work(whole)
    assert forked(lambda: work(ledger), "rename step-00000002:1") < 0
    how(ledger.folder, tmp_path / "moved")
    moved = Ledger(tmp_path / "moved")
    work(moved)
    assert states(moved) == [State.COMPLETED] * 2
    assert bits_of(moved) == bits_of(whole)
    (first, second) = moved.standing(FIRST).attempts
    assert (first.exit.status, second.exit.status) == ("lost", "finished")
    lines = (moved.run_of(FIRST) / "events.jsonl").read_text().splitlines()
    assert any(json.loads(line)["event"] == "resume" for line in lines)
