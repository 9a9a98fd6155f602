"""Diagnostics on models as people write them: none is disturbed, and none misleads."""

import random
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import state
from torch import nn
from torch.nn.utils import parametrizations

import altcore
from altcore.config import TrainConfig
from altcore.engine import Run, Step, random_state
from altcore.engine.randomness import seed_all, set_random_state
from altcore.hooks import step_settings
from altcore.registry import entries
from altcore_diagnostics.shadow import Shadow

DIAGNOSTICS = {e.name: e.load() for e in entries() if e.kind == "diagnostic"}
NAMES = sorted(DIAGNOSTICS)
RECIPE = {"weight": "E4M3", "activation": "E4M3", "gradient": "E5M2"}
WIDTH = 8


class Plain(nn.Module):
    """Three layers; what the others do besides is in ``before``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def before(self, x):
        return x

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(self.before(x))))))


class NewBuffer(Plain):
    """Puts a new tensor in its buffer's place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def before(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean


class LateBuffer(Plain):
    """Makes a buffer when it needs one."""

    def before(self, x):
        if not hasattr(self, "calls"):
            self.register_buffer("calls", torch.zeros(()))
        self.calls = self.calls + 1
        return x * (1 + 0.01 * self.calls)


class PythonNoise(Plain):
    def before(self, x):
        return x * random.uniform(0.5, 1.5)


class NumpyNoise(Plain):
    def before(self, x):
        return x * float(np.random.uniform(0.5, 1.5))


class Writes(Plain):
    """Writes to its batch."""

    def before(self, x):
        return x.sub_(0.5).div_(0.25)


class WritesNot(Plain):
    """Does the same without."""

    def before(self, x):
        return (x - 0.5) / 0.25


class Computed(Plain):
    """Has weights that are computed, and state that computing them moves on."""

    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.first)
        parametrizations.spectral_norm(self.second)


class Hooked(Plain):
    """Halves a gradient on its way, and another one at its end."""

    def __init__(self):
        super().__init__()
        self.first.weight.register_hook(lambda g: g / 2)

        def halve(p):
            p.grad /= 2

        self.second.weight.register_post_accumulate_grad_hook(halve)


def regression(split, step, micro):
    draw = torch.Generator().manual_seed(1000 * step + micro)
    x = torch.randn(16, WIDTH, generator=draw)
    return x, x.roll(1, -1).square()


def double(split, step, micro):
    return tuple(t.double() for t in regression(split, step, micro))


def train(tmp_path, name, model, plugins, data=regression, **keys):
    """A run of two steps, watched on each."""
    intervals = {p: [n for n in step_settings(DIAGNOSTICS[p]) if "interval" in n] for p in plugins}
    due = {f"{p}.{name}": 1 for p, names in intervals.items() for name in names}
    given = {
        "runs_dir": str(tmp_path),
        "name": name,
        "recipe": RECIPE,
        "max_steps": 2,
        "eval_interval": 0,
        "checkpoint_interval": 0,
        "device": "cpu",
        "plugins": plugins,
        **due,
        **({"curvature.samples": 2} if "curvature" in plugins else {}),
        **keys,
    }
    return altcore.train(given, model=model, data=data)


MODELS = [Plain, NewBuffer, LateBuffer, PythonNoise, NumpyNoise, Writes, Computed, Hooked]


def models():
    """Each model, one of two with accumulation; the rest is for `make test-exhaustive`."""
    for i, cls in enumerate(MODELS):
        for accumulation in (1, 2):
            marks = [] if i % 2 == accumulation - 1 else [pytest.mark.exhaustive]
            yield pytest.param(cls, accumulation, marks=marks, id=f"{cls.__name__}-{accumulation}")


@pytest.mark.parametrize(("cls", "accumulation"), models())
def test_no_model_notices(tmp_path, cls, accumulation):
    """Weights, buffers, losses and random states are those of a run that nobody watched."""
    keys = {"gradient_accumulation_steps": accumulation}
    plain = train(tmp_path, "plain", cls(), [], **keys)
    watched = train(tmp_path, "watched", cls(), NAMES, **keys)
    assert watched.summary["degraded"] == []
    assert watched.final_loss == plain.final_loss
    ends = [state(run.run_directory) for run in (plain, watched)]
    for key, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][key]), key
    for key in ("python", "numpy"):
        assert ends[0]["ranks"][0]["random"][key] == ends[1]["ranks"][0]["random"][key]


def shadow(tmp_path, name, model, **keys):
    """The first measures of ``shadow`` and ``noise-floor``."""
    result = train(tmp_path, name, model, ["shadow", "noise-floor"], max_steps=1, **keys)
    line = result.diagnostics_history[0]
    return {k: v for k, v in line.items() if k.startswith(("shadow/", "noise-floor/"))}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_model_may_write_to_its_batch(tmp_path, accumulation):
    """Every pass begins with the batch as it was drawn."""
    keys = {"gradient_accumulation_steps": accumulation}
    found = [shadow(tmp_path, cls.__name__, cls(), **keys) for cls in (Writes, WritesNot)]
    assert found[0] == found[1]
    assert found[0]["shadow/cosine_min"] > 0.9


def test_gradient_hooks_are_no_quantization_error(tmp_path):
    """They are in both gradients or in none, however the quantized one was come by."""
    plain = shadow(tmp_path, "plain", Plain())
    hooked = shadow(tmp_path, "hooked", Hooked())
    of_layers = {key: value for key, value in plain.items() if key.count("/") > 1}
    assert {k: hooked[k] for k in of_layers} == pytest.approx(of_layers, rel=1e-5)


def test_a_buffer_that_was_replaced_is_put_back(tmp_path):
    """The two passes of a step begin with the same one."""
    found, plain = (shadow(tmp_path, cls.__name__, cls()) for cls in (NewBuffer, Plain))
    assert found["shadow/cosine_min"] > 0.99
    assert abs(found["shadow/loss_gap"]) < 2 * abs(plain["shadow/loss_gap"])


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("kind", [tuple, list, Pair, dict], ids=lambda k: k.__name__)
def test_batches_of_many_kinds_are_kept(tmp_path, kind):
    """Tensors of tuples, lists, named tuples and mappings."""

    def data(split, step, micro):
        x, y = regression(split, step, micro)
        if kind is dict:
            return {"x": x, "y": y}
        return Pair(x, y) if kind is Pair else kind((x, y))

    class Loss(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, batch):
            x, y = batch.values() if isinstance(batch, dict) else batch
            return (self.inner(x) - y).square().mean()

    found = []
    for cls in (Writes, WritesNot):
        run = SimpleNamespace(
            config=TrainConfig(device="cpu"),
            device=torch.device("cpu"),
            model=Loss(cls()),
            workload=SimpleNamespace(loss=lambda model, batch: model(batch)),
        )
        run.quantization = altcore.quantize_model(run.model, RECIPE)
        run.autocast = nullcontext
        run.probe = lambda run=run: Run.probe(run)
        run.loss = lambda batch, run=run: Run.loss(run, batch)
        step, plugin = Step(1, batch=data("train", 1, 0)), Shadow()
        with plugin.watch_forward(run, step):
            step.loss = run.workload.loss(run.model, step.batch)
        step.loss.backward()
        found.append({k: float(v) for k, v in plugin.post_backward(run, step).items()})
    assert found[0] == found[1]


def test_float64_weights_are_left_as_they_are(tmp_path):
    """What one diagnostic measures is what it measures beside others."""
    names = ["grad-stiffness", "stiffness", "grid-alignment"]
    lines = []
    for plugins in (names, ["stiffness"]):
        result = train(tmp_path, plugins[0], Plain().double(), plugins, data=double)
        lines.append(result.diagnostics_history[0])
    own = {k: v for k, v in lines[1].items() if k.startswith("stiffness/")}
    assert own
    assert {k: lines[0][k] for k in own} == own


def test_a_model_with_nothing_to_train_but_vectors(tmp_path):
    """Outputs and losses are compared all the same."""
    model = Plain()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() < 2)
    result = train(tmp_path, "vectors", model, ["shadow", "noise-floor"])
    assert result.summary["degraded"] == []
    assert result.diagnostics_history[0]["shadow/injected_max"] > 0


def test_an_error_of_one_is_not_another_ones(tmp_path, monkeypatch):
    """Those who look at the same passes are not disabled along."""

    def fail(self, value):
        raise ValueError("of shadow")

    monkeypatch.setattr("altcore_diagnostics.shadow.LayerErrors._kept", fail)
    result = train(tmp_path, "broken", Plain(), ["shadow", "noise-floor"])
    assert result.summary["degraded"] == ["shadow"]
    assert "noise-floor/ratio" in result.diagnostics_history[-1]


def test_a_probe_of_a_scripted_module():
    """Its buffers cannot be replaced; everything is put back."""
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.BatchNorm1d(4)))
    run = SimpleNamespace(model=model, device=torch.device("cpu"))
    run.quantization = altcore.quantize_model(model, {"weight": "E4M3"})
    mean, random_before = model[1].running_mean.clone(), torch.get_rng_state()
    with Run.probe(run):
        model(torch.randn(8, 4))
        assert not torch.equal(model[1].running_mean, mean)
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), random_before)


def test_a_buffer_made_in_a_probe_is_gone_after_it():
    model = LateBuffer()
    run = SimpleNamespace(model=model, device=torch.device("cpu"))
    run.quantization = altcore.quantize_model(model, RECIPE)
    with Run.probe(run):
        model(torch.randn(2, WIDTH))
    assert not hasattr(model, "calls")


def test_another_generator_of_numpys_is_left_alone(monkeypatch):
    legacy = np.random.get_state(legacy=False)
    monkeypatch.setattr(np.random, "get_state", lambda legacy: {"bit_generator": "PCG64"})
    assert "numpy" not in random_state(torch.device("cpu"))
    seed_all(0)
    assert legacy["bit_generator"] == "MT19937"


def test_numpy_that_is_not_there_is_no_matter(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    before = random_state(torch.device("cpu"))
    assert "numpy" not in before
    value = random.random()
    set_random_state(before, torch.device("cpu"))
    assert random.random() == value
