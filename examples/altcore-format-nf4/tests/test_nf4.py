"""The values are the paper's, and altcore finds and rounds to them."""

from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from altcore_format_nf4 import NF4

import altcore


def test_values_are_quantiles_of_a_normal_distribution():
    """The paper's construction: eight positive and seven negative quantiles, and zero."""
    # From halfway between 1 - 1/30 and 1 - 1/32, evenly down to 1/2.
    top = 1 - (1 / 30 + 1 / 32) / 2

    def quantiles(count):
        probabilities = [top + (0.5 - top) * i / count for i in range(count)]
        found = [NormalDist().inv_cdf(p) for p in probabilities]
        return [q / found[0] for q in found]

    expected = sorted([*quantiles(8), 0.0, *(-q for q in quantiles(7))])
    assert NF4.values == pytest.approx(expected, abs=2e-7)


def test_altcore_finds_it_by_its_name():
    """The entry point, the format and what people type have one name."""
    assert altcore.get_format("NF4") is NF4
    assert NF4.bits == 4
    assert NF4.max == 1.0


def test_rounds_to_the_nearest_value():
    """Each value stays, and what lies between two values goes to the nearer one."""
    grid = torch.tensor(NF4.values)
    assert torch.equal(altcore.fake_quantize(grid, NF4, scale=1.0), grid)
    between = torch.tensor([a + 0.4 * (b - a) for a, b in pairwise(NF4.values)])
    assert torch.equal(altcore.fake_quantize(between, NF4, scale=1.0), grid[:-1])
