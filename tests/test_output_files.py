"""Files that people name are written whole or not at all, and nothing else is replaced."""

import os
import socket
from pathlib import Path

import pytest
from helpers_disks import full_disk

import altcore
from altcore import BadInput, durable
from altcore.cli.formats import write_svg
from altcore.errors import NoSpace
from altcore.output_files import write_output

WRITERS = {
    "configuration": lambda path: altcore.save_config(altcore.load_config(), path),
    "picture": lambda path: write_svg(path, [altcore.get_format("E4M3")]),
}


def put(kind, path):
    """Make a pipe, a socket, a folder or a link to a file of somebody."""
    if kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "a symbolic link":
        path.with_name("mine").write_text("mine")
        path.symlink_to(path.with_name("mine"))
    else:
        (os.mkfifo if kind == "a pipe" else os.mkdir)(path)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a folder", "a symbolic link"])
def test_only_a_file_is_replaced(kind, writer, tmp_path, monkeypatch):
    """A pipe is not waited for either, and nothing is left beside it."""
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = tmp_path / "out"
    put(kind, path.relative_to(tmp_path))
    before = {p.name: p.lstat().st_ino for p in tmp_path.iterdir()}
    with pytest.raises(BadInput, match=f"out is {kind}, and no file to write to"):
        WRITERS[writer](path)
    assert {p.name: p.lstat().st_ino for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_and_a_folder_that_is_not_there_are_named(writer, tmp_path):
    """The old file stays."""
    with pytest.raises(BadInput, match=f"there is no folder {tmp_path / 'none'}"):
        WRITERS[writer](tmp_path / "none/out")
    (tmp_path / "out").write_text("old")
    told = rf"no space left to write {tmp_path / 'out'} \(\d+ bytes needed\)"
    with full_disk("bytes", 100), pytest.raises(NoSpace, match=told):
        WRITERS[writer](tmp_path / "out")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out", "old")]


def test_a_written_file_is_durable(tmp_path, monkeypatch):
    """Its bytes, and then its name."""
    synced = []
    monkeypatch.setattr(
        durable, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    write_output(tmp_path / "out", b"new")
    assert [name.endswith(".tmp") for name in synced] == [True, False]
    assert synced[-1] == str(tmp_path)


@pytest.mark.parametrize(
    "rename", [durable.rename, lambda _, path: durable.replace_text(path, "x")]
)
def test_no_rename_takes_the_place_of_a_pipe(rename, tmp_path):
    """Whoever it is: reports, tables, archives, files of a run. It could be a device."""
    (tmp_path / "new").touch()
    os.mkfifo(tmp_path / "out")
    with pytest.raises(OSError, match="out is not a regular file"):
        rename(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out"]


@pytest.fixture
def run(tmp_path):
    """Make what altcore knows a run by."""
    for file in ("checkpoints/a/x.pt", "environment.json", "config.yaml", "reports/page.html"):
        (tmp_path / "mine" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / file).write_text("as it is")
    return tmp_path / "mine"


@pytest.mark.parametrize(
    "file",
    ["config.yaml", "summary.json", "metrics.jsonl", "checkpoints/x", "checkpoints/step-3/x"],
)
@pytest.mark.parametrize("writer", WRITERS)
def test_the_record_of_a_run_is_not_written_over(writer, file, run, monkeypatch):
    """Also by a path from within."""
    for path in (run / file, Path("..", "mine", file)):
        monkeypatch.chdir(run)
        with pytest.raises(
            BadInput, match=f"is in the record of the run mine: {file.split('/')[0]}"
        ):
            WRITERS[writer](path)
    assert (run / "config.yaml").read_text() == "as it is"
    assert not list(run.rglob("x"))


@pytest.mark.parametrize("file", ["reports/page.svg", "model.yaml", "../config.yaml"])
def test_what_lies_beside_the_record_of_a_run_is_written(file, run):
    altcore.save_config(altcore.load_config(), run / file)
    assert (run / file).is_file()


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BadInput, match="loop/out: cannot be written: Too many levels"):
        altcore.save_config(altcore.load_config(), tmp_path / "loop/out")


def test_a_loop_of_somebody_writes_its_config_again(run):
    """Beside its checkpoints."""
    (run / "environment.json").unlink()
    altcore.save_config(altcore.load_config(), run / "config.yaml")
    assert (run / "config.yaml").read_text() != "as it is"
