"""No link that was planted in a run's directory is followed out of it."""

import os

import pytest
from helpers import events
from helpers_cli import call

from altcore import BadInput

FILES = (
    *("metrics.jsonl", "events.jsonl", "timings.jsonl"),
    *("summary.json", "config.yaml", "environment.json", ".lock"),
)


@pytest.fixture
def outside(tmp_path):
    """A file and a folder that no run may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("precious")
    return tmp_path / "outside"


def refused(start, outside):
    """Check that the run does not go on, and that nothing outside was touched."""
    with pytest.raises(BadInput) as said:
        start.resume("r", max_steps=4)
    assert [p.name for p in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"
    return str(said.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_a_link_is_refused(name, start, outside, capsys):
    """By a resume, with its name; reading the other runs goes on."""
    run = start(name="r", max_steps=2).run_directory
    start(name="other", max_steps=1)
    (run / name).unlink()
    (run / name).symlink_to(outside / "file")
    said = refused(start, outside)
    assert f"{run / name} is a symbolic link" in said or name == "config.yaml"
    found = call(capsys, "runs", "list", "--runs-dir", start.runs)
    assert found.code == 0
    assert "other" in found.out
    assert "precious" not in found.out + found.err


@pytest.mark.parametrize("name", ["checkpoints", "reports", "checkpoints/snapshots"])
def test_a_folder_that_is_a_link_is_refused(name, start, outside):
    run = start(name="r", max_steps=2).run_directory
    if (run / name).exists():
        (run / name).rename(run / "moved")
    (run / name).symlink_to(outside)
    assert f"{run / name} is a symbolic link" in refused(start, outside)


def test_a_state_that_is_a_link_is_no_checkpoint(start, tmp_path):
    """It would come from elsewhere; the checkpoint before is used."""
    run = start(name="r", max_steps=4, checkpoint_interval=2).run_directory
    path = run / "checkpoints/step-00000004/state.pt"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    start.resume("r", max_steps=4)
    assert events(run, "resume")[-1]["checkpoint"] == "step-00000002"


def test_a_checkpoint_that_is_a_link_is_refused(start, tmp_path):
    run = start(name="r", max_steps=2).run_directory
    path = run / "checkpoints/step-00000002"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(BadInput, match="step-00000002 is a symbolic link"):
        start.resume("r", max_steps=5)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_a_pipe_is_no_file_of_a_run(name, make, start):
    """A resume refuses it by name, and writes nothing."""
    run = start(name="r", max_steps=2).run_directory
    (run / name).unlink()
    make(run / name)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    with pytest.raises(BadInput) as said:
        start.resume("r", max_steps=4)
    assert name in str(said.value)
    assert "not a regular file" in str(said.value) or name == "config.yaml"
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize("name", ["checkpoints", "reports"])
def test_a_file_is_no_folder_of_a_run(name, start):
    run = start(name="r", max_steps=2).run_directory
    (run / name).rename(run / "moved")
    (run / name).touch()
    with pytest.raises(BadInput, match=f"{name} is not a folder"):
        start.resume("r", max_steps=4)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_folder_in_the_place_of_a_pointer_is_replaced(name, start):
    """The pointer follows from the checkpoints."""
    run = start(name="r", max_steps=2, eval_interval=1).run_directory
    pointer = run / "checkpoints" / name
    pointer.unlink()
    pointer.mkdir()
    start.resume("r", max_steps=4)
    assert (run / "checkpoints" / pointer.read_text()).is_dir()


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_a_pipe_is_not_waited_for(name, start, capsys):
    run = start(name="r", max_steps=2).run_directory
    (run / name).unlink()
    os.mkfifo(run / name)
    found = call(capsys, "report", "failure-report", "r", "--runs-dir", start.runs)
    assert found.code == 2
    assert "not a regular file" in found.message
