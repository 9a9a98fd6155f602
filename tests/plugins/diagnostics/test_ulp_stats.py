"""The diagnostic ``ulp-stats``: known distances, worked out by hand on each format's grid."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers_diagnostics import NoHostRead, linear, square
from torch import nn

import altcore
from altcore.engine import Step
from altcore_diagnostics.ulp_stats import UlpStats, statistics


def measure(model, recipe, after):
    """Measure one update, of each parameter to the values in ``after``."""
    q = altcore.quantize_model(model, recipe)
    q.begin_step(1)
    width = next(model.parameters()).shape[1]
    model(torch.ones(1, width))
    step = Step(1, weights_before={n: p.detach().clone() for n, p in model.named_parameters()})
    with torch.no_grad():
        for name, values in after.items():
            model.get_parameter(name).copy_(torch.tensor(values))
    step.weights_proposed = {n: p.detach().clone() for n, p in model.named_parameters()}
    q.store()
    with NoHostRead():
        measures = UlpStats().post_step(SimpleNamespace(model=model, quantization=q, step=1), step)
    return {key: float(value) for key, value in measures.items()}


def of(measures, kind, layer=""):
    """One kind's mean, median, max and zero share."""
    tail = f"/{layer}" if layer else ""
    return tuple(measures[f"{kind}_{key}{tail}"] for key in ("mean", "median", "max", "zero_share"))


def test_stored_e3m4_by_hand():
    """E3M4 has 16 subnormal steps of 1/64, then 16 a binade: 1 is the 48th positive value.

    31 -> 31 is 0, 1 -> 1.0625 is 1, -1 -> 1 is 96 through zero, 0 -> 1/64 is 1.
    """
    model = nn.Sequential(linear(31.0, 1.0, -1.0, 0.0))
    found = measure(model, {"stored_weight": "E3M4"}, {"0.weight": [31.0, 1.0625, 1.0, 1 / 64]})
    assert of(found, "stored") == (98 / 4, 1.0, 96.0, 0.25)
    assert of(found, "stored", "0") == of(found, "stored")
    assert not any(key.startswith("view") for key in found)


def test_view_of_e7m0_by_hand():
    """E7M0 has one value a binade, 2^-62 the first positive one: 4 is the 65th.

    1 -> 1.1 is seen as 1 still; 2 -> 3.1 as 4, one step; 4 -> -4 is 130; 0.5 stays.
    """
    model = nn.Sequential(linear(1.0, 2.0, 4.0, 0.5))
    recipe = {"layers": {"0": {"weight@fwd": {"format": "E7M0", "scaling": "none"}}}}
    found = measure(model, recipe, {"0.weight": [1.1, 3.1, -4.0, 0.5]})
    assert of(found, "view") == (131 / 4, 0.5, 130.0, 0.5)
    assert not any(key.startswith("stored") for key in found)


def test_negative_zero_is_zero():
    """A step from 0 to -0 moves nothing."""
    found = measure(
        nn.Sequential(linear(0.0, 1.0)), {"stored_weight": "E3M4"}, {"0.weight": [-0.0, 1.0]}
    )
    assert of(found, "stored") == (0.0, 0.0, 0.0, 1.0)


def test_stored_weights_and_views_are_kept_apart():
    """A layer that is stored and one that is only seen on the grid share no measure."""
    model = nn.Sequential(square(4.0), linear(1.0, 2.0))
    e7m0 = {"format": "E7M0", "scaling": "none"}
    recipe = {"layers": {"0": {"stored_weight": "E7M0"}, "1": {"weight@fwd": e7m0}}}
    found = measure(model, recipe, {"1.weight": [1.1, 8.0]})
    assert of(found, "stored") == of(found, "stored", "0") == (0.0, 0.0, 0.0, 1.0)
    assert of(found, "view") == of(found, "view", "1") == (1.0, 1.0, 2.0, 0.5)
    assert not {"stored_mean/1", "view_mean/0"} & set(found)


def test_the_aggregate_counts_elements_not_layers():
    """Four elements that moved by 1 and two that did not: a mean of 4/6, a median of 1."""
    model = nn.Sequential(square(1.0), linear(1.0, 1.0))
    recipe = {"layers": {"*": {"stored_weight": "E7M0"}}}
    found = measure(model, recipe, {"0.weight": [[0.5, 0.5], [0.5, 0.5]]})
    assert of(found, "stored") == (4 / 6, 1.0, 1.0, 2 / 6)
    assert of(found, "stored", "1") == (0.0, 0.0, 0.0, 1.0)


def test_layers_of_different_formats_add_up():
    """Each layer counts steps of its own grid; the longer grid loses nothing."""
    model = nn.Sequential(square(1.0), linear(1.0, 1.0))
    recipe = {"layers": {"0": {"stored_weight": "E2M1"}, "1": {"stored_weight": "BF16"}}}
    found = measure(model, recipe, {"1.weight": [1.0, -1.0]})
    assert found["stored_max/1"] == found["stored_max"] == 2 * 127 * 128
    assert found["stored_mean"] == pytest.approx(found["stored_max"] / 6)


def test_a_new_scale_is_no_movement():
    """An element outgrows the grid, and its neighbour falls off the coarser one: neither moved.

    The first stays at the largest value of the old grid; the second was not touched by the
    optimizer, and only the doubled scale rounds it to zero.
    """
    model = nn.Sequential(linear(31.0, 1 / 64))
    found = measure(model, {"stored_weight": "E3M4"}, {"0.weight": [40.0, 1 / 64]})
    assert model[0].weight.tolist() == [[40.0, 0.0]]
    assert of(found, "stored") == (0.0, 0.0, 0.0, 1.0)


def test_agrees_with_ulp_distance():
    """At the scale of the forward pass, distances are those of the public function."""
    torch.manual_seed(0)
    before, after = torch.randn(1, 65), torch.randn(1, 65)
    model = nn.Sequential(linear(*before[0].tolist()))
    recipe = {"layers": {"0": {"weight@fwd": "E3M4"}}}
    found = measure(model, recipe, {"0.weight": after[0].tolist()})
    scale = before.abs().max() / 31
    distance = altcore.ulp_distance(before, after, "E3M4", scale=scale)
    expected = (
        distance.double().mean(),
        distance.median(),  # of an odd number: the middle one
        distance.max(),
        (distance == 0).double().mean(),
    )
    assert of(found, "view") == pytest.approx(tuple(map(float, expected)))


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_is_not_counted_as_a_number(lost):
    """A lost weight makes its layer's measures and the aggregates NaN, and no other layer's."""
    model = nn.Sequential(square(1.0), linear(1.0, 1.0))
    e7m0 = {"format": "E7M0", "scaling": "none"}
    recipe = {"layers": {"*": {"weight@fwd": e7m0}}}
    found = measure(model, recipe, {"1.weight": [1.0, lost]})
    assert all(math.isnan(value) for value in (*of(found, "view", "1"), *of(found, "view")))
    assert of(found, "view", "0") == (0.0, 0.0, 0.0, 1.0)


def test_an_unquantized_model_has_no_measures():
    """Where nothing is on a grid there is nothing to say, rather than zeros."""
    assert measure(nn.Sequential(linear(1.0, 2.0)), {}, {"0.weight": [3.0, 4.0]}) == {}


@pytest.mark.parametrize("values", [[0], [3, 1], [5, 0, 2], [1, 1, 2, 9], [0, 0, 0, 7]])
def test_statistics_are_those_of_the_numbers(values):
    """Mean, median, max and zero share of counts equal those of the numbers counted."""
    counts = torch.zeros(12, dtype=torch.int64)
    for value in values:
        counts[value + 1] += 1
    found = statistics(counts)
    ordered, n = sorted(values), len(values)
    assert float(found["mean"]) == sum(values) / n
    assert float(found["median"]) == (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    assert float(found["max"]) == max(values)
    assert float(found["zero_share"]) == values.count(0) / n


@pytest.mark.parametrize(("recipe", "kind"), [("pure", "stored"), ("master", "view")])
def test_in_a_run(tmp_path, recipe, kind):
    """It is measured when due, agrees with the core's stall rate, and changes no number.

    AdamW proposes a nonzero update for every weight of these layers, so that the share of zero
    moves and the stall rate are of the same elements.
    """
    config = {
        "format": "E3M4",
        "recipe": recipe,
        "gpt.size": "tiny",
        "gpt.n_layer": 1,
        "max_steps": 4,
        "warmup_steps": 0,
        "checkpoint_interval": 0,
        "eval_interval": 0,
        "eval_steps": 1,
        "runs_dir": str(tmp_path),
    }
    plain = altcore.train({**config, "name": "plain"})
    plugins = {"plugins": ["ulp-stats"], "ulp-stats.interval": 2}
    measured = altcore.train({**config, "name": "measured", **plugins})
    assert measured.final_loss == plain.final_loss
    assert [line["step"] for line in measured.diagnostics_history] == [1, 2, 4]
    stalls = {x["step"]: x[f"{kind}_stall_rate"] for x in measured.metrics_history}
    other = {"stored": "view", "view": "stored"}[kind]
    for line in measured.diagnostics_history:
        assert line[f"ulp-stats/{kind}_zero_share"] == pytest.approx(stalls[line["step"]], abs=1e-3)
        assert f"ulp-stats/{other}_mean" not in line
    layer = "transformer.h.0.mlp.c_fc"
    assert f"ulp-stats/{kind}_mean/{layer}" in measured.diagnostics_history[0]
