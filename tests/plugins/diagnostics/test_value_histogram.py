"""The diagnostic ``value-histogram``: shares counted by hand, and where a tensor is not at hand."""

import math
from collections import Counter

import pytest
import torch
from helpers_diagnostics import Bench, NoHostRead, linear
from torch import nn

from altcore.plugin import get_format
from altcore_diagnostics.value_histogram import BINADES, ValueHistogram, lowest


def measure(model, recipe):
    """Measure a step, without a host read."""
    bench = Bench(model, recipe)
    step = bench.forward()
    with NoHostRead():
        found = ValueHistogram().post_backward(bench.run, step)
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in found.items()}


def bins(found, key):
    """Lower ends of the bins that hold something, with their shares; of zeros "zero"."""
    shares, low = found[f"{key}_histogram"], found[f"{key}_low"]
    assert len(shares) == 2 * BINADES + 3
    named = {"zero": shares[0], "below": shares[1], "above": shares[-1]}
    inner = {2 ** (low + i // 2) * (1.5 if i % 2 else 1.0): s for i, s in enumerate(shares[2:-1])}
    return {k: s for k, s in (named | inner).items() if s}


def test_stored_weights_by_hand():
    """In units of the format: the scale, a power of two, is taken out."""
    found = measure(nn.Sequential(linear(31.0, 1.0, -1.75, 0.0)), {"stored_weight": "E3M4"})
    scale = 31.0 / get_format("E3M4").max
    assert math.log2(scale) == int(math.log2(scale))
    expected = {"zero": 0.25, 24 / scale: 0.25, 1 / scale: 0.25, 1.5 / scale: 0.25}
    assert bins(found, "stored_weight_E3M4") == expected


def test_a_view_is_scaled_to_the_largest_value():
    recipe = {"layers": {"0": {"weight@fwd": "E4M3"}}}
    found = measure(nn.Sequential(linear(448.0, -1.0, 0.001, 0.0)), recipe)
    held = bins(found, "weight@fwd_E4M3")
    assert held == {"zero": 0.25, 384.0: 0.25, 1.0: 0.25, 2**-10: 0.25}
    assert not any(key.startswith("stored") for key in found)


def test_without_a_scale_the_tensor_is_taken_as_it_is():
    """What lies beyond the bins is counted at their ends."""
    cast = {"format": "E7M0", "scaling": "none"}
    model = nn.Sequential(linear(2.0**20, 2.0**-60, 1.0))
    found = measure(model, {"layers": {"*": {"weight@fwd": cast}}})
    third = pytest.approx(1 / 3)
    assert bins(found, "weight@fwd_E7M0") == {"above": third, "below": third, 1.0: third}


@pytest.mark.parametrize("name", ["E0M7", "E2M1", "E4M3", "E5M2", "E7M0", "posit16_2"])
def test_every_format_fits_with_room_above(name):
    fmt = get_format(name)
    low = lowest(fmt, is_scaled=True)
    assert 2.0**low < fmt.max < 2.0 ** (low + BINADES)


def test_weights_are_divided_by_the_scales_of_their_channels():
    """Each row reaches the largest value, however small it is."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[448.0, 7.0], [2.0**-20, 0.0]]))
    cast = {"format": "E4M3", "scaling": "channel"}
    found = measure(nn.Sequential(layer), {"layers": {"*": {"weight@fwd": cast}}})
    assert bins(found, "weight_E4M3") == {384.0: 0.5, 6.0: 0.25, "zero": 0.25}


def test_weights_are_divided_by_the_scales_of_their_blocks():
    """The largest of a block of MX has the exponent of the element's largest value."""
    layer = nn.Linear(64, 1, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0] * 32 + [2.0**-30] * 31 + [0.0]]))
    found = measure(nn.Sequential(layer), {"layers": {"*": {"weight@fwd": "MXFP8-E4M3"}}})
    assert bins(found, "weight_E4M3") == {256.0: 63 / 64, "zero": 1 / 64}


def test_activations_in_blocks_and_channels_are_left_out():
    for cast in ("MXFP8-E4M3", {"format": "E4M3", "scaling": "channel"}):
        model = nn.Sequential(nn.Linear(32, 32, bias=False))
        assert measure(model, {"layers": {"*": {"activation@fwd": cast}}}) == {}


def test_operands_of_a_run_are_recorded(start):
    keys = {"format": "E4M3", "recipe": "master", "value-histogram.interval": 2}
    result = start(["value-histogram"], name="r", **keys)
    metrics = [line for line in _lines(result) if any("value-histogram" in k for k in line)]
    assert [line["step"] for line in metrics] == [1, 2]
    found = Counter(k.partition("_")[0] for line in metrics for k in line if "histogram/" in k)
    operands = ("weight@fwd", "activation@fwd", "gradient@dgrad")
    assert {f"value-histogram/{o}" for o in operands} <= set(found)
    for line in metrics:
        for key, value in line.items():
            if key.endswith("_histogram"):
                assert sum(value) == pytest.approx(1)


def _lines(result):
    from altcore.runs import read_lines

    return read_lines(result.run_directory / "metrics.jsonl")
