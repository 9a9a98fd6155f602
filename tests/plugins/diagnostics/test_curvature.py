"""The diagnostic ``curvature``, against the exact Hessian of the unquantized loss."""

import importlib.util
from collections import namedtuple

import pytest
import torch
from attrs import define, field
from helpers import events, state
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from altcore import setting
from altcore.errors import BadInput
from altcore_diagnostics import curvature
from altcore_diagnostics.curvature import Curvature, first_items


@define(eq=False)
class Small:
    """A classifier of 24 rows a batch, small enough for its whole Hessian."""

    kind: str = setting("plain", help="plain, restless (with noise), still, frozen or sharp")

    def build(self, seed, device):
        return BuiltSmall(self.kind)


@define(eq=False)
class BuiltSmall:
    kind: str
    items_per_batch: int = 24
    item: str = "rows"
    facts: dict = field(factory=dict)
    model: nn.Module = field(init=False)
    asked: list = field(init=False, factory=list)

    def __attrs_post_init__(self):
        torch.manual_seed(0)
        restless = [nn.BatchNorm1d(8), nn.Dropout(0.3)] if self.kind == "restless" else []
        self.model = nn.Sequential(nn.Linear(6, 8), *restless, nn.Tanh(), nn.Linear(8, 4))
        self.model.requires_grad_(self.kind != "frozen")
        ASKED.append(self.asked)

    def batch(self, split, step, micro):
        self.asked.append((split, step, micro))
        g = torch.Generator().manual_seed(0 if self.kind == "still" else step)
        return torch.randn(24, 6, generator=g), torch.randint(0, 4, (24,), generator=g)

    def loss(self, model, batch):
        x, y = batch
        loss = functional.cross_entropy(model(x), y)
        if self.kind == "sharp":  # no slope, but an infinite curvature, wherever the bias is
            bias = model[-1].bias
            loss = loss + (bias - bias.detach()).abs().pow(1.5).sum()
        return loss


ASKED = []
"""The batches that each of the workloads was asked for."""


@pytest.fixture
def train(start, shelf):
    """Return a function that trains a `Small` model, watched on each step."""
    shelf.install("workload", "small", Small)

    def run(kind="plain", plugins=("curvature",), resume=None, **keys):
        given = {"workload": "small", "small__kind": kind, "strict": True, "max_steps": 2}
        given |= {"curvature__interval": 1, "curvature__samples": 10} if plugins else {}
        return start(list(plugins), **{**given, **keys})

    run.resume = start.resume
    return run


def exact(items=24):
    """The Hessian at the first weights, of the first items of the first batch."""
    built = BuiltSmall("plain")
    x, y = first_items(built.batch("train", 1, 0), items)
    named = dict(built.model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss_at(flat):
        parts = zip(named.items(), flat.split(sizes), strict=True)
        given = {name: part.view_as(p) for (name, p), part in parts}
        return functional.cross_entropy(functional_call(built.model, given, x), y)

    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return jacrev(jacrev(loss_at))(flat)


@pytest.mark.parametrize("keys", [{}, {"format": "E3M2", "recipe": "master"}])
def test_against_the_exact_hessian(train, keys):
    """Of the weights unquantized, in a quantized run as well; the trace within four errors."""
    settings = {"curvature__tolerance": 1e-4, "curvature__items": 24, "curvature__samples": 100}
    line = train(max_steps=1, **keys, **settings).diagnostics_history[0]
    hessian = exact()
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert line["curvature/lambda_max"] == pytest.approx(largest, rel=1e-3)
    error = line["curvature/hutchinson_trace_error"]
    trace = line["curvature/hutchinson_trace"]
    assert trace == pytest.approx(float(hessian.trace()), abs=4 * error)
    assert error < 0.1 * trace


def test_it_looks_at_the_first_items_only(train):
    line = train(max_steps=1, curvature__tolerance=1e-4, curvature__items=5).diagnostics_history[0]
    largest = float(torch.linalg.eigvalsh(exact(5))[-1])
    assert line["curvature/lambda_max"] == pytest.approx(largest, rel=1e-3)
    assert abs(largest / float(torch.linalg.eigvalsh(exact())[-1]) - 1) > 0.05


def test_it_changes_nothing(train):
    """Running statistics, random states, weights, and which batches are drawn, are as without."""
    keys = {"format": "E4M3", "recipe": "pure", "max_steps": 3, "gradient_accumulation_steps": 2}
    plain = train("restless", plugins=(), name="plain", **keys)
    watched = train("restless", name="watched", check_observers=True, **keys)
    assert watched.summary["degraded"] == []
    assert ASKED[-1] == ASKED[-2]
    assert watched.final_loss == plain.final_loss
    one, other = (state(run.run_directory) for run in (plain, watched))
    assert "1.running_mean" in one["model"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    drawn = [tree_leaves(kept["ranks"][0]["random"]) for kept in (one, other)]
    for before, after in zip(*drawn, strict=True):
        assert torch.equal(before, after) if torch.is_tensor(before) else before == after


def test_a_resumed_run_has_the_same_lines(train):
    """Its random vectors depend on the step, its items are the step's own."""
    keys = {"schedule": "constant", "warmup_steps": 0}
    whole = train("restless", name="whole", max_steps=4, **keys)
    train("restless", name="part", max_steps=3, **keys)
    assert train.resume("part", max_steps=4).diagnostics_history == whole.diagnostics_history
    found = [line["curvature/hutchinson_trace"] for line in whole.diagnostics_history]
    assert len(set(found)) == 4


def test_each_measurement_draws_other_vectors(train):
    """Of one batch and weights that hardly move, so that errors of the trace are independent."""
    lines = train("still", learning_rate=1e-12).diagnostics_history
    first, second = (line["curvature/hutchinson_trace"] for line in lines)
    assert abs(first / second - 1) > 1e-3
    largest = [line["curvature/lambda_max"] for line in lines]
    assert largest[0] == pytest.approx(largest[1], rel=0.02)


def test_what_is_not_finite_is_left_out(train):
    """And warned of once, while the run goes on; a resumed one does not repeat it."""
    run = train("sharp", name="sharp")
    assert run.steps_completed == 2
    assert run.diagnostics_history == []
    train.resume("sharp", max_steps=3)
    told = [e["message"] for e in events(run.run_directory) if e["event"] == "warning"]
    assert [m for m in told if "converge" in m] == [
        f"{name} is not finite, or did not converge"
        for name in ("lambda_max", "hutchinson_trace", "hutchinson_trace_error")
    ]


def test_a_model_without_trained_parameters(train):
    """It has no Hessian."""
    model = BuiltSmall("frozen").model
    assert Curvature().post_backward(type("Run", (), {"model": model}), None) == {}


def test_one_item_of_a_batch_norm_is_refused(train):
    """By the setting's name, while the run goes on."""
    run = train("restless", strict=False, max_steps=1, curvature__items=1)
    (told,) = (e["message"] for e in events(run.run_directory) if e["event"] == "degraded")
    assert "curvature.items: the model has a batch norm" in told
    assert "2 or more" in told


def test_without_scipy_it_says_what_to_install(monkeypatch):
    known = importlib.util.find_spec
    without = lambda name: None if name == "scipy" else known(name)  # noqa: E731
    monkeypatch.setattr(curvature, "find_spec", without)
    with pytest.raises(BadInput, match="scipy") as caught:
        Curvature()
    assert "altcore-diagnostics[curvature]" in caught.value.hint


def test_the_first_items_of_any_batch():
    """In its structure; what has no first dimension is for all items."""
    pair = namedtuple("pair", "x y")
    x = torch.arange(6).view(3, 2)
    batch = {"pair": pair(x, [x[:, 0], "text"]), "scale": torch.tensor(2.0), "tuple": (x, None)}
    found = first_items(batch, 2)
    assert torch.equal(found["pair"].x, x[:2])
    assert torch.equal(found["pair"].y[0], x[:2, 0])
    assert found["pair"].y[1] == "text"
    assert found["scale"] == 2
    assert torch.equal(found["tuple"][0], x[:2])
    assert found["tuple"][1] is None
    assert torch.equal(first_items(x, 9), x)
