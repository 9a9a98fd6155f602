"""The run directory: names, the lock, whole files, a full disk."""

import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest
from helpers import run_directory
from helpers_checkpoints import save
from structlog.testing import capture_logs

from altcore import durable
from altcore.config import TrainConfig, check_name
from altcore.errors import BadInput, NoSpace
from altcore.runs import RunDirectory, find_run
from altcore.runs.log_file import LogFile

BAD_NAMES = [
    "../escape", "/tmp/absolute", "a/b", "..", ".", ".hidden", "a\0b", "x" * 300,
    "<script>alert(1)</script>", "", " ", "a b", "a\n", "-flag", "a..b", "ünï", "a\\b", "con:",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_refused(tmp_path, name):
    """As a new run's name, and as that of one to find: never a write or a read elsewhere."""
    with pytest.raises(BadInput, match="is not a name"):
        run_directory(tmp_path, name=name)
    with pytest.raises(BadInput, match="is not a name"):
        find_run(name, str(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "E4M3-pure.2", "x" * 100, "9_lives"])
def test_names_are_names(tmp_path, name):
    """Letters, digits, dot, dash and underscore."""
    assert check_name(name, "name") == name
    assert run_directory(tmp_path, name=name).path.name == name


def test_a_name_is_new(tmp_path):
    """The message offers another name and --resume; the run that exists is not touched."""
    directory = run_directory(tmp_path, name="r")
    save(directory.checkpoints, 0)
    directory.close()
    before = list(directory.path.rglob("*"))
    with pytest.raises(BadInput, match=r"name: .* exists; .* --resume r"):
        run_directory(tmp_path, name="r")
    assert list(directory.path.rglob("*")) == before


LEFT = ["config.yaml", "events.jsonl", "summary.json", ".config.yaml.tmp", "reports/a.md"]


@pytest.mark.parametrize("left", [[], [".lock"], LEFT, ["checkpoints/step-00000000.tmp/state.pt"]])
def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path, left):
    """Under its name, loudly, and with nothing of the first attempt."""
    for file in left:
        (tmp_path / "runs/r" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/r" / file).write_text("{}\n")
    (tmp_path / "runs/r").mkdir(parents=True, exist_ok=True)
    with capture_logs() as logs:
        directory = run_directory(tmp_path, name="r")
    assert "begins anew" in logs[0]["event"]
    assert sorted(p.name for p in directory.path.iterdir()) == [".lock", "checkpoints", "reports"]
    assert not list(directory.checkpoints.iterdir())


@pytest.mark.parametrize(
    "left", ["notes.txt", "metrics.jsonl", "timings.jsonl", "checkpoints/step-00000003.old/a"]
)
def test_what_may_be_worth_something_is_never_begun_anew(tmp_path, left):
    """A folder of somebody else's; a record whose checkpoints were left out of a copy."""
    file = tmp_path / "runs/r" / left
    file.parent.mkdir(parents=True)
    file.write_text("{}\n")
    with pytest.raises(BadInput, match="exists"):
        run_directory(tmp_path, name="r")
    assert file.read_text() == "{}\n"
    assert not (tmp_path / "runs/r/.lock").exists()


def test_a_run_that_is_just_beginning_is_not_begun_anew(tmp_path):
    """Whoever has the lock is alive."""
    directory = run_directory(tmp_path, name="r")
    (directory.path / "config.yaml").touch()
    with pytest.raises(BadInput, match="another run of this process"):
        run_directory(tmp_path, name="r")
    assert (directory.path / "config.yaml").exists()


def test_names_are_made_of_format_and_recipe(tmp_path):
    """A number follows where the name is taken; what is no file name is left out."""
    from altcore import float_format

    fmt = float_format("../E<3>", 3, 2)
    names = [run_directory(tmp_path, format=fmt).path.name for _ in range(3)]
    assert names == ["e-3-master", "e-3-master-2", "e-3-master-3"]
    assert run_directory(tmp_path).path.name == "none-master"


def test_an_unknown_run_offers_the_nearest(tmp_path):
    """Only folders that hold a configuration are runs."""
    (tmp_path / "e4m3-pure").mkdir()
    (tmp_path / "e4m3-pure" / "config.yaml").touch()
    with pytest.raises(BadInput, match=r"no run 'e4m3-pur' .*did you mean e4m3-pure"):
        find_run("e4m3-pur", str(tmp_path))


# --------------------------------------------------------------------------------- lock


def _try_to_open(path, answer):
    try:
        RunDirectory.open(path)
    except BadInput as error:
        answer.put(str(error))
    else:
        answer.put("opened")


def _ask_another_process(path):
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=_try_to_open, args=(path, answer))
    process.start()
    said = answer.get(timeout=90)
    process.join()
    return said


def test_two_processes_never_write_one_run(tmp_path):
    """While one holds it another is refused; when it is closed, or died, the next may."""
    directory = run_directory(tmp_path, name="r")
    told = f"{directory.path} is being written by another process"
    assert _ask_another_process(directory.path) == told
    directory.close()
    assert _ask_another_process(directory.path) == "opened"
    # The other process is gone, and its lock with it.
    RunDirectory.open(directory.path).close()


def test_a_held_run_is_not_touched(tmp_path):
    """The refusal comes before anything is written."""
    directory = run_directory(tmp_path, name="r")
    directory.append("metrics.jsonl", {"step": 1})
    before = {p.name: p.stat().st_mtime_ns for p in directory.path.iterdir() if p.is_file()}
    with pytest.raises(BadInput, match="another run of this process"):
        RunDirectory.open(directory.path)
    del before[".lock"]
    assert {n: (directory.path / n).stat().st_mtime_ns for n in before} == before
    directory.close()
    with (directory.path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---------------------------------------------------------------------------- no space


def test_a_full_disk_names_the_file_and_the_bytes(tmp_path):
    """A line that does not fit is an error of its own, with exit code 3; closing adds no other."""
    directory = run_directory(tmp_path, name="r")
    full = os.open("/dev/full", os.O_WRONLY)
    directory._logs["metrics.jsonl"] = LogFile(Path("/dev/full"), full)
    with pytest.raises(
        NoSpace, match=r"no space left to write /dev/full \(12 bytes needed\)"
    ) as caught:
        directory.append("metrics.jsonl", {"step": 1})
    assert caught.value.exit_code == 3
    directory.close()
    RunDirectory.open(directory.path).close()


@pytest.mark.parametrize("method", ["write", "fsync", "rename", "open_to_write"])
def test_a_full_disk_leaves_whole_files_as_they_were(tmp_path, monkeypatch, method):
    """A file is replaced at once or not at all, and a new one that cannot be made is named."""
    directory = run_directory(tmp_path, name="r")
    directory.write("config.yaml", "old: true\n")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, method, full)
    with pytest.raises(NoSpace, match=r"no space left to write .*config\.yaml"):
        directory.write("config.yaml", "new\n")
    monkeypatch.undo()
    assert (directory.path / "config.yaml").read_text() == "old: true\n"
    assert not list(directory.path.glob(".config*"))


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    """Before anything is built, with the key named."""
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"runs_dir: .*cannot be written"):
        RunDirectory.create(TrainConfig(), tmp_path / "file" / "runs")
