"""The diagnostic ``overflow``: counts by hand, and those of the core by operand."""

import math

import pytest
import torch
from helpers_diagnostics import Bench, linear, square
from torch import nn

import altcore
from altcore import hookimpl
from altcore.quantization import Quantization
from altcore_diagnostics.overflow import Overflow, smallest_normal

NONE = {"format": "E3M4", "scaling": "none"}
"""31 is the largest value, 1/4 the smallest normal one, 1/64 the smallest."""


def of(found, measure, operand="", layer=""):
    name = f"{operand}_{measure}" if operand else measure
    return found[f"{name}/{layer}" if layer else name]


def test_shares_by_hand():
    """Inputs 100 and 31 (the first overflows), 1/8 (subnormal), 2^-8 (flushed), 0 and 1."""
    bench = Bench(nn.Sequential(linear(*[1.0] * 6)), {"layers": {"0": {"activation@fwd": NONE}}})
    x = torch.tensor([[100.0, 31.0, 1 / 8, 2.0**-8, 0.0, 1.0]])
    found = bench.gradients(Overflow(), x=x)
    for place in ("", "0"):
        for operand in ("", "activation@fwd"):
            assert of(found, "overflow_share", operand, place) == pytest.approx(1 / 6)
            assert of(found, "clip_share", operand, place) == pytest.approx(1 / 6)
            assert of(found, "flush_share", operand, place) == pytest.approx(1 / 6)
            assert of(found, "underflow_share", operand, place) == pytest.approx(2 / 6)
            noise, signal = 69**2 + 2.0**-16, float(x.double().square().sum())
            assert of(found, "sqnr_db", operand, place) == pytest.approx(
                10 * math.log10(signal / noise)
            )


def test_what_rounds_up_to_the_smallest_normal_value_does_not_underflow():
    """Just below 1/4 there is 15/64, and a number above the middle is a normal one."""
    bench = Bench(nn.Sequential(linear(1.0, 1.0)), {"layers": {"0": {"activation@fwd": NONE}}})
    found = bench.gradients(Overflow(), x=torch.tensor([[31 / 128 + 1e-3, 31 / 128 - 1e-3]]))
    assert of(found, "underflow_share") == 0.5


def test_overflow_is_not_applicable_under_amax():
    """It cannot happen: there is no 0 that would say that it could have."""
    bench = Bench(nn.Sequential(linear(3.0, 1.0)), {"layers": {"0": {"weight@fwd": "E3M4"}}})
    found = bench.gradients(Overflow())
    assert not any("overflow" in key or "clip" in key for key in found)
    assert of(found, "flush_share", "weight@fwd", "0") == 0


def test_what_may_overflow_is_not_diluted():
    """A layer under amax does not count in the shares of overflow, though in those of flushing."""
    model = nn.Sequential(square(1.0), linear(100.0, 1.0))
    found = Bench(
        model, {"layers": {"0": {"weight@fwd": "E3M4"}, "1": {"weight@fwd": NONE}}}
    ).gradients(Overflow())
    assert of(found, "overflow_share") == of(found, "overflow_share", "weight@fwd", "1") == 0.5
    assert "overflow_share/0" not in found
    assert of(found, "flush_share") == 0


def test_only_saturation_is_clipping():
    recipe = {"layers": {"0": {"weight@fwd": {"format": "E5M2", "scaling": "none"}}}}
    recipe["layers"]["0"]["weight@fwd"]["overflow"] = "inf"
    found = Bench(nn.Sequential(linear(1e6, 1.0)), recipe).gradients(Overflow())
    assert of(found, "overflow_share") == 0.5
    assert not any("clip" in key for key in found)


def test_blocks_may_clip():
    """MXFP4 takes 7 at a scale of 1 (floor), where 6 is the largest value; their scales vary."""
    bench = Bench(nn.Sequential(linear(*[7.0] * 16, *[1.0] * 16)), {"weight": "MXFP4"})
    bench.q.remove()
    model = nn.Sequential(linear(*[7.5] * 16, *[1.0] * 16), nn.Linear(1, 1))
    found = Bench(model, {"layers": {"0": {"weight@fwd": "MXFP4"}}}).gradients(Overflow())
    assert of(found, "clip_share", "weight@fwd", "0") == 0.5
    assert "underflow_share" not in found


def test_stored_weights_are_not_quantized_again():
    model = nn.Sequential(linear(31.0, 1.0))
    both = {"layers": {"0": {"weight": "E3M4", "stored_weight": "E3M4"}}}
    assert Bench(model, both).gradients(Overflow()) == {}


def test_the_sqnr_of_several_tensors():
    """Ratios of noise to signal are averaged: a layer a thousand times larger weighs the same."""
    torch.manual_seed(0)
    small, large = torch.randn(64), 1000 * torch.randn(64)
    model = nn.ModuleList([linear(*w.tolist()) for w in (small, large)])
    model.forward = lambda x: sum(layer(x) for layer in model)
    found = Bench(
        model, {"layers": {"0": {"weight@fwd": "E2M1"}, "1": {"weight@fwd": "E4M3"}}}
    ).gradients(Overflow())
    each = [of(found, "sqnr_db", "", str(i)) for i in range(2)]
    for got, w, fmt in zip(each, (small, large), ("E2M1", "E4M3"), strict=True):
        error = altcore.fake_quantize(w, fmt, "amax") - w
        assert got == pytest.approx(
            float(10 * torch.log10(w.square().sum() / error.square().sum())), rel=1e-4
        )
    ratio = sum(10 ** (-db / 10) for db in each) / 2
    assert of(found, "sqnr_db") == pytest.approx(-10 * math.log10(ratio))


def test_tensors_of_zeros_have_no_sqnr():
    """They are left out of the whole; what is represented exactly has an infinite one."""
    model = nn.Sequential(square(0.0), linear(1.0, 2.0))
    e3m4 = {"weight@fwd": "E3M4"}
    found = Bench(model, {"layers": {"*": e3m4}}).gradients(Overflow())
    assert math.isnan(of(found, "sqnr_db", "", "0"))
    assert of(found, "sqnr_db") == of(found, "sqnr_db", "", "1") == math.inf


@pytest.mark.parametrize(
    ("name", "expected"),
    [("E4M3", 2.0**-6), ("E7M0", 2.0**-62), ("E0M7", None), ("posit8_1", None), ("INT8", None)],
)
def test_smallest_normal(name, expected):
    assert smallest_normal(altcore.get_format(name)) == expected


@pytest.mark.parametrize("recipe", ["master", "original"])
def test_in_a_run(start, shelf, recipe):
    """Per layer and operand these are the core's statistics; a watcher reads them on the host."""
    import attrs

    seen = []

    @attrs.define(eq=False)
    class Watcher:
        @hookimpl
        def post_backward(self, run, step):
            if step.index == 2:
                seen.extend(run.quantization.stats())

    shelf.install("diagnostic", "watcher", Watcher)
    interval = {"overflow__interval": 2}
    plugins = ["overflow", "watcher"]
    *_, line = start(plugins, format="E3M4", recipe=recipe, **interval).diagnostics_history
    rows = [row for row in seen if "sqnr_db" in row]
    assert rows
    for row in rows:
        place = (row["operand"], row["layer"])
        key = "overflow/{0}_{2}/{1}".format
        assert line[key(*place, "sqnr_db")] == pytest.approx(row["sqnr_db"])
        assert line[key(*place, "flush_share")] == row["flushed"] / row["elements"]
        overflow = line.get(key(*place, "overflow_share"))
        assert overflow == (None if row["overflow"] is None else row["overflow"] / row["elements"])
        if place[0] != "weight_gradient":
            assert line[key(*place, "underflow_share")] >= line[key(*place, "flush_share")]
    met = sum(row["flushed"] for row in rows) / sum(row["elements"] for row in rows)
    assert line["overflow/flush_share"] == pytest.approx(met)


def test_errors_are_measured_on_due_steps_only(start, monkeypatch):
    """The need turns the sums on, for the steps where somebody is due."""
    found, begin = [], Quantization.begin_step

    def spy(self, step, **keys):
        found.append((step, keys["errors"]))
        begin(self, step, **keys)

    monkeypatch.setattr(Quantization, "begin_step", spy)
    start(["overflow"], format="E3M4", max_steps=4, overflow__interval=2)
    assert found == [(1, True), (2, True), (3, False), (4, True)]
