"""A long list of many jobs is held once, and a job is the same with it and without."""

import json
import math
import tarfile

import pytest
from helpers_sweeps import complete

from altcore.errors import BadInput
from altcore.sweep import Job, Ledger, State, SweepFile, collect
from altcore.sweep.tables import LONG

VALUES = [float(i) for i in range(LONG)]
LAYERS = {f"layer{i}": {"weight": {"name": "MINE", "values": VALUES}} for i in range(50)}


def job(name, values=VALUES):
    layers = {**LAYERS, "last": {"name": "MINE", "values": list(values)}}
    return Job(name=name, config={"workload": "gpt", "recipe": layers, "short": [1, 2]})


@pytest.fixture
def ledger(tmp_path):
    """Two jobs with equal lists in every layer."""
    made = Ledger(tmp_path / "toy")
    made.add([job("a"), job("b")])
    return made


def test_equal_lists_are_one_file(ledger):
    """However many layers and jobs have them, and whichever object holds them."""
    (table,) = (ledger.folder / "tables").iterdir()
    assert json.loads(table.read_text()) == VALUES
    assert (ledger.folder / "jobs" / "a" / "job.json").stat().st_size < 20_000
    ledger.add([job("c", [*VALUES, 0.5])])
    assert len(list((ledger.folder / "tables").iterdir())) == 2


def test_a_job_is_read_as_it_was(ledger):
    """Its digest does not depend on who holds it; a reader has each list once in memory."""
    read = Ledger(ledger.folder).jobs()
    assert read == [job("a"), job("b")]
    assert [j.digest for j in read] == [job("a").digest, job("b").digest]
    assert job("a").digest != job("a", [*VALUES[:-1], 7.0]).digest
    lists = {id(layer["weight"]["values"]) for j in read for layer in _layers(j)}
    assert len(lists) == 1


def _layers(made):
    return [layer for name, layer in made.config["recipe"].items() if name != "last"]


@pytest.mark.parametrize("text", ["[1, 2]", "{", "{}", None])
def test_a_damaged_list_is_named(ledger, text):
    """Or one that is gone, or a symbolic link: nobody takes the jobs that have it."""
    (table,) = (ledger.folder / "tables").iterdir()
    if text is None:
        table.rename(table.with_name("aside"))
        table.symlink_to(table.with_name("aside"))
    else:
        table.write_text(text)
    damaged = Ledger(ledger.folder).read_jobs()[1]
    assert sorted(damaged) == ["a", "b"]
    assert all(str(table) in problem for problem in damaged.values())


@pytest.mark.parametrize("name", ["../../x", 3, "", None])
def test_no_name_leads_elsewhere(ledger, name):
    """What a file of a job names lies in the sweep's folder."""
    with pytest.raises(BadInput, match="it names a table as no sweep does"):
        ledger._tables.read(name)


def test_an_archive_has_them(ledger, tmp_path):
    """Beside the jobs that name them, once."""
    complete(ledger, ledger.job("a"))
    complete(ledger, ledger.job("b"))
    assert ledger.standing("a").state is State.COMPLETED
    (archive,) = collect(SweepFile(study=True), ledger, tmp_path / "out").archives
    with tarfile.open(archive) as held:
        names = [name for name in held.getnames() if "/tables/" in name]
    (table,) = (ledger.folder / "tables").iterdir()
    assert names == [f"base/tables/{table.name}"]


def test_numbers_that_json_does_not_have_are_kept(tmp_path):
    """As strict JSON, which any program reads: a clip that never cuts is a value of a grid."""
    ledger = Ledger(tmp_path / "toy")
    held = {"grad_clip": math.inf, "limits": [-math.inf, [1.0]]}
    mine = Job(name="a", config={**held, "table": [math.inf, *VALUES]}, factors=held)
    ledger.add([mine])

    def refuse(word):
        raise AssertionError(word)

    for path in ledger.folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    found = Ledger(ledger.folder).job("a")
    assert (found, found.digest) == (mine, mine.digest)
