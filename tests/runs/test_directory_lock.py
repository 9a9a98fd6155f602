"""The lock of a run's directory, when its file is removed or its descriptors are closed."""

import os
from pathlib import Path

import pytest
from helpers import run_directory

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


def test_a_removed_lock_lets_nobody_in(directory):
    """The directory itself is locked, too; the file is there again at the next checkpoint."""
    (directory.path / ".lock").unlink()
    with pytest.raises(BadInput, match="being written by another process"):
        RunDirectory.open(directory.path)
    directory.check_in_place()
    assert open_files(directory.path / ".lock")


def test_a_lock_that_another_took_ends_the_writer(directory):
    """As on NFS, which locks no directory: the first writer finds it before it saves."""
    os.close(open_files(directory.path)[0])
    (directory.path / ".lock").unlink()
    other = RunDirectory.open(directory.path)
    with pytest.raises(BadInput, match="being written by another process"):
        directory.check_in_place()
    other.close()


@pytest.mark.parametrize("name", ["", ".lock"])
def test_a_closed_descriptor_is_locked_anew(directory, name):
    """Code that closes what it did not open loses no lock, and its end is no error."""
    os.close(open_files(directory.path / name)[0])
    directory.check_in_place()
    with pytest.raises(BadInput, match="being written by another process"):
        RunDirectory.open(directory.path)
    os.close(open_files(directory.path / name)[0])
    directory.close()
    RunDirectory.open(directory.path).close()
