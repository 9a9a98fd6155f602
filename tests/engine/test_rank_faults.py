"""What goes wrong on one rank of two: both agree on it, or both end and say why."""

import math
import os
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import define
from helpers import PluginShelf, Starter, events, metrics_bytes, sha256, state, weights_sha256
from helpers_distributed import by_torchrun

from altcore import hookimpl, setting
from altcore.engine import prepare
from altcore.errors import AltcoreError, Interrupted, LostRank, PluginError
from altcore.plugin import ScaleLearningRate, SkipStep, Stop

HEARD = []
"""What the plugin saw in this process."""


@define(eq=False)
class Fault:
    """Does something in step 2 on rank 1 only, unless it is for all."""

    what: str = setting("", help="what it does")

    def is_now(self, run, step, *what):
        return (run.rank, step.index) == (1, 2) and self.what in what

    @hookimpl
    def pre_backward(self, run, step):
        if self.is_now(run, step, "nan", "skip"):
            step.loss = step.loss * math.nan
        if self.is_now(run, step, "quantizer"):
            step.loss.register_hook(lambda gradient: gradient * math.nan)
        if self.is_now(run, step, "loss scale"):
            step.loss_scale = 2.0
        if self.is_now(run, step, "raise"):
            raise ValueError("planted")
        if self.is_now(run, step, "signal"):
            os.kill(os.getpid(), signal.SIGTERM)
        if self.is_now(run, step, "kill") and "KILL_RANK_1" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.is_now(run, step, "stop"):
            return Stop(reason="planted")
        return None

    @hookimpl
    def pre_step(self, run, step):
        if self.is_now(run, step, "gradients"):
            for p in run.model.parameters():
                p.grad *= 2
        if self.what == "all scale" and step.index == 2:
            return ScaleLearningRate(factor=0.5, reason=f"planted on rank {run.rank}")
        if self.is_now(run, step, "scale"):
            return [ScaleLearningRate(factor=0.5, reason="slow"), SkipStep(reason="skip")]
        return None

    @hookimpl
    def on_nan(self, run, step, where):
        HEARD.append(("nan", step.index, where.what, where.rank))
        return SkipStep(counts=False, reason="planted") if self.is_now(run, step, "skip") else None

    @hookimpl
    def post_step(self, run, step):
        HEARD.append(("updated", step.index))
        if self.what == "spoil" and step.index == 2:
            with torch.no_grad():
                next(run.model.parameters()).fill_(math.nan)
        if self.is_now(run, step, "weights"):
            with torch.no_grad():
                next(run.model.parameters()).add_(1.0)


@define(eq=False)
class Broken:
    """A diagnostic that fails on rank 1."""

    @hookimpl
    def post_backward(self, run, step):
        if (run.rank, step.index) == (1, 2):
            raise ValueError("planted")
        HEARD.append(step.index)


def starter(rank, folder, corpus):
    """Return the `Starter` of a rank, with the plugin ``fault``."""
    site = Path(tempfile.mkdtemp(dir=folder))
    sys.path.insert(0, str(site))
    shelf = PluginShelf(site, pytest.MonkeyPatch())
    shelf.install("intervention", "fault", Fault)
    shelf.install("diagnostic", "broken", Broken)
    return Starter(folder / "runs", corpus)


OTHER = {
    "items": r"int64 \[2, 8\], .* on rank 0, int64 \[4, 8\], .* on rank 1",
    "values": r"int64 \[2, 8\], .* on rank 0, int64 \[2, 8\], .* on rank 1",
}
"""What the ranks draw in step 2, and what the error says."""


def drawn(what, split, step, micro):
    """Draw a batch that differs between the ranks."""
    is_other = os.environ["RANK"] == "1" and split == "train"
    is_other &= step == 2 or what == "at once"
    ids = torch.arange(36).view(4, 9)[: 4 if is_other and what == "items" else 2]
    return ids[:, :-1], ids[:, 1:] + (is_other and what != "items")


def agreed(rank, folder, corpus):
    start = starter(rank, folder, corpus)

    def run(what, **keys):
        HEARD.clear()
        name = what.replace(" ", "-")
        engine = start.engine(["fault"], fault__what=what, name=name, **keys)
        return engine, engine.run

    engine, one = run("nan")
    engine.train()
    # Before the optimizer, in the same step.
    assert HEARD == [("updated", 1), ("nan", 2, "loss", 1), ("updated", 3)]
    assert engine.history.discarded == 1

    if rank == 0:
        assert [event["rank"] for event in events(one.directory, "nan")] == [1]

    engine, one = run("quantizer", format="E4M3", recipe={"gradient": "FORMAT"})
    engine.train()
    assert ("nan", 2, "gradient", 1) in HEARD
    engine, one = run("spoil")
    engine.train()
    assert ("nan", 3, "weights", None) in HEARD, "which all ranks have"

    engine, one = run("skip")
    engine.train()
    assert engine.detector.nonfinite == 0
    assert ("updated", 2) not in HEARD

    engine, one = run("scale")
    engine.train()
    assert one.lr_scale == 0.5
    assert ("updated", 2) in HEARD
    if rank == 0:
        (verdict,) = events(one.directory, "verdict")
        assert verdict["chosen"] == [
            {"plugin": "fault", "action": "ScaleLearningRate", "factor": 0.5, "reason": "slow"}
        ]
        assert [x["action"] for x in verdict["refused"]] == ["SkipStep"]

    engine, one = run("all scale")  # Once, though each rank asks for it.
    engine.train()
    assert one.lr_scale == 0.5
    if rank == 0:
        assert events(one.directory, "verdict")[0]["refused"] == []

    engine, one = run("stop")
    assert engine.train()["status"] == "stopped"
    assert one.step == 2

    engine, one = run("signal")
    with pytest.raises(Interrupted, match="SIGTERM"):
        engine.train()
    assert one.step == 2
    assert state(one.directory)["step"] == 2

    for what in ("gradients", "loss scale"):
        engine, one = run(what)
        with pytest.raises(AltcoreError, match="gradients differ between the ranks"):
            engine.train()
        assert HEARD == [("updated", 1)]

    engine, one = run("weights", checkpoint_interval=2)
    with pytest.raises(AltcoreError, match=r"replicas differ: transformer\.\S+ is not the same"):
        engine.train()
    assert one.step == 2

    for name, what in OTHER.items():
        HEARD.clear()
        config = start.config(["fault"], name=name, format="none")
        engine = prepare(config, batch=partial(drawn, name))
        with pytest.raises(AltcoreError, match=rf"different micro-batches: {what}; each rank"):
            engine.train()
        assert HEARD == [("updated", 1)], "before the optimizer"
    with pytest.raises(AltcoreError, match="drew different micro-batches"):
        prepare(start.config(name="refused"), batch=partial(drawn, "at once"))
    assert not (folder / "runs" / "refused").exists()

    HEARD.clear()
    engine = start.engine(["broken"], name="degraded", max_steps=5, checkpoint_interval=3)
    assert engine.train()["degraded"] == ["broken"]
    assert HEARD == [1] if rank else [1, 2, 3], "disabled everywhere with the next checkpoint"

    engine, one = run("raise")
    expected = (
        r"^rank 1 failed: PluginError: .*planted.*; --resume" if rank == 0 else "fault.*planted"
    )
    with pytest.raises(PluginError if rank else LostRank, match=expected):
        engine.train()
    if rank == 0:
        assert "rank 1 failed" in events(one.directory, "end")[0]["error"]


@pytest.mark.slow
def test_ranks_agree_before_anyone_acts(tmp_path, corpus):
    """On what one rank alone met, asks for, was sent or did wrong."""
    by_torchrun(agreed, tmp_path, corpus)


RECIPE = {
    "weight": "FORMAT",
    "activation": {"format": "FORMAT", "scaling": "delayed", "rounding": "stochastic"},
    "stored_weight": {"format": "E8M7", "rounding": "stochastic"},
    "optimizer_state": {"format": "E8M7", "rounding": "stochastic"},
}
KEYS = {
    "format": "E4M3",
    "recipe": RECIPE,
    "gpt__dropout": 0.1,
    "gradient_accumulation_steps": 2,
    "checkpoint_interval": 1,
    "fault__what": "kill",
}


def killed(rank, folder, corpus):
    os.environ["KILL_RANK_1"] = "1"
    engine = starter(rank, folder, corpus).engine(["fault"], name="killed", **KEYS)
    began = time.monotonic()
    with pytest.raises(
        LostRank, match=r"^another process of the run is gone: .*; --resume"
    ) as lost:
        engine.train()
    assert "".join(traceback.format_exception(lost.value)).count("Traceback") == 1, "not gloo's"
    assert time.monotonic() - began < 30
    assert LostRank.exit_code == 1


def resumed(rank, folder, corpus):
    start = starter(rank, folder, corpus)
    start(["fault"], name="whole", **KEYS)
    start.resume("killed")


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_and_all_go_on(tmp_path, corpus):
    """Within 30 s; the resumed run has the bits of one that nobody interrupted."""
    by_torchrun(killed, tmp_path, corpus, codes=(0, -signal.SIGKILL))
    by_torchrun(resumed, tmp_path, corpus)
    one, other = (tmp_path / "runs" / name for name in ("killed", "whole"))
    assert events(one, "resume")[0]["checkpoint"] == "step-00000001"
    assert weights_sha256(one) == weights_sha256(other)
    assert metrics_bytes(one) == metrics_bytes(other)
    first, second = (state(run)["ranks"] for run in (one, other))
    drawn = [[sha256({"": rank["random"]["cpu"]}) for rank in ranks] for ranks in (first, second)]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1], "dropout is not the same on each rank"
