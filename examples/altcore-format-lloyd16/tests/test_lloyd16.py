"""The values are the paper's, and altcore finds and rounds to them."""

from itertools import pairwise

import pytest
import torch
from altcore_format_lloyd16 import LLOYD16

import altcore

MAX_1960 = (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733)
"""The positive values of Max's table for sixteen levels, of a standard normal distribution."""


def test_values_are_those_of_the_paper():
    """To the digits that it prints, over the largest one."""
    expected = [v / MAX_1960[-1] for v in MAX_1960]
    assert LLOYD16.values[8:] == pytest.approx(expected, abs=3e-4)
    assert LLOYD16.values[:8] == tuple(-v for v in reversed(LLOYD16.values[8:]))


def test_altcore_finds_it_by_its_name():
    """The entry point, the format and what people type have one name."""
    assert altcore.get_format("LLOYD16") is LLOYD16
    assert LLOYD16.bits == 4
    assert LLOYD16.max == 1.0


def test_rounds_to_the_nearest_value():
    """Each value stays, and what lies between two values goes to the nearer one."""
    grid = torch.tensor(LLOYD16.values)
    assert torch.equal(altcore.fake_quantize(grid, LLOYD16, scale=1.0), grid)
    between = torch.tensor([a + 0.4 * (b - a) for a, b in pairwise(LLOYD16.values)])
    assert torch.equal(altcore.fake_quantize(between, LLOYD16, scale=1.0), grid[:-1])
