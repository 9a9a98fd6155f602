"""A run whose directory is removed or moved, or whose process goes elsewhere."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from attrs import define
from helpers import checkpoints, events, state, weights_sha256
from helpers_cli import TINY, call
from helpers_crashes import ended, forked_command
from helpers_plugins import acting, make

from altcore import hookimpl, train
from altcore.errors import AltcoreError, BadInput
from altcore.runs import altered, read_lines, summary_of
from altcore_workloads.gpt import Gpt


def move(path):
    """Move the directory."""
    path.rename(path.with_name("elsewhere"))


def replace(path):
    """Remove the directory, and make another one of its name."""
    shutil.rmtree(path)
    (path / "checkpoints").mkdir(parents=True)


@pytest.mark.parametrize("lose", [shutil.rmtree, replace])
def test_a_removed_directory_is_an_error_that_loses_no_state(shelf, start, lose):
    """The state and all lines are saved in a new directory, from which the run goes on."""
    acting(shelf, lose)
    lost = r"directory .*/r was removed, and with it every checkpoint and report; the state "
    with pytest.raises(
        AltcoreError, match=lost + "after step 4 is saved in .*/r-rescued: --resume"
    ):
        start(["acts"], name="r", max_steps=6, checkpoint_interval=2)
    assert summary_of(start.runs / "r-rescued")["status"] == "failed"
    assert state(start.runs / "r-rescued", "step-00000004")["step"] == 4
    assert (start.runs / "r-rescued/environment.json").exists()
    assert altered(start.runs / "r-rescued") == {}
    start.resume("r-rescued")
    lines = read_lines(start.runs / "r-rescued/metrics.jsonl")
    assert [line["step"] for line in lines if "val_loss" not in line] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in events(start.runs / "r-rescued", "start")] == [0]
    plain = start(name="plain", max_steps=6)
    assert weights_sha256(start.runs / "r-rescued") == weights_sha256(plain.run_directory)


@pytest.mark.parametrize("on", [1, 3])
def test_a_moved_directory_is_named_with_its_place(shelf, start, on):
    """The checkpoint is written there, and all that the run wrote is still there.

    In step 1 no line is written to metrics.jsonl yet.
    """
    acting(shelf, move, on)
    with pytest.raises(AltcoreError, match=r"was moved to .*/elsewhere; the state after step 4"):
        start(["acts"], name="r", max_steps=6, checkpoint_interval=4)
    assert not (start.runs / "r").exists()
    assert checkpoints(start.runs / "elsewhere")[-1] == "step-00000004"
    (start.runs / "elsewhere").rename(start.runs / "r")
    assert start.resume("r").summary["steps"] == 6


@pytest.mark.parametrize("lose", [shutil.rmtree, replace, move])
@pytest.mark.parametrize(("hook", "step"), [("run_start", 0), ("findings", 2), ("run_end", 2)])
def test_a_directory_lost_before_or_after_the_steps_loses_no_state(shelf, start, hook, step, lose):
    """The same error says so, and the run goes on from where its state is."""

    def act(self, run):
        if run.directory.name == "r" and not (start.runs / "was-here").exists():
            (start.runs / "was-here").touch()
            lose(run.directory)

    def measure(self, step):
        return {"index": step.index}  # who measured is asked for findings

    act.__name__, measure.__name__ = hook, "post_step"
    hooks = {hook: hookimpl(act), "post_step": hookimpl(measure)}
    shelf.install("diagnostic", "acts", define(eq=False)(type("Acts", (), hooks)))
    with pytest.raises(AltcoreError, match=f"the state after step {step} is saved in"):
        start(["acts"], name="r", max_steps=2)
    kept = start.runs / ("elsewhere" if lose is move else "r-rescued")
    assert summary_of(kept)["status"] == "failed"
    start.resume(kept.name)
    plain = start(name="plain", max_steps=2)
    assert weights_sha256(kept) == weights_sha256(plain.run_directory)


@pytest.mark.parametrize("when", ["hook", "made"])
def test_a_plugin_that_changes_the_working_directory_moves_no_run(
    shelf, start, corpus, tmp_path, monkeypatch, when
):
    """Relative paths of the configuration start where the run did."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text(corpus.read_text())

    def leave(self):
        os.chdir("/")

    @define(eq=False)
    class Leaves:
        def __attrs_post_init__(self):
            os.chdir("/")

    cls = make({"run_start": leave}) if when == "hook" else Leaves
    shelf.install("intervention", "leaves", cls)
    result = start(["leaves"], runs_dir="mine", gpt__data="words.txt", name="r")
    assert result.run_directory == tmp_path / "mine/r"
    assert (tmp_path / "mine/r/summary.json").exists()
    assert not Path("/mine").exists()


def test_data_and_workloads_that_change_the_working_directory_move_no_run(
    shelf, corpus, tmp_path, monkeypatch, capsys
):
    """A relative ``runs_dir`` starts where the process was before any of them was called."""
    (away := tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path)

    def batch(split, seed, index):
        os.chdir(away)
        return torch.ones(2, 4)

    keys = {"max_steps": 2, "format": "none", "runs_dir": "mine", "plugins": [], "name": "own"}

    def loss(model, x):
        return model(x).square().mean()

    given = {"model": torch.nn.Linear(4, 4), "data": batch, "loss": loss}
    assert train(keys, **given).run_directory == tmp_path / "mine/own"
    train({"runs_dir": "mine", "max_steps": 3}, resume="own", **given)

    @define
    class Moves(Gpt):
        def build(self, seed, device):
            os.chdir(away)
            return super().build(seed, device)

    shelf.install("workload", "moves", Moves)
    tiny = ("size=tiny", "n_layer=1", "n_embd=8", "n_head=2", "batch_size=2", "block_size=8")
    sets = [f"moves.{x}" for x in (*tiny, f"data={corpus}")] + ["workload=moves", "runs_dir=mine"]
    words = [word for x in sets for word in ("--set", x)]
    outcome = call(capsys, "train", "--steps", "1", "--name", "command", *words)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "mine/command/summary.json").exists()
    assert not list(away.iterdir())


def test_a_plugin_that_closes_every_descriptor_is_named_without_a_traceback(
    shelf, tmp_path, corpus
):
    """With the files that were lost; the thread that watches finds its pipe closed, too."""

    def close_all(path):
        os.closerange(3, 1000)
        time.sleep(0.3)

    acting(shelf, close_all)
    arguments = ["train", *TINY, "--data", str(corpus), "--steps", "4", "--name", "r"]
    with (tmp_path / "err").open("w") as err:
        given = [*arguments, "--plugin", "acts", "--set", "hook_timeout=0.2"]
        child = forked_command(tmp_path, given, err)
        assert ended(child) == 1
    said = (tmp_path / "err").read_text()
    assert "Traceback" not in said
    told = said.splitlines()[-1]
    assert f"{tmp_path}/runs/r/events.jsonl" in told
    assert "closed by other code in this process, in pre_step of intervention acts" in told


def test_a_link_in_the_place_of_the_checkpoints_is_not_followed(shelf, start, tmp_path):
    """Nothing is written or removed in the folder that it leads to."""

    def link(path):
        (path / "checkpoints").rename(tmp_path / "stolen")
        (path / "checkpoints").symlink_to(tmp_path / "stolen")

    acting(shelf, link)
    with pytest.raises(BadInput, match="checkpoints is a symbolic link"):
        start(["acts"], name="r", max_steps=6, checkpoint_interval=2)
    assert checkpoints(start.runs / "r")[-1] == "step-00000002"


@pytest.mark.parametrize("file", ["config.yaml", "environment.json"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (Path.unlink, "was removed while the run wrote, and is written again"),
        (lambda file: file.write_text("seed: 1\n"), "was changed while the run wrote: it is put"),
        (lambda file: file.unlink() or file.mkdir(), "was changed while the run wrote: it is put"),
    ],
)
def test_a_file_that_is_changed_is_put_back_and_named(shelf, start, file, harm, told):
    """At the next checkpoint; what was there is kept aside. The run goes on."""
    before = []
    acting(shelf, lambda path: before.append((path / file).read_bytes()) or harm(path / file))
    run = start(["acts"], name="r", max_steps=4, checkpoint_interval=2).run_directory
    assert [(run / file).read_bytes()] == before
    (event,) = (e for e in events(run, "warning") if file in e["message"])
    assert (event["step"], told in event["message"]) == (4, True)
    assert (run / f"{file}.damaged").exists() == ("changed" in told)
