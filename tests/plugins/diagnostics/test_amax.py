"""The diagnostic ``amax``: magnitudes and shares of the range, by hand."""

import math

import pytest
import torch
from helpers_diagnostics import Bench, linear, square
from torch import nn

from altcore_diagnostics.amax import Amax

DELAYED = {"format": "E3M4", "scaling": {"kind": "delayed", "history": 3}}
NONE = {"format": "E3M4", "scaling": "none"}


def test_operands_by_hand():
    """A weight of amax 3, an input of 5, and the gradient of a sum, which is 1."""
    model = nn.Sequential(linear(-3.0, 1.0))
    bench = Bench(model, {"layers": {"0": {"weight": "E3M4", "activation": "E3M4"}}})
    found = bench.gradients(Amax(), x=torch.tensor([[2.0, -5.0]]))
    assert found["weight@fwd_amax"] == found["weight@fwd_amax/0"] == 3
    assert found["activation@fwd_amax"] == 5
    assert not any("range_share" in key or "history" in key for key in found)
    bench = Bench(nn.Sequential(linear(1.0)), {"layers": {"0": {"gradient": "E3M4"}}})
    step = bench.forward()
    step.output_gradients = {"0": torch.tensor([[0.5, -2.0]])}
    assert bench.measure(Amax(), step, "post_backward")["gradient@dgrad_amax"] == 2


def test_without_scaling_the_share_is_of_the_format():
    """31 is the largest value: amax 15.5 uses half of the range, 62 passes it."""
    model = nn.Sequential(linear(15.5, 1.0))
    recipe = {"layers": {"0": {"weight@fwd": NONE, "activation@fwd": NONE}}}
    found = Bench(model, recipe).gradients(Amax(), x=torch.tensor([[62.0, 1.0]]))
    assert found["weight@fwd_range_share"] == 0.5
    assert found["activation@fwd_range_share"] == found["activation@fwd_range_share/0"] == 2


def test_delayed_scaling():
    """The scale is of what was before: an input that doubles passes the range by two.

    The history grows to its length; the newest amax is not in the scale yet.
    """
    model = nn.Sequential(linear(1.0, 1.0))
    bench = Bench(model, {"layers": {"0": {"activation@fwd": DELAYED}}})
    plugin, found = Amax(), []
    for size in (1.0, 2.0, 1.0, 0.5, 0.5):
        found.append(bench.gradients(plugin, x=torch.tensor([[size, 0.1]])))
    assert [f["activation@fwd_amax"] for f in found] == [1, 2, 1, 0.5, 0.5]
    shares = [f["activation@fwd_range_share"] for f in found]
    assert shares == pytest.approx([1, 2, 0.5, 0.25, 0.25])
    assert [f["activation@fwd_history_length/0"] for f in found] == [1, 2, 3, 3, 3]


def test_the_whole_is_the_largest():
    model = nn.Sequential(square(4.0), linear(15.5, 1.0))
    found = Bench(model, {"layers": {"*": {"weight@fwd": NONE}}}).gradients(Amax())
    assert (found["weight@fwd_amax/0"], found["weight@fwd_amax"]) == (4, 15.5)
    assert found["weight@fwd_range_share"] == 0.5


def test_a_range_beyond_float32():
    """E8M3 without scaling holds more than float32: the share is small, and not 0."""
    recipe = {"layers": {"0": {"weight@fwd": {"format": "E8M3", "scaling": "none"}}}}
    found = Bench(nn.Sequential(linear(1.0, 2.0)), recipe).gradients(Amax())
    assert 0 < found["weight@fwd_range_share"] < 1e-37


def test_what_is_not_at_hand():
    """A weight gradient is known by its scale; after a Hadamard transform nothing is."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    turned = {"format": "E3M4", "hadamard": 4}
    recipe = {
        "layers": {
            "0": {"weight_gradient": "E3M4"},
            "1": {"gradient@wgrad": turned, "activation@wgrad": turned},
        }
    }
    bench = Bench(model, recipe)
    raw = []
    model[0].weight.register_hook(lambda g: raw.append(float(g.abs().max())))
    found = bench.gradients(Amax(), x=torch.randn(3, 4))
    assert found["weight_gradient_amax/0"] == pytest.approx(raw[0], rel=1e-2)
    assert not any("wgrad" in key for key in found)


def test_not_a_number():
    model = nn.Sequential(linear(1.0, 1.0))
    bench = Bench(model, {"layers": {"0": {"activation@fwd": NONE}}})
    found = bench.gradients(Amax(), x=torch.tensor([[math.nan, 1.0]]))
    assert math.isnan(found["activation@fwd_amax"])


def test_an_unquantized_model_has_no_measures():
    assert Bench(nn.Sequential(linear(1.0, 2.0)), {}).gradients(Amax()) == {}


def test_in_a_run(start):
    """The recipe of the original experiments: delayed weights, weight gradients of their own."""
    result = start(["amax"], format="E3M4", recipe="original", max_steps=4, amax__interval=2)
    assert [line["step"] for line in result.diagnostics_history] == [1, 2, 4]
    for line in result.diagnostics_history:
        assert line["amax/weight@fwd_history_length"] == line["step"]
        assert 0.5 < line["amax/weight@fwd_range_share"] < 1.5
        assert line["amax/weight_gradient_amax/transformer.h.0.mlp.c_fc"] > 0


def test_every_operand_in_a_run(start):
    *_, line = start(["amax"], format="E3M4", recipe="master", amax__interval=3).diagnostics_history
    for operand in ("weight@fwd", "activation@fwd", "gradient@dgrad"):
        assert line[f"amax/{operand}_amax/transformer.h.0.mlp.c_fc"] > 0
