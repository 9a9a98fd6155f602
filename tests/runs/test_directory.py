"""The run directory: names, the lock, whole files, a full disk."""

import fcntl
import multiprocessing
from pathlib import Path

import pytest
from helpers import run_directory

from altcore.config import TrainConfig, check_name
from altcore.errors import BadInput, NoSpace
from altcore.runs import RunDirectory, find_run

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
    run_directory(tmp_path, name="r").close()
    with pytest.raises(BadInput, match=r"name: .* exists; .* --resume r"):
        run_directory(tmp_path, name="r")


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
    said = answer.get(timeout=30)
    process.join()
    return said


def test_two_processes_never_write_one_run(tmp_path):
    """While one holds it another is refused; when it is closed, or died, the next may."""
    directory = run_directory(tmp_path, name="r")
    assert _ask_another_process(directory.path) == "run r is being written by another process"
    directory.close()
    assert _ask_another_process(directory.path) == "opened"
    # The other process is gone, and its lock with it.
    RunDirectory.open(directory.path).close()


def test_a_held_run_is_not_touched(tmp_path):
    """The refusal comes before anything is written."""
    directory = run_directory(tmp_path, name="r")
    directory.append("metrics.jsonl", {"step": 1})
    before = {p.name: p.stat().st_mtime_ns for p in directory.path.iterdir() if p.is_file()}
    with pytest.raises(BadInput, match="another process"):
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
    directory._files["metrics.jsonl"] = Path("/dev/full").open("a")  # noqa: SIM115 - closed with it
    with pytest.raises(
        NoSpace, match=r"no space left to write .*r/metrics\.jsonl \(12 bytes needed\)"
    ) as caught:
        directory.append("metrics.jsonl", {"step": 1})
    assert caught.value.exit_code == 3
    directory.close()
    RunDirectory.open(directory.path).close()


@pytest.mark.parametrize("method", ["write_text", "replace", "open"])
def test_a_full_disk_leaves_whole_files_as_they_were(tmp_path, monkeypatch, method):
    """A file is replaced at once or not at all, and a new one that cannot be made is named."""
    directory = run_directory(tmp_path, name="r")
    directory.write("config.yaml", "old: true\n")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), method, full)
    how, what = {"open": (directory.append, {"step": 1})}.get(method, (directory.write, "new\n"))
    with pytest.raises(NoSpace, match="no space left to write"):
        how("metrics.jsonl" if method == "open" else "config.yaml", what)
    monkeypatch.undo()
    assert (directory.path / "config.yaml").read_text() == "old: true\n"


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    """Before anything is built, with the key named."""
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"runs_dir: .*cannot be written"):
        RunDirectory.create(TrainConfig(runs_dir=str(tmp_path / "file" / "runs")))
