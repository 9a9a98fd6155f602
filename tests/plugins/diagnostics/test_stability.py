"""The diagnostic ``stability``: counts by hand."""

import math

import pytest
from helpers_diagnostics import Bench, linear, square
from torch import nn

from altcore_diagnostics.stability import Stability


def test_counts_by_hand():
    """Two NaN, one infinity of each sign, in one layer of two."""
    bench = Bench(nn.Sequential(square(1.0), linear(1.0, 1.0)), {})
    after = {"0.weight": [[math.nan, math.inf], [-math.inf, math.nan]]}
    found = bench.step(Stability(), after)
    assert (found["nan_count"], found["nan_count/0"], found["nan_count/1"]) == (2, 2, 0)
    assert (found["inf_count"], found["inf_count/0"], found["inf_count/1"]) == (2, 2, 0)
    assert all(isinstance(found[key], int) for key in ("nan_count", "inf_count/0"))


def test_zero_updates_by_hand():
    """Of 4 and 2 elements, 1 and 2 stay where they were; -0 is 0."""
    bench = Bench(nn.Sequential(square(1.0), linear(1.0, 0.0)), {})
    found = bench.step(
        Stability(), {"0.weight": [[1.0, 2.0], [3.0, 4.0]], "1.weight": [[1.0, -0.0]]}
    )
    assert found["zero_update_share"] == 0.5
    assert (found["zero_update_share/0"], found["zero_update_share/1"]) == (0.25, 1)


def test_a_stall_is_no_zero_update():
    """The grid swallows the update that the optimizer proposed."""
    bench = Bench(nn.Sequential(linear(31.0, 1.0)), {"stored_weight": "E3M4"})
    found = bench.step(Stability(), {"0.weight": [[31.0, 1.001]]})
    assert bench.model[0].weight.tolist() == [[31.0, 1.0]]
    assert found["zero_update_share"] == 0.5


def test_a_layer_is_all_its_parameters():
    bench = Bench(nn.Sequential(nn.Linear(3, 1)), {})
    found = bench.step(Stability(), {"0.bias": [math.nan]})
    assert (found["nan_count/0"], found["zero_update_share/0"]) == (1, 0.75)


def test_frozen_parameters_have_no_update():
    """They are looked at, and are no zero updates."""
    bench = Bench(nn.Sequential(square(1.0), linear(1.0, 1.0)), {})
    step = bench.update(bench.forward(), {"1.weight": [[2.0, 1.0]]})
    for captured in (step.weights_before, step.weights_proposed):
        del captured["0.weight"]
    found = bench.measure(Stability(), step)
    assert (found["zero_update_share"], found["nan_count/0"]) == (0.5, 0)
    assert "zero_update_share/0" not in found


def test_in_a_run(start):
    result = start(["stability"], format="E3M4", recipe="pure", stability__interval=2, max_steps=4)
    assert [line["step"] for line in result.diagnostics_history] == [1, 2, 4]
    for line in result.diagnostics_history:
        assert (line["stability/nan_count"], line["stability/inf_count"]) == (0, 0)
        assert 0 <= line["stability/zero_update_share"] < 0.5
        assert line["stability/nan_count/transformer.h.0.mlp.c_fc"] == 0
    share = [
        line["stability/zero_update_share/transformer.wte"] for line in result.diagnostics_history
    ]
    assert share == pytest.approx([0, 0, 0])  # decay reaches the rows that no token asks for
