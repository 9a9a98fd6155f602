"""A run that goes on from step 0 begins with the weights with which it began."""

from typing import ClassVar

import pytest
import torch
from attrs import define
from helpers import checkpoints, events, metrics_bytes
from structlog.testing import capture_logs

import altcore
from altcore import BadInput, hookimpl
from altcore.engine import resuming
from altcore.errors import PluginError
from altcore.runs import checkpoint
from altcore_workloads.gpt import Gpt


@define(eq=False)
class Drawn(Gpt):
    """Builds weights or a buffer of which a part is not the seed's."""

    odd: ClassVar[str] = "weight"
    last: ClassVar[float] = 0.0

    def build(self, seed, device):
        built = super().build(seed, device)
        Drawn.last += 0.01
        with torch.no_grad():
            if self.odd == "weight":
                built.model.transformer.wpe.weight += self.last
        if self.odd == "buffer":
            built.model.register_buffer("shift", torch.tensor(self.last), persistent=False)
        return built


@define(eq=False)
class Crashing:
    """Ends the first run in its first step."""

    left: ClassVar[int] = 1

    @hookimpl
    def pre_step(self, run, step):
        if Crashing.left:
            Crashing.left = 0
            raise RuntimeError


@pytest.fixture
def killed(shelf, start, monkeypatch):
    """Return a maker of a run that was killed in its first step."""

    def make(odd, **keys):
        monkeypatch.setattr(Drawn, "odd", odd)
        monkeypatch.setattr(Crashing, "left", 1)
        own = {f"drawn.{k}": v for k, v in start.config().settings["gpt"].items()}
        with pytest.raises(PluginError):
            start(["crashing"], name="r", workload="drawn", **own, **keys)
        assert checkpoints(start.runs / "r") == ["step-00000000"]
        return start.runs / "r"

    shelf.install("workload", "drawn", Drawn)
    shelf.install("intervention", "crashing", Crashing)
    return make


@pytest.mark.parametrize("odd", ["weight", "buffer"])
def test_weights_that_the_seed_does_not_give_are_refused(killed, start, odd):
    """Nothing else would tell: the losses would be of another run. By name they are allowed."""
    run = killed(odd)
    before = metrics_bytes(run), (run / "events.jsonl").read_bytes()
    with pytest.raises(BadInput, match=r"initial_weights was \w+ and is .*under another --name"):
        start.resume("r")
    assert (metrics_bytes(run), (run / "events.jsonl").read_bytes()) == before
    with capture_logs() as logs:
        altcore.load(run, "step-00000000")
    assert any("not the weights that the run began with" in line["event"] for line in logs)
    config = resuming.resumed("r", str(start.runs))
    result = altcore.train(config, resume="r", allow_change=["initial-weights"])
    assert result.summary["changes"][0]["what"] == "initial_weights"


def test_weights_of_the_seed_go_on_and_need_no_record(killed, start):
    """An earlier altcore wrote none."""
    run = killed("none")
    with capture_logs() as logs:
        altcore.load(run, "step-00000000")
    assert not [line for line in logs if "weights" in line["event"]]
    found = checkpoint.load_checkpoint(run / "checkpoints/step-00000000")
    assert len(found.manifest.pop("initial_weights")) == 64
    checkpoint.save_checkpoint(run / "checkpoints", None, found.manifest)
    assert start.resume("r").steps_completed == 3


def test_weights_may_be_others_on_another_platform(killed, start):
    """The run goes on, as it does with other versions, and says that the bits may differ."""
    run = killed("weight")
    found = checkpoint.load_checkpoint(run / "checkpoints/step-00000000")
    found.manifest["identity"]["platform"]["torch"] = "1.0"
    checkpoint.save_checkpoint(run / "checkpoints", None, found.manifest)
    assert start.resume("r").steps_completed == 3
    told = [event["message"] for event in events(run, "warning")]
    assert any("torch was 1.0" in text and "initial_weights was" in text for text in told)
