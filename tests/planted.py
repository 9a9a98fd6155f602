"""Planted failures: a workload and plugins with which a tiny run breaks, for tests of rescue."""

import math
import zlib

import pytest
import torch
from attrs import define, field
from helpers import events, metrics_bytes, state
from torch import nn

from altcore import hookimpl, setting
from altcore.errors import PluginError


def unscaled(name, **more):
    """A cast without a scale."""
    return {"format": name, "scaling": "none", **more}


# ---------------------------------------------------------------------------- a workload


@define(eq=False)
class Regression:
    """Three linear layers without biases learn a linear map of 16 numbers."""

    batch: int = setting(64, help="samples in a batch")
    outlier: float = setting(0.0, help="first number of the first sample, which has no loss")
    loss_factor: float = setting(1.0, help="unit of the loss")
    glitch: int = setting(0, help="step whose batch is a million times too large")

    def build(self, seed, device):
        """Return model, data and loss."""
        target = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)) / 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(i, o, bias=False) for i, o in ((16, 32), (32, 32), (32, 16))]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        return BuiltRegression(model, target, self, seed)


@define(eq=False)
class BuiltRegression:
    model: nn.Module
    target: torch.Tensor
    settings: Regression
    seed: int
    items_per_batch: int = 64
    item: str = "samples"
    facts: dict = field(factory=dict)

    def batch(self, split, step, micro):
        """A pure function of seed, split, step and micro-batch."""
        s, key = self.settings, f"{self.seed}/{split}/{step}/{micro}"
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        x = torch.randn(s.batch, 16, generator=generator)
        y = x @ self.target
        if s.outlier:
            x[0, 0] = s.outlier
        factor = 1e6 if split == "train" and step == s.glitch else 1.0
        return x * factor, y * factor

    def loss(self, model, batch):
        """The mean squared error."""
        error = model(batch[0]) - batch[1]
        error = error[1:] if self.settings.outlier else error
        return error.square().mean() * self.settings.loss_factor


# ------------------------------------------------------------------------------- faults


@define(eq=False)
class NanGradients:
    """Some steps in a row have a NaN in the gradient."""

    at: int = setting(10, help="the first of them")
    count: int = setting(12, help="how many")

    @hookimpl
    def pre_step(self, run, step):
        if self.at <= step.index < self.at + self.count:
            next(iter(run.model.parameters())).grad.fill_(math.nan)


@define(eq=False)
class NanWeight:
    """A weight is NaN from some step on."""

    at: int = setting(15, help="the step")

    @hookimpl
    @torch.no_grad()
    def post_step(self, run, step):
        if step.index == self.at:
            next(iter(run.model.parameters())).fill_(math.nan)


@define(eq=False)
class RateSpike:
    """One step has a learning rate a thousand times too large."""

    at: int = setting(15, help="the step")

    @hookimpl
    def pre_step(self, run, step):
        if step.index == self.at:
            for group in run.optimizer.param_groups:
                group["lr"] *= 1e3


@define(eq=False)
class LossSpike:
    """One step has ten times the loss and 100,000 times the gradient."""

    at: int = setting(30, help="the step")

    @hookimpl
    def pre_backward(self, step):
        if step.index == self.at:
            step.loss = 10 * step.loss + 1e5 * (step.loss - step.loss.detach())


@define(eq=False)
class LargeActivations:
    """The first layer of each MLP begins with weights that are too large."""

    factor: float = setting(3000.0, help="times")

    @hookimpl
    @torch.no_grad()
    def run_start(self, run):
        for name, parameter in run.model.named_parameters():
            if run.step == 0 and name.endswith(("c_fc.weight", "0.weight")):
                parameter.mul_(self.factor)


@define(eq=False)
class Crash:
    """Raises after one step, the first time that it is met."""

    at: int = setting(6, help="the step")

    @hookimpl
    def post_backward(self, run, step):
        mark = run.directory / "crashed"
        if step.index == self.at and not mark.exists():
            mark.touch()
            raise RuntimeError("planted")


FAULTS = {
    "nan-gradients": NanGradients,
    "nan-weight": NanWeight,
    "rate-spike": RateSpike,
    "loss-spike": LossSpike,
    "large-activations": LargeActivations,
    "crash": Crash,
}


def plant(shelf, *names):
    """Install faults, or the workload ``regression``, by name."""
    for name in names:
        if name == "regression":
            shelf.install("workload", name, Regression)
        else:
            shelf.install("intervention", name, FAULTS[name])


def last_loss(result, count=5):
    """The mean loss of a run's last steps."""
    losses = [line["loss"] for line in result.metrics_history[-count:]]
    return sum(losses) / len(losses)


def check_resumes_alike(shelf, start, plugins, **keys):
    """Train with a crash, resume, and compare with a run that did not crash; returns that."""
    plant(shelf, "crash")
    keys = {"checkpoint_interval": 4, "max_steps": 12, **keys}
    whole = start(plugins, name="whole", **keys)
    with pytest.raises(PluginError, match="planted"):
        start([*plugins, "crash"], name="r", **keys)
    resumed = start.resume("r")
    assert events(resumed.run_directory, "resume")
    assert metrics_bytes(resumed.run_directory) == metrics_bytes(whole.run_directory)
    check_same(*(state(r.run_directory) for r in (resumed, whole)), ("model", "optimizer"))
    states = [state(r.run_directory)["ranks"][0]["plugins"] for r in (resumed, whole)]
    check_same(*({k: s[k] for k in s if k in plugins} for s in states))
    return whole


def check_same(one, other, keys=None):
    """Assert that two states are the same, to the bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in keys or one:
            check_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            check_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7))
    else:
        assert one == other
