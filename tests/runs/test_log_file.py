"""The .jsonl files of a run: their length and hash, and cutting them to what a checkpoint says."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from helpers import run_directory
from structlog.testing import capture_logs

from altcore import durable
from altcore.errors import NoSpace
from altcore.runs import RunDirectory, read_lines
from altcore.runs.log_file import LogFile

FILES = ("metrics.jsonl", "events.jsonl", "timings.jsonl")


@pytest.fixture
def directory(tmp_path):
    """The directory of a run."""
    return run_directory(tmp_path, name="r")


def grow(directory, *steps):
    """Append a line for each step to each file."""
    for step in steps:
        for file in FILES:
            directory.append(file, {"step": step, "loss": 1 / 3})


def contents(directory):
    """Return what the files hold."""
    return {file: (directory.path / file).read_bytes() for file in FILES}


def test_length_and_hash_are_those_of_the_file(directory):
    """Counted as lines are written, and anew when the file is opened again."""
    grow(directory, 1, 2)
    first = directory.sync_logs()
    directory.close()
    again = RunDirectory.open(directory.path)
    grow(again, 3)
    for recorded, data in ((first, None), (again.sync_logs(), contents(again))):
        for file, known in recorded.items():
            whole = (data or contents(again))[file][: known["bytes"]]
            assert known == {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}


def test_a_name_is_as_durable_as_its_file(directory, monkeypatch):
    """Once for each file that is new; and the run's own when it is made."""
    synced, fsync = [], durable.fsync

    def record(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(durable, "fsync", record)
    for file in ("events.jsonl", "events.jsonl", "metrics.jsonl"):
        directory.append(file, {"step": 1})
        directory.sync_logs()
    assert synced == ["events.jsonl", "r", "events.jsonl", "metrics.jsonl", "r"]
    synced.clear()
    run_directory(directory.path.parent.parent, name="s")
    assert synced == ["runs"]


def test_a_file_that_is_not_there_is_not_recorded(directory):
    """And is removed when the run goes back to where it was not."""
    directory.append("events.jsonl", {"step": 0})
    recorded = directory.sync_logs()
    assert list(recorded) == ["events.jsonl"]
    grow(directory, 1)
    directory.close()
    again = RunDirectory.open(directory.path)
    again.cut_logs(recorded, 0)
    assert [f for f in FILES if (again.path / f).exists()] == ["events.jsonl"]
    grow(again, 1)
    assert [x["step"] for x in read_lines(again.path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("tail", [b"", b'{"step": 3, "lo', b"\xff\n[]\n", b"\n\n"])
def test_a_cut_leaves_exactly_what_was_recorded(directory, tail):
    """To the byte, whatever came after; and the next line is one of its own."""
    grow(directory, 1, 2)
    recorded, kept = directory.sync_logs(), contents(directory)
    grow(directory, 3)
    directory.close()
    for file in FILES:
        with (directory.path / file).open("ab") as log:
            log.write(tail)
    again = RunDirectory.open(directory.path)
    with capture_logs() as logs:
        again.cut_logs(recorded, 2)
    assert (contents(again), logs) == (kept, [])
    assert again.sync_logs() == recorded
    grow(again, 3)
    assert [x["step"] for x in read_lines(again.path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("change", ["flip", "shorten"])
def test_a_beginning_that_was_altered_is_named(directory, change):
    """The run goes on: what the record lost, no checkpoint can give back."""
    grow(directory, 1, 2)
    recorded = directory.sync_logs()
    grow(directory, 3)
    directory.close()
    file = directory.path / "metrics.jsonl"
    data = bytearray(file.read_bytes())
    if change == "flip":
        data[3] ^= 1
    else:
        del data[recorded["metrics.jsonl"]["bytes"] - 5 :]
    file.write_bytes(data)
    again = RunDirectory.open(directory.path)
    with capture_logs() as logs:
        assert again.cut_logs(recorded, 2) == ["metrics.jsonl"]
    assert [x["file"] for x in logs] == [str(file)]
    grow(again, 3)
    aside = file.with_name("metrics.jsonl.damaged")
    assert (logs[0]["damaged_lines"], logs[0]["kept_in"]) == (
        [1 if change == "flip" else 2],
        aside.name,
    )
    assert aside.read_bytes().rstrip(b"\n") == bytes(data).rstrip(b"\n")
    assert [x["step"] for x in read_lines(file)] == [2 if change == "flip" else 1, 3]
    assert read_lines(file)[-1]["step"] == 3
    assert again.sync_logs()["metrics.jsonl"]["bytes"] == file.stat().st_size


def twice(data):
    """Return lines with the second one twice."""
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:2], *lines[1:]])


@pytest.mark.parametrize("change", [lambda x: x.replace(b"\n", b"\r\n"), twice])
def test_lines_that_an_editor_moved_are_put_back(directory, change):
    """A file that grew before the checkpoint is not cut in the middle of what the run knew."""
    grow(directory, 1, 2)
    directory.append("metrics.jsonl", {"step": 2, "val_loss": 0.5})
    recorded, known = directory.sync_logs(), contents(directory)
    grow(directory, 3)
    directory.close()
    file = directory.path / "metrics.jsonl"
    file.write_bytes(changed := change(file.read_bytes()))
    again = RunDirectory.open(directory.path)
    with capture_logs() as logs:
        assert again.cut_logs(recorded, 2) == []
    assert contents(again) == known
    assert again.sync_logs() == recorded
    assert file.with_name(logs[0]["kept_in"]).read_bytes() == changed


def test_no_line_that_the_checkpoint_knew_is_cut(directory):
    """If the lines cannot be put back as they were, all up to its step stay."""
    grow(directory, 1, 2)
    directory.append("metrics.jsonl", {"step": 2, "val_loss": 0.5})
    recorded = directory.sync_logs()
    directory.close()
    file = directory.path / "metrics.jsonl"
    for number in (1, 2):
        whole = file.read_bytes()
        file.write_bytes(b'{"step": 1, "loss": 0.3, "note": "longer than it was"}\n' * 2 + whole)
        edited = file.read_bytes()
        again = RunDirectory.open(directory.path)
        with capture_logs() as logs:
            assert again.cut_logs(recorded, 2) == ["metrics.jsonl"]
        again.close()
        assert read_lines(file)[-1] == {"step": 2, "val_loss": 0.5}
        aside = f"metrics.jsonl.damaged{'' if number == 1 else '-2'}"
        assert logs[0]["kept_in"] == aside
        assert file.with_name(aside).read_bytes() == edited


def test_lines_of_later_steps_need_no_copy(directory):
    """They are done again, at each of many resumes from one checkpoint."""
    grow(directory, 1, 2)
    recorded = directory.sync_logs()
    grow(directory, 3)
    directory.close()
    file = directory.path / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b"0.3", b"0.4"))
    again = RunDirectory.open(directory.path)
    assert again.cut_logs(recorded, 2) == ["metrics.jsonl"]
    assert [line["step"] for line in read_lines(file)] == [1, 2]
    assert not [*file.parent.glob("*.damaged*")]


def test_a_line_that_does_not_fit_leaves_nothing(directory, monkeypatch):
    """Not half of itself, so that the file is what its hash says."""
    grow(directory, 1)
    kept, write = contents(directory), durable.write

    def full(descriptor, data):
        write(descriptor, data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(NoSpace, match=r"metrics\.jsonl \(\d+ bytes needed\)"):
        directory.append("metrics.jsonl", {"step": 2})
    monkeypatch.undo()
    assert contents(directory) == kept
    grow(directory, 2)
    assert directory.sync_logs()["metrics.jsonl"]["sha256"] == (
        hashlib.sha256(contents(directory)["metrics.jsonl"]).hexdigest()
    )


def test_a_line_after_a_torn_one_is_not_lost(directory):
    """Where no checkpoint says how long the file was."""
    (directory.path / "timings.jsonl").write_text('{"step": 1}\n{"step": 2, "ev')
    directory.append("timings.jsonl", {"step": 3})
    directory.append("timings.jsonl", {"step": 4})
    assert [x["step"] for x in read_lines(directory.path / "timings.jsonl")] == [1, 3, 4]
    assert (directory.path / "timings.jsonl").read_text().count("\n\n") == 0


def test_a_copy_by_hard_links_stays_as_it_is(tmp_path):
    """Whoever goes on with one of the two cuts and lengthens a file of its own."""
    path, copy = tmp_path / "metrics.jsonl", tmp_path / "copy.jsonl"
    copy.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    path.hardlink_to(copy)
    file = LogFile.open(path)
    file.append(b'{"step": 3}\n')
    file.close()
    assert copy.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert path.read_bytes() == copy.read_bytes() + b'{"step": 3}\n'
