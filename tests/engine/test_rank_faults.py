"""What goes wrong on one rank of two: both agree on it, or both end and say why."""

import math
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from attrs import define
from helpers import PluginShelf, Starter, events, metrics_bytes, sha256, state, weights_sha256
from helpers_distributed import by_torchrun, torchruns_store
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import hookimpl, setting
from altcore.engine import buffer_forms, identity, prepare, resuming
from altcore.errors import AltcoreError, BadInput, Interrupted, LostRank, PluginError
from altcore.plugin import ScaleLearningRate, SkipStep, Stop

OF_ONE_RANK = 23
"""Faults that rank 1 makes alone, or that both make and only one of them may count."""
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
        if self.is_now(run, step, "buffer") or (self.what, step.index) == ("all scale", 2):
            run.model.register_buffer("late", torch.full((7,), run.rank), persistent=False)
        if self.is_now(run, step, "barrier"):
            torch.distributed.barrier()
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
    is_other = os.environ["RANK"] == "1" and split == ("val" if what == "in val" else "train")
    is_other &= step == 2 or what in ("at once", "in val")
    ids = torch.arange(36).view(4, 9)[: 4 if is_other and what == "items" else 2]
    return ids[:, :-1], ids[:, 1:] + (is_other and what != "items")


ALONE = {
    "frozen": r"model: weight \(float32 \[2, 2\], (trained|frozen)\) on rank ., weight .* on rank",
    "loss": r"loss: \w+, given from Python on rank ., \w+, given from Python on rank",
    "digest": "data: 000000000000 on rank 0, 111111111111 on rank 1",
}
"""What one rank alone is given, and what the error says."""


def a_loss(model, batch):
    return model(batch[0]).mean()


def b_loss(model, batch):
    return a_loss(model, batch)


def given(rank, what):
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(rank == 0)
    return {"frozen": {"model": model}, "loss": {"loss": (a_loss, b_loss)[rank]}}.get(what, {})


def known_by(rank, what, *_):
    return {"sha256": str(rank * (what == "digest")) * 64, "of": "workload"}


def agreed(rank, folder, corpus):
    start, made = starter(rank, folder, corpus), []
    buffer_forms.PATIENCE = 2.0

    def run(what, **keys):
        HEARD.clear()
        made.append(what)
        name = f"{len(made)}-{what}".replace(" ", "-")
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
    assert (one.lr_scale, one.model.late.tolist()) == (0.5, [0] * 7)
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
    with pytest.raises(
        AltcoreError, match=r"replicas differ: weight transformer\.\S+ is not the same"
    ):
        engine.train()
    assert one.step == 2

    torch.set_num_threads(1 + rank)
    engine, one = run("weights", checkpoint_interval=3)
    unlike = "not alike.*: threads: 1 on rank 0, 2 on rank 1"
    with pytest.raises(AltcoreError, match=f"replicas differ: weight .*, probably .* {unlike}"):
        engine.train()
    if rank == 0:
        assert any(re.search(unlike, e["message"]) for e in events(one.directory, "warning"))
    made.append("unlike")
    with pytest.raises(BadInput, match=f"^--strict: .* {unlike}"):
        start.engine(name="refused", strict=True)
    torch.set_num_threads(1)

    engine, _ = run("buffer")
    told = r"buffers of rank 1 changed, .*: late \(int64 \[7\]\)"
    with pytest.raises(AltcoreError if rank else LostRank, match=told):
        engine.train()

    for name, what in OTHER.items():
        HEARD.clear()
        made.append(name)
        config = start.config(["fault"], name=name, format="none")
        engine = prepare(config, batch=partial(drawn, name))
        with pytest.raises(AltcoreError, match=rf"different micro-batches: {what}; each rank"):
            engine.train()
        assert HEARD == [("updated", 1)], "before the optimizer"
    for what, told in ALONE.items():
        made.append(what)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(identity, "data_of", partial(known_by, rank, what))
            with pytest.raises(BadInput, match=told):
                prepare(start.config(name="refused"), **given(rank, what))
    for what in ("at once", "in val"):
        made.append(what)
        with pytest.raises(AltcoreError, match="drew different micro-batches"):
            prepare(start.config(name="refused"), batch=partial(drawn, what))
    assert not (folder / "runs" / "refused").exists()

    HEARD.clear()
    made.append("broken")
    engine = start.engine(["broken"], name="degraded", max_steps=5, checkpoint_interval=3)
    assert engine.train()["degraded"] == ["broken"]
    assert HEARD == [1] if rank else [1, 2, 3], "disabled everywhere with the next checkpoint"
    if rank == 0:
        told = events(start.runs / "degraded", "degraded")[0]["message"]
        assert told.startswith("on rank 1 diagnostic broken (")
        assert told.endswith("planted")

    engine, one = run("raise")
    expected = (
        r"^rank 1 failed: PluginError: .*planted.*; --resume" if rank == 0 else "fault.*planted"
    )
    with pytest.raises(PluginError if rank else LostRank, match=expected):
        engine.train()
    if rank == 0:
        assert "rank 1 failed" in events(one.directory, "end")[0]["error"]
    assert len(made) == OF_ONE_RANK


@pytest.mark.slow
@pytest.mark.faults(OF_ONE_RANK)
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
    told = r"^rank 1 \(process \d+\) is gone: .*; --resume"
    with pytest.raises(LostRank, match=told) as lost:
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
    """Within 30 s; the resumed run has the bits of one that nobody interrupted.

    torchrun may begin anew with the store in which the addresses of the dead are.
    """
    store = torchruns_store()
    by_torchrun(killed, tmp_path, corpus, codes=(0, -signal.SIGKILL), store=store)
    by_torchrun(resumed, tmp_path, corpus, store=store, restarts=1)
    one, other = (tmp_path / "runs" / name for name in ("killed", "whole"))
    assert events(one, "resume")[0]["checkpoint"] == "step-00000001"
    assert weights_sha256(one) == weights_sha256(other)
    assert metrics_bytes(one) == metrics_bytes(other)
    first, second = (state(run)["ranks"] for run in (one, other))
    drawn = [[sha256({"": rank["random"]["cpu"]}) for rank in ranks] for ranks in (first, second)]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1], "dropout is not the same on each rank"


def waiting(rank, folder, corpus):
    keys = {"fault__what": "barrier", "rank_timeout": 3, "hook_timeout": 1}
    engine, began = starter(rank, folder, corpus).engine(["fault"], **keys), time.monotonic()
    with capture_logs() as logs, pytest.raises((LostRank, PluginError)):
        engine.train()
    assert time.monotonic() - began < 30
    doing = "fault (.*) has been in pre_backward" if rank else "the model has been in its backward"
    assert any(re.search(doing, line["event"]) for line in logs)


@pytest.mark.slow
def test_a_rank_waits_for_another_as_long_as_it_is_told(tmp_path, corpus):
    """It says where it waits for a message that the other never sends."""
    by_torchrun(waiting, tmp_path, corpus)


def as_two(rank, folder, corpus):
    start = Starter(folder / "runs", corpus)
    start(name="two", **GROWING)
    with pytest.raises(BadInput, match="world_size was 1 and is 2: --allow-change world_size"):
        start.resume("one", max_steps=4)
    go_on(start, "one")


def go_on(start, name):
    """Resume as another number of processes."""
    config = resuming.resumed(name, str(start.runs), max_steps=4)
    altcore.train(config, resume=name, allow_change=["world_size"])


GROWING = {"max_steps": 2, "schedule": "constant", "gpt__dropout": 0.0, "format": "none"}


@pytest.mark.slow
def test_a_run_goes_on_as_another_number_of_processes_if_that_is_allowed(tmp_path, corpus):
    """One as two and two as one: recorded, and within rounding of the run that nobody changed."""
    start = Starter(tmp_path / "runs", corpus)
    start(name="one", **GROWING)
    by_torchrun(as_two, tmp_path, corpus)
    with pytest.raises(BadInput, match="world_size was 2 and is 1: --allow-change world_size"):
        start.resume("two", max_steps=4)
    go_on(start, "two")
    whole = start(name="whole", **{**GROWING, "max_steps": 4}).run_directory
    for name, before, now in (("one", 1, 2), ("two", 2, 1)):
        run = start.runs / name
        (event,) = events(run, "resume")
        change, _ = event["changes"]  # and the steps
        assert (change["what"], change["before"], change["now"]) == ("world_size", before, now)
        held = yaml.safe_load((run / "config.yaml").read_text())["changes"]
        assert [(c["step"], c["what"]) for c in held] == [(2, "world_size")]
        assert [len(state(run, f"step-0000000{n}")["ranks"]) for n in (2, 4)] == [before, now]
        for key, weight in state(whole)["model"].items():
            torch.testing.assert_close(state(run)["model"][key], weight, rtol=1e-4, atol=1e-5)
