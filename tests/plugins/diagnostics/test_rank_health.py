"""The diagnostic ``rank-health``: matrices of known ranks, sequences that decline or do not."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import weights_sha256
from helpers_diagnostics import NoHostRead
from torch import nn

from altcore.engine import Step
from altcore_diagnostics.rank_health import (
    RankHealth,
    critical_layers,
    fall,
    gram,
    matrices,
    ranks,
)


def ranks_of(*weights):
    """Stable and effective rank of each, as pairs of numbers."""
    return [tuple(pair) for pair in ranks([w.detach() for w in weights]).t().tolist()]


def with_singular_values(sigma, m, n):
    """A random (m, n) float32 matrix with these singular values."""
    generator = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        for size in (m, n)
    )
    k = len(sigma)
    return (u[:, :k] * torch.tensor(sigma, dtype=torch.float64) @ v[:, :k].t()).float()


def by_definition(weight):
    """Both ranks from a singular value decomposition in float64."""
    sigma = torch.linalg.svdvals(weight.double())
    p = sigma / sigma.sum()
    entropy = -sum(x * math.log(x) for x in p.tolist() if x > 0)
    return float(sigma.square().sum() / sigma.max() ** 2), math.exp(entropy)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (9, 9)])
def test_known_ranks(shape):
    """A product of two vectors has rank 1, a matrix with equal singular values all of them."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.randn(size, 1, generator=generator) for size in shape)
    full = with_singular_values([3.0] * min(shape), *shape)
    found = ranks_of(u @ v.t(), full, torch.zeros(shape))
    assert found[0] == pytest.approx((1.0, 1.0), abs=1e-4)
    assert found[1] == pytest.approx((min(shape), min(shape)), rel=1e-6)
    assert found[2] == (0.0, 0.0)


def test_two_unequal_directions_by_hand():
    """Singular values 2 and 1: stable rank 5/4; p = 2/3 and 1/3, whose entropy is 0.6365 nats."""
    entropy = math.log(3) - 2 / 3 * math.log(2)
    expected = (1.25, math.exp(entropy))
    assert ranks_of(with_singular_values([2.0, 1.0], 7, 5))[0] == pytest.approx(expected, rel=1e-4)


def test_against_the_definition():
    """Random weights of different sizes and a fast decay, several at once, in their order."""
    torch.manual_seed(0)
    decaying = with_singular_values([2.0**-k for k in range(16)], 40, 16)
    weights = [torch.randn(30, 8), torch.randn(8, 30), decaying, torch.randn(30, 30)]
    for found, weight in zip(ranks_of(*weights), weights, strict=True):
        assert found == pytest.approx(by_definition(weight), rel=1e-4)


def test_further_dimensions_are_columns_and_long_matrices_are_summed_up(monkeypatch):
    """A convolution's kernel is a matrix with a row for each output channel."""
    kernel = torch.randn(6, 4, 3, 3)
    assert torch.allclose(gram(kernel), kernel.flatten(1).double() @ kernel.flatten(1).double().t())
    whole = gram(torch.ones(50, 2))
    monkeypatch.setattr("altcore_diagnostics.rank_health.ROWS", 7)
    assert torch.equal(gram(torch.ones(50, 2)), whole)
    assert whole.tolist() == [[50.0, 50.0], [50.0, 50.0]]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_is_its_layers_alone(lost):
    """A weight that is lost has no rank; others keep theirs."""
    broken = torch.eye(4)
    broken[1, 2] = lost
    found = ranks_of(broken, torch.eye(4))
    assert all(map(math.isnan, found[0]))
    assert found[1] == pytest.approx((4.0, 4.0))


# Trends and warnings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10.0, 9.5, 9.0, 8.5, 8.0], 0.2),
        ([8.0, 8.0, 8.0, 8.0, 8.0], 0.0),
        ([8.0, 9.0, 10.0], -0.25),
        ([10.0, 8.0, 10.0], 0.0),  # down and up again is no trend
        ([10.0, 5.0], 0.5),
        ([0.0, 0.0, 0.0, 3.0, 5.0], 0.0),  # the line begins below 0
        ([0.0, 1.0, 2.0], 0.0),
        ([0.0, 0.0], 0.0),
    ],
)
def test_what_a_line_loses(values, expected):
    """From where it starts to where it ends, as a share."""
    assert float(fall(torch.tensor(values, dtype=torch.float64))) == pytest.approx(expected)


class Model(nn.Module):
    """Two blocks with an output projection each, and a head."""

    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(nn.ModuleDict(self.block()) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
        self.head = nn.Linear(4, 4, bias=False)

    def block(self):
        return {"c_fc": nn.Linear(4, 4), "c_proj": nn.Linear(4, 4)}


def measure(plugin, model):
    """One measurement, as numbers."""
    with NoHostRead():
        found = plugin.post_step(SimpleNamespace(model=model), Step(1))
    return {key: float(value) for key, value in found.items()}


def declining(model, layers, steps, share):
    """Yield once a measurement, while the effective rank of some layers falls by a share each."""
    for k in range(steps):
        for name in layers:
            # diag(1, 1, 1, x): its ranks fall as x does.
            with torch.no_grad():
                x = torch.tensor([1.0, 1.0, 1.0, (1 - share) ** k])
                model.get_submodule(name).weight.copy_(torch.diag(x))
        yield k


def test_a_declining_layer_warns():
    """From the window-th measurement on, of the layer that declines and of no other."""
    torch.manual_seed(0)
    model, plugin = Model(), RankHealth(window=4, drop=0.1)
    found = [measure(plugin, model) for _ in declining(model, ["h.0.c_fc"], 5, 0.4)]
    assert not any("warning" in key for line in found[:3] for key in line)
    for line in found[3:]:
        assert (line["warning"], line["warnings"], line["warning/h.0.c_fc"]) == (1.0, 1.0, 1.0)
        assert line["warning/h.0.c_proj"] == line["warning/head"] == 0.0
    assert found[0]["stable_rank/h.0.c_fc"] == pytest.approx(4.0)
    assert found[1]["stable_rank/h.0.c_fc"] == pytest.approx(3.36)
    assert found[4]["stable_rank_min"] == min(
        v for k, v in found[4].items() if k.startswith("stable_rank/")
    )


def test_what_stays_or_rises_does_not_warn():
    """Nor what recovers, once the fall has left the window."""
    torch.manual_seed(0)
    model, plugin = Model(), RankHealth(window=3, drop=0.05)
    for _ in declining(model, ["h.0.c_fc"], 4, 0.4):
        line = measure(plugin, model)
    assert line["warning"] == 1.0
    for _ in range(3):
        line = measure(plugin, model)
    assert (line["warning"], line["warnings"]) == (0.0, 0.0)


def test_a_rollback_begins_a_trend_anew():
    """What it undid is no decline, and restored weights no recovery."""
    torch.manual_seed(0)
    model, plugin = Model(), RankHealth(window=3)
    for _ in declining(model, ["head"], 2, 0.4):
        measure(plugin, model)
    plugin.on_event({"event": "rollback", "step": 2, "to": 1})
    lines = [measure(plugin, model) for _ in range(3)]
    assert ["warning" in line for line in lines] == [False, False, True]
    assert lines[-1]["warning"] == 0.0


def test_output_critical_layers_are_held_to_more():
    """The same decline, of a layer that matters more, passes its stricter limit."""
    names = ["h.0.c_proj", "h.1.c_fc", "h.1.c_proj", "head"]
    model, plugin = Model(), RankHealth(window=3, drop=0.1, critical_drop=0.02)
    for _ in declining(model, names, 3, 0.08):
        line = measure(plugin, model)
    assert {n: line[f"warning/{n}"] for n in names} == dict(zip(names, [0, 0, 1, 1], strict=True))
    assert line["warnings"] == 2.0


def test_which_layers_are_output_critical(start):
    """Of the workload gpt: the head, by the name of the weight it shares, and two projections."""
    model = start.engine(gpt__n_layer=2, name="critical").run.model
    patterns = RankHealth().output_projections
    last = "transformer.h.1"
    expected = {"transformer.wte", f"{last}.attn.c_proj", f"{last}.mlp.c_proj"}
    assert critical_layers(model, patterns) == expected <= set(matrices(model))
    assert critical_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), patterns) == set()
    transformers = pytest.importorskip("transformers")
    assert critical_layers(nn.Sequential(nn.Conv1d(2, 2, 1)), patterns) == set()
    transposed = transformers.pytorch_utils.Conv1D(2, 2)
    assert critical_layers(nn.Sequential(nn.Linear(2, 2), transposed), patterns) == {"1"}


def test_what_adapters_wrap_is_output_critical_with_them():
    """The head, and a projection of the last block."""
    model = Model()
    for parent, name in ((model.h[1], "c_proj"), (model, "head")):
        wrapper = nn.Module()
        wrapper.base_layer, wrapper.lora = getattr(parent, name), nn.Linear(4, 4)
        setattr(parent, name, wrapper)
    names = [f"{n}.{part}" for n in ("h.1.c_proj", "head") for part in ("base_layer", "lora")]
    assert critical_layers(model, RankHealth().output_projections) == set(names)


def test_a_model_without_a_matrix_has_no_measure():
    """Nothing to say, rather than zeros."""
    assert RankHealth().post_step(SimpleNamespace(model=nn.LayerNorm(3)), Step(1)) is None


def test_state_comes_back():
    """A resumed run warns where the whole one does."""
    torch.manual_seed(0)
    model, plugin = Model(), RankHealth(window=3)
    lines = []
    for k in declining(model, ["head"], 3, 0.4):
        if k == 2:
            state, plugin = plugin.state_dict(), RankHealth(window=3)
            plugin.load_state_dict(state)
        lines.append(measure(plugin, model))
    assert lines[-1]["warning/head"] == 1.0


def test_in_a_run(start):
    """It is measured when due, goes through a checkpoint, and changes no number."""
    recipe = {
        "weight": {"format": "E4M3", "scaling": "delayed"},
        "activation": {"format": "E4M3", "rounding": "stochastic"},
        "stored_weight": {"format": "E4M3", "rounding": "stochastic"},
    }
    keys = {"recipe": recipe, "gpt__dropout": 0.2, "max_steps": 4}
    plain = start(name="plain", **keys)
    due = {"rank-health.interval": 1, "rank-health.window": 4}
    measured = start(["rank-health"], name="measured", checkpoint_interval=2, **keys, **due)
    assert weights_sha256(measured.run_directory) == weights_sha256(plain.run_directory)
    for a, b in zip(plain.metrics_history, measured.metrics_history, strict=True):
        assert a == {k: v for k, v in b.items() if not k.startswith("rank-health/")}
    last = measured.diagnostics_history[-1]
    layer = "transformer.h.0.mlp.c_fc"
    assert 1 < last[f"rank-health/effective_rank/{layer}"] <= 32
    assert 1 <= last["rank-health/stable_rank_min"] <= last[f"rank-health/stable_rank/{layer}"]
    assert last["rank-health/warning"] in (0.0, 1.0)
    assert "rank-health/warning" not in measured.diagnostics_history[2]
