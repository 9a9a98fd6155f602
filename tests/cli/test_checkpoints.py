"""``altcore checkpoints``: list, verify, path, export."""

import json
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import Starter, text_file
from helpers_cli import call
from helpers_disks import full_disk
from structlog.testing import capture_logs

import altcore
from altcore.errors import AltcoreError
from altcore.log import warn_once
from altcore.runs import altered, missing_checkpoints


@pytest.fixture
def runs(tmp_path):
    """The folder of one run of four steps."""
    start = Starter(tmp_path / "runs", text_file(tmp_path / "words.txt"))
    start(name="a", max_steps=4, checkpoint_interval=2, eval_interval=2, format="E4M3")
    return tmp_path / "runs"


def test_the_list_marks_best_and_latest(runs, capsys):
    """In text and in JSON."""
    text = call(capsys, "checkpoints", "list", "a", "--runs-dir", runs).out
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        "step-00000000",
        "step-00000002",
        "step-00000004",
    ]
    rows = json.loads(call(capsys, "checkpoints", "list", "a", "--runs-dir", runs, "--json").out)
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert "latest" in rows[-1]["marks"]
    assert sum("best" in row["marks"] for row in rows) == 1


def test_verify_finds_a_flipped_bit(runs, capsys):
    """Exit code 1, and the file is named."""
    assert call(capsys, "checkpoints", "verify", "a", "--runs-dir", runs).code == 0
    file = runs / "a/checkpoints/step-00000002/state.pt"
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    outcome = call(capsys, "checkpoints", "verify", "a", "--runs-dir", runs)
    assert outcome.code == 1
    assert str(file) in outcome.out
    assert outcome.out.count(" valid") == 2


def test_a_checkpoint_that_is_a_link_is_named(runs, tmp_path, capsys):
    """The newest one, moved to another disk and linked back, is passed by by nobody."""
    newest = runs / "a/checkpoints/step-00000004"
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    for command in ("list", "verify", "path"):
        outcome = call(capsys, "checkpoints", command, "a", "--runs-dir", runs)
        assert outcome.code == 2
        assert f"{newest} is a symbolic link" in outcome.err


def test_a_checkpoint_that_the_run_ended_with_is_missed(runs, tmp_path, capsys):
    """By all that read it; the record has it as the best and the latest, or only the latest."""
    where = ("a", "--runs-dir", runs)
    run, file = runs / "a", tmp_path / "w.safetensors"
    readers = {
        "latest": [
            ("checkpoints", "path", *where),
            ("checkpoints", "export", "a", file, *where[1:]),
        ],
        "best": [("checkpoints", "path", *where, "--best")],
        "best and latest": [("runs", "show", *where)],
    }
    commands = [x for several in readers.values() for x in several]
    assert not any("is missing" in call(capsys, *command).err for command in commands)
    file.unlink()
    lost = run / "checkpoints/step-00000004"
    shutil.rmtree(lost)
    for pointer in ("best", "last"):  # as `cp -r runs/a/checkpoints/step-*` leaves out
        (run / "checkpoints" / pointer).unlink()
    for which, several in readers.items():
        told = f"{lost} is missing: the run ended with it as its {which} checkpoint"
        assert all(told in call(capsys, *command).err for command in several)
    outcome = call(capsys, "checkpoints", "verify", *where)
    assert outcome.code == 1
    assert f"{lost.name}  {lost} is missing" in outcome.out
    with capture_logs() as logs:
        assert altcore.load("a", runs_dir=runs).step == 2
    assert [x["event"] for x in logs] == [f"{lost} is missing: {RAN_WITH} best checkpoint"]
    shutil.rmtree(run / "checkpoints")  # as a copy that leaves them out
    assert "is missing" not in call(capsys, "runs", "show", *where).err


def test_a_summary_that_is_gone_is_missed(runs, capsys):
    """By all that read it; not while a run goes on, which has none."""
    where = ("a", "--runs-dir", runs)
    (runs / "a/summary.json").unlink()
    told = "summary.json is missing: the run ended as finished; altcore train --resume a writes"
    readers = (
        *(("runs", "show", *where), ("runs", "list", *where[1:]), ("runs", "compare", "a", *where)),
        ("report", "page", *where),
    )
    for reader in readers:
        warn_once.cache_clear()
        assert told in call(capsys, *reader).err, reader
    assert "summary.json is missing" in (runs / "a/reports/page.html").read_text()
    verified = call(capsys, "checkpoints", "verify", *where)
    assert (verified.code, told in verified.out) == (1, True)
    warn_once.cache_clear()
    with capture_logs() as logs:
        altcore.load("a", runs_dir=runs)
    assert any(told in x["event"] for x in logs)
    call(capsys, "train", "--resume", "a", "--set", f"runs_dir={runs}")
    assert altered(runs / "a") == {}
    lines = (runs / "a/events.jsonl").read_text()
    (runs / "a/summary.json").unlink()
    (runs / "a/events.jsonl").write_text(lines + '{"step": 4, "event": "resume"}\n')
    assert "summary.json" not in altered(runs / "a")


RAN_WITH = "the run ended with it as its"


def test_checkpoints_that_were_pruned_are_not_missed(tmp_path):
    """The best and the newest stay."""
    start = Starter(tmp_path / "runs", text_file(tmp_path / "words.txt"))
    every = {"checkpoint_interval": 1, "eval_interval": 1, "monitor_mode": "max"}
    start(name="two", max_steps=4, max_checkpoints=2, format="none", **every)
    two = tmp_path / "runs/two"
    assert missing_checkpoints(two) == {}
    best, last = ((two / "checkpoints" / x).read_text() for x in ("best", "last"))
    assert best != last
    shutil.rmtree(two / "checkpoints" / best)
    (two / "summary.json").rename(tmp_path / "summary.json")
    assert missing_checkpoints(two) == {}  # a run that goes on names it itself
    (tmp_path / "summary.json").rename(two / "summary.json")
    assert list(missing_checkpoints(two)) == [best]
    assert missing_checkpoints(two, "latest") == {}


KEYS = ("max_checkpoints", "keep_best", "checkpoint_interval", "eval_interval")
KEPT = [(2, 0, 1, 1), (2, 1, 1, 2), (3, 2, 2, 1), (3, 0, 2, 0)]
ENDS = ["rises", "falls", "monitor", "collapses", "not finite", "fails", "goes on"]


def signed(split, step, micro):
    """Return a batch; the validation split wants weights of the other sign."""
    return torch.ones(2, 4), torch.full((2,), -1.0 if split == "val" else 1.0)


@pytest.mark.parametrize("how", ENDS)
def test_an_untouched_run_lacks_nothing(how, start):
    """However few checkpoints stay, whichever evaluation is the best, and however the run ends."""
    keys = {"learning_rate": 0.3, "max_steps": 5, "nan_patience": 1, "format": "E4M3"}
    keys |= {"monitor": "val_loss_float32", "monitor_mode": "max"} if how == "monitor" else {}
    calls = 0

    def loss(model, given):
        nonlocal calls
        calls += model.training
        value = (model(given[0])[:, 0] * (abs(given[1]) if how == "falls" else given[1])).mean()
        if how == "fails" and calls == 4:
            raise ValueError("as it was to")
        if how == "not finite" and calls == 4:
            model.bias.data.fill_(math.inf)
        return value * math.nan if how == "collapses" and calls >= 4 else value

    for number, kept in enumerate(KEPT):
        calls, name = 0, f"r{number}"
        with pytest.raises(AltcoreError, match="as it was to") if how == "fails" else nullcontext():
            given = start.config(name=name, **keys, **dict(zip(KEYS, kept, strict=True)))
            altcore.train(given, torch.nn.Linear(4, 1), signed, loss=loss)
        if how == "goes on":
            given = {"runs_dir": str(start.runs), "max_steps": 7}
            altcore.train(given, torch.nn.Linear(4, 1), signed, loss=loss, resume=name)
        assert missing_checkpoints(start.runs / name) == {}, kept


def test_the_path_is_absolute_and_of_one_choice(runs, capsys):
    """The newest valid one unless another is asked for."""
    latest = call(capsys, "checkpoints", "path", "a", "--runs-dir", runs).out.strip()
    assert latest == str(runs / "a/checkpoints/step-00000004")
    for options in (["--latest"], ["--name", "step-00000004"]):
        assert call(capsys, "checkpoints", "path", "a", "--runs-dir", runs, *options).out == (
            f"{latest}\n"
        )
    both = call(capsys, "checkpoints", "path", "a", "--runs-dir", runs, "--best", "--latest")
    assert both.code == 2
    assert "not several" in both.err


def test_no_script_gets_a_damaged_checkpoint(runs, capsys, tmp_path):
    """The best one is not read to be found."""
    shutil.copytree(runs / "a", tmp_path / "a")
    best = call(capsys, "checkpoints", "path", "a", "--runs-dir", tmp_path, "--best").out.strip()
    (Path(best) / "state.pt").write_bytes(b"")
    told = call(capsys, "checkpoints", "path", "a", "--runs-dir", tmp_path, "--best")
    assert (told.code, told.out) == (2, "")
    assert best in told.err


def test_export_writes_a_file_and_never_over_one(runs, capsys, tmp_path):
    """Of values unless told otherwise."""
    file = tmp_path / "w.safetensors"
    command = ("checkpoints", "export", "a", file, "--runs-dir", runs)
    assert call(capsys, *command, "--as", "codes").code == 0
    size = file.stat().st_size
    again = call(capsys, *command)
    assert again.code == 2
    assert "exists" in again.err
    assert file.stat().st_size == size


@pytest.mark.parametrize("fault", ["full", "pipe", "no folder"])
def test_an_export_that_cannot_be_written_is_named(fault, runs, capsys, tmp_path):
    """With the exit code of the reason; nothing is left, and a pipe is refused first."""
    file = tmp_path / "out/w.safetensors"
    if fault != "no folder":
        file.parent.mkdir()
    if fault == "pipe":
        os.mkfifo(file)
    with full_disk("bytes", 0) if fault == "full" else nullcontext():
        told = call(capsys, "checkpoints", "export", "a", file, "--runs-dir", runs)
    code, words = {
        "full": (3, f"no space left to write {file} ("),
        "pipe": (2, f"FILE: {file} is a pipe, and no file to write to"),
        "no folder": (2, f"{file}: cannot be written: No such file or directory"),
    }[fault]
    assert (told.code, words in told.err) == (code, True), told.err
    assert [p.is_fifo() for p in tmp_path.glob("out/*")] == [True] * (fault == "pipe")
