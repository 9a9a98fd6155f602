"""A file is replaced at once, by however many writers."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from altcore import durable
from altcore.errors import AltcoreError, BadInput, FailedDisk, NoSpace
from altcore.runs import contents
from altcore.yaml_files import read_mapping


def test_writers_of_one_file_do_not_meet(tmp_path):
    """A reader finds what one of them wrote, whole; nothing is left beside it."""
    path = tmp_path / "one.json"
    path.write_bytes(b"0" * 4096)

    def write(digit):
        for _ in range(50):
            durable.replace_file(path, digit * 4096, synced=False)

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(write, digit) for digit in (b"1", b"2", b"3")]
        while not all(one.done() for one in writing):
            held = path.read_bytes()
            assert held == held[:1] * 4096
    for one in writing:
        one.result()
    assert [p.name for p in tmp_path.iterdir()] == ["one.json"]


def test_what_killed_writers_left_is_removed(tmp_path):
    """Not what another one writes now, nor what somebody else calls temporary."""
    path = tmp_path / "one.json"
    old, new = durable.half_written(tmp_path / "other.json"), durable.half_written(path)
    others = tmp_path / ".notes.tmp"
    for left in (old, new, others):
        left.write_bytes(b"half")
    for left in (old, others):
        os.utime(left, (0, 0))
    durable.replace_file(path, b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, new.name, others.name}


@pytest.mark.parametrize(
    ("code", "needed", "told"),
    [
        (errno.EROFS, 12, "a read-only file system to write one.json"),
        (errno.ENOSPC, 0, "no space left to write one.json"),
        (errno.ENOSPC, 12, "no space left to write one.json (12 bytes needed)"),
        (errno.EDQUOT, 0, "no space left within the quota to write one.json"),
    ],
)
def test_bytes_are_named_where_they_would_help(code, needed, told):
    """Not of a disk that takes none, nor where nobody counted them."""
    with pytest.raises(NoSpace) as said, durable.no_space_named(Path("one.json"), needed):
        raise OSError(code, os.strerror(code))
    assert str(said.value) == told


def test_a_file_system_that_syncs_no_folders_is_told_once(tmp_path, monkeypatch):
    """Another error is one."""

    def refuse(code):
        def fsync(_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    monkeypatch.setattr(durable, "_told", set())
    refuse(errno.EINVAL)
    with capture_logs() as logs:
        durable.fsync_folder(tmp_path)
        durable.fsync_folder(tmp_path)
    assert ["syncs no folders" in x["event"] for x in logs] == [True]
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        durable.fsync_folder(tmp_path)


def test_a_rename_that_was_asked_for_twice_is_done(tmp_path, monkeypatch):
    """NFS sends it again, and is told that there is no such file; not so if it was not done."""
    (tmp_path / "a").touch()
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *to: [replace(*to), replace(*to)])
    durable.rename(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").touch()
    monkeypatch.setattr(Path, "replace", lambda path, _: replace(path.with_name("none"), path))
    with pytest.raises(FileNotFoundError):
        durable.rename(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_at_a_rename_is_named_as_at_a_write(code, tmp_path, monkeypatch):
    """With the path, and nothing is left half written."""

    def failed(path, target):
        raise OSError(code, os.strerror(code), str(path), None, str(target))

    monkeypatch.setattr(Path, "replace", failed)
    with pytest.raises(FailedDisk, match=f"one.json cannot be written: {os.strerror(code)}$"):
        durable.replace_file(tmp_path / "one.json", b"whole")
    assert not [*tmp_path.iterdir()]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """A pipe would wait for its writer, and a device may have no end."""
    (tmp_path / "file.yaml").write_text("a: 1")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "file.yaml")
    for name in ("file.yaml", "link.yaml"):
        assert durable.open_to_read(tmp_path / name).read() == b"a: 1"
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "device.yaml", "folder.yaml"):
        for read in (durable.open_to_read, contents) if name != "folder.yaml" else ():
            with pytest.raises(OSError, match="it is not a regular file"):
                read(tmp_path / name)
        with pytest.raises(BadInput, match=f"recipe .*{name}: cannot be read: it is not a regular"):
            read_mapping(tmp_path / name, "recipe")


@pytest.mark.parametrize(
    ("act", "doing"),
    [
        (lambda path: durable.replace_file(path, b"x"), r"write .*\.f\."),
        (durable.fsync_folder, "sync .*/f"),
        (durable.read_file, "read .*/f"),
    ],
)
def test_too_many_open_files_are_named(act, doing, tmp_path, monkeypatch):
    """With the path, and what would have been done: it is neither the file's fault nor a disk's."""

    def no_descriptor(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", no_descriptor)
    with pytest.raises(AltcoreError, match=f"^too many open files to {doing}.* \\(ulimit -n\\)"):
        act(tmp_path / "f")
