"""Counts and errors of what is rounded."""

import math

import pytest
import torch
from format_checks import PATHS, path
from grid_formats import E4M3

import altcore
from altcore.formats import get_format, round_scalar, table_format
from altcore.numerics import COUNTS, Meters, Rule, fake_blocks, round_to_grid


@pytest.mark.parametrize("way", PATHS)
def test_counts_add_up(way):
    """Infinities are not finite and so no overflow; -0 and 0 are not flushed."""
    x = torch.tensor(
        [0.0, -0.0, 2.0**-11, -(2.0**-11), 464.0, 465.0, -1e30, 1e38, math.inf, math.nan]
    )
    counts = torch.tensor([100, 0, 0, 0])
    with path(way):
        round_to_grid(x, E4M3, meters=Meters(counts))
        assert dict(zip(COUNTS, counts.tolist(), strict=True)) == {
            "elements": 110,
            "overflow": 3,
            "flushed": 2,
            "nonfinite": 2,
        }
        counts.zero_()
        # a finite number whose scaled value is infinite overflows; one that underflows is flushed
        r = torch.tensor(1e10)
        round_to_grid(x, E4M3, r=r, meters=Meters(counts))
        assert counts.tolist() == [10, 6, 0, 2]
        counts.zero_()
        round_to_grid(x, E4M3, r=torch.tensor(1e-42), meters=Meters(counts))
        assert counts.tolist() == [10, 0, 6, 2]
        counts.zero_()
        r = torch.tensor(math.nan)
        assert torch.isnan(round_to_grid(x, E4M3, r=r, meters=Meters(counts))).all()
        assert counts.tolist() == [10, 0, 0, 2]
        counts.zero_()
        # values below a table's smallest overflow it, even to zero
        natural = table_format("natural", [0, 1, 2])
        round_to_grid(torch.tensor([-5.0, 0.2, -0.2, 0.0]), natural, meters=Meters(counts))
        assert counts.tolist() == [4, 1, 2, 0]


@pytest.mark.parametrize("way", PATHS)
def test_nearest_is_nearest_even(way):
    """Wherever a rounding is named: tensors, blocks, codes, packing, the reference, a `Rule`."""
    x = torch.linspace(-3, 3, 64)
    for call in (
        lambda name: altcore.quantize(x, "E3M4", rounding=name)[0],
        lambda name: altcore.fake_quantize(x, "E3M4", rounding=name),
        lambda name: altcore.fake_quantize(x, "MXFP4", rounding=name),
        lambda name: altcore.encode(x, "E3M4", rounding=name)[0],
        lambda name: altcore.pack(x, "E3M4", rounding=name).codes,
        lambda name: round_to_grid(x, get_format("E3M4"), Rule(name)),
        lambda name: round_to_grid(x.double(), get_format("E3M4"), Rule(name)),
        lambda name: fake_blocks(x, get_format("MXFP4"), Rule(name)),
    ):
        with path(way):
            assert torch.equal(call("nearest"), call("nearest-even"))
    assert round_scalar(1.1, get_format("E3M4"), "nearest") == 1.125
