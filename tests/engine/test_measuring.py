"""The measuring helpers that plugins share."""

import pytest
import torch
from helpers_diagnostics import Bench, linear
from torch import nn

from altcore.engine import Step
from altcore.engine.measuring import (
    MeasureTable,
    active_quantizers,
    interval_width_of,
    inverse_scale,
    join_moments,
    last_input,
    layer_of,
    mean_and_std,
    moments_without_zeros,
    nan_where_not_finite,
    on_grid,
    quantized_weights,
)
from altcore.formats import get_format
from altcore.numerics import moments


def test_layers_own_their_parameters():
    """A parameter of the model itself is its own layer."""
    assert [layer_of(n) for n in ("h.0.weight", "weight")] == ["h.0", "weight"]


@pytest.mark.parametrize(("recipe", "kind"), [("stored_weight", "stored"), ("weight", "view")])
def test_quantized_weights_say_whether_they_are_stored(recipe, kind):
    bench = Bench(nn.Sequential(linear(1.0, 2.0)), {recipe: "E4M3"})
    bench.forward()
    (weight,) = quantized_weights(bench.run)
    assert (weight.name, weight.layer, weight.kind) == ("0.weight", "0", kind)
    assert weight.parameter is bench.model[0].weight
    assert weight.grid.format.name == "E4M3"


def test_the_width_is_computed_once_a_step():
    """For all who ask; of the weight as it was in the forward pass."""
    bench = Bench(
        nn.Sequential(linear(1.0, 2.0)), {"stored_weight": {"format": "E4M3", "scaling": "none"}}
    )
    step = bench.forward()
    (weight,) = quantized_weights(bench.run)
    first = interval_width_of(step, weight)
    assert first.tolist() == [[0.125, 0.25]]
    with torch.no_grad():
        weight.parameter.mul_(4)
    assert interval_width_of(step, weight) is first
    assert interval_width_of(Step(2), weight).tolist() == [[0.5, 1.0]]
    before = torch.tensor([[1.0, 1.0]])
    assert interval_width_of(Step(3), weight, before).tolist() == [[0.125, 0.125]]


def test_a_stored_weight_is_not_rounded_again():
    """Its product's quantizer has nothing to do, unless the formats differ."""
    stored = {"stored_weight": "E4M3", "weight": "E4M3", "activation": "E4M3"}
    rows = [str(q.site) for _, q in active_quantizers(Bench(linear(1.0), stored).run)]
    assert rows
    assert all("activation" in name for name in rows)
    other = Bench(linear(1.0), {**stored, "weight": "E5M2"})
    names = [str(q.site) for _, q in active_quantizers(other.run)]
    assert any("weight@" in name for name in names)
    indices = [i for i, _ in active_quantizers(other.run)]
    assert [str(other.q.quantizers[i].site) for i in indices] == names


def test_the_last_input_is_what_was_rounded():
    bench = Bench(
        nn.Sequential(linear(1.0, 3.0)),
        {"weight": "E4M3", "activation": "E4M3", "gradient": "E5M2"},
    )
    step = bench.forward(torch.tensor([[5.0, 7.0]]))
    found = {str(q.site): last_input(bench.run, step, q) for q in bench.q.quantizers}
    assert found["0:weight@fwd"].tolist() == [[1.0, 3.0]]
    assert found["0:activation@fwd"].tolist() == [[5.0, 7.0]]
    assert found["0:gradient@dgrad"].tolist() == [[1.0]]
    uncaptured = {str(q.site): last_input(bench.run, Step(2), q) for q in bench.q.quantizers}
    assert uncaptured["0:activation@fwd"] is None


def test_values_on_the_grid_and_those_that_are_not_finite():
    """A scale of 1 is None; rounding is to nearest, ties to even, and unscaled."""
    assert inverse_scale(None) is None
    assert inverse_scale(torch.tensor(4.0)) == 0.25
    x, fmt = torch.tensor([1.0, 1.06, 4.4]), get_format("E4M3")
    assert on_grid(x, fmt, None).tolist() == [1.0, 1.0, 4.5]
    assert on_grid(x, fmt, torch.tensor(2.0)).tolist() == [0.5, 0.5, 2.25]
    odd = nan_where_not_finite(torch.tensor([1.0, torch.inf, -torch.inf, torch.nan]))
    assert odd[0] == 0
    assert odd[1:].isnan().all()


def test_joined_moments_are_those_of_all_elements():
    """However they are spread over tensors."""
    torch.manual_seed(0)
    parts = [torch.randn(n) * n for n in (1, 7, 30)]
    joined = join_moments(torch.stack([moments(p) for p in parts]))
    whole = torch.cat(parts).double()
    mean, std = mean_and_std(*joined)
    assert torch.isclose(mean, whole.mean())
    assert torch.isclose(std, whole.std(correction=0))
    assert mean_and_std(*torch.zeros(3).double())[0].isnan()


def test_moments_without_zeros_are_those_of_the_others():
    x = torch.tensor([1.0, 0.0, 3.0, 0.0])
    number, mean, squares = moments_without_zeros(x, torch.tensor(2))
    assert (number, mean, squares) == (2, 2.0, 2.0)


def test_a_table_joins_rows_before_it_measures():
    """So that each element counts once: the mean of a layer's tensors is no mean of means."""
    table = MeasureTable(lambda c: {"mean": c[0] / c[1]})
    for layer, total, number in (("a", 1.0, 1), ("a", 9.0, 3), ("b", 2.0, 4)):
        table.add("view", layer, torch.tensor(total), torch.tensor(number))
    found = {k: float(v) for k, v in table.measures().items()}
    assert found == {"view_mean": 1.5, "view_mean/a": 2.5, "view_mean/b": 0.5}
    largest = MeasureTable(lambda c: {"max": c[0]}, lambda rows: rows.amax(0))
    largest.add("", "a", torch.tensor(3.0))
    largest.add("", "b", torch.tensor(5.0))
    assert {k: float(v) for k, v in largest.measures().items()} == {
        "max": 5,
        "max/a": 3,
        "max/b": 5,
    }
