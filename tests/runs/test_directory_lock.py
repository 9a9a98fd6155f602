"""The lock of a run's directory, when its file is removed or its descriptors are closed."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from helpers import run_directory
from structlog.testing import capture_logs

from altcore.errors import BadInput
from altcore.runs import RunDirectory, is_being_written


def open_files(path):
    """Return the descriptors of this process that lead to a path."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += [int(entry.name)] * (entry.readlink() == path)
        except OSError:
            continue
    return found


@pytest.fixture
def directory(tmp_path):
    """The directory of a run that is being written."""
    made = run_directory(tmp_path, name="r")
    yield made
    made.close()


def test_whether_a_directory_is_being_written(directory):
    """Either lock tells; asking takes neither from another process."""
    assert is_being_written(directory.path)
    (directory.path / ".lock").unlink()
    assert is_being_written(directory.path)
    directory.close()
    assert not is_being_written(directory.path)
    RunDirectory.open(directory.path).close()


@pytest.mark.parametrize("name", ["", ".lock"])
def test_who_asks_while_a_run_begins_is_no_other_writer(tmp_path, monkeypatch, name):
    """As `altcore report --watch` does: its lock is gone at once."""
    path = run_directory(tmp_path, name="r")
    path.close()
    asking = os.open(path.path / name, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
    RunDirectory.open(path.path).close()
    os.close(asking)


def test_a_removed_lock_lets_nobody_in(directory):
    """The directory itself is locked, too; the file is there again at the next checkpoint."""
    (directory.path / ".lock").unlink()
    with pytest.raises(BadInput, match="being written by another run of this process"):
        RunDirectory.open(directory.path)
    directory.check_in_place()
    assert open_files(directory.path / ".lock")


def test_a_lock_that_another_took_ends_the_writer(directory):
    """As on NFS, which locks no directory: the first writer finds it before it saves."""
    os.close(open_files(directory.path)[0])
    (directory.path / ".lock").unlink()
    other = RunDirectory.open(directory.path)
    with pytest.raises(BadInput, match="being written by another run of this process"):
        directory.check_in_place()
    other.close()


@pytest.mark.parametrize("name", ["", ".lock"])
def test_a_closed_descriptor_is_locked_anew(directory, name):
    """Code that closes what it did not open loses no lock, and its end is no error."""
    os.close(open_files(directory.path / name)[0])
    directory.check_in_place()
    with pytest.raises(BadInput, match="being written by another run of this process"):
        RunDirectory.open(directory.path)
    os.close(open_files(directory.path / name)[0])
    directory.close()
    RunDirectory.open(directory.path).close()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    """As some clusters have it: the run goes on, and is not blamed on another process."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with capture_logs() as logs:
        run_directory(tmp_path, name="r").close()
    assert [x["log_level"] for x in logs if "its file system has no locks" in x["event"]] == [
        "warning"
    ]


def test_a_child_that_outlives_its_parent_holds_no_lock(directory):
    """A loader's worker that nobody ended would keep the run from going on."""
    (began, tell), (wait, end) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.close(end)
        os.write(tell, b"-")
        os.read(wait, 1)  # until the parent is done
        os._exit(0)
    os.read(began, 1)
    directory.close()
    RunDirectory.open(directory.path).close()
    os.close(end)
    os.waitpid(child, 0)
    for pipe in (began, tell, wait):
        os.close(pipe)
