"""Stochastic rounding: random bits by key and index, and the mean."""

import math

import pytest
import torch
from format_checks import PATHS, assert_same, path
from grid_formats import BF16, E0M7, E4M3, E7M0, FLAT, NF, WIDE

from altcore.numerics import Rule, compute_dtype, round_to_grid
from altcore.numerics.hashing import random_bits


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("fmt", [E4M3, E7M0, E0M7, FLAT, NF, BF16, WIDE], ids=str)
def test_stochastic_mean(fmt, way):
    """The mean of many draws is the number itself, within 5 standard errors.

    A correct implementation fails one of these 5 × 14 cases with a probability of 4e-5.
    """
    n = 40000
    dtype = compute_dtype(torch.float32, fmt)
    for key, share in enumerate((0.01, 0.25, 0.5, 0.9, 0.999)):
        i = fmt.index_of(fmt.smallest) + key % 2
        low, high = fmt.values[i], fmt.values[i + 1]
        x = torch.full((n,), low + share * (high - low), dtype=dtype)
        with path(way):
            q = round_to_grid(x, fmt, Rule("stochastic"), key=1000 + key)
        up = (q == torch.tensor(high, dtype=dtype)).double().mean().item()
        error = math.sqrt(share * (1 - share) / n)
        assert abs(up - share) < 5 * error + 2.0**-16
        assert ((q.double() - low).abs() < 1e-6 * abs(low)).double().mean() == pytest.approx(1 - up)


@pytest.mark.parametrize("way", PATHS)
def test_draws_depend_on_key_and_index_only(way):
    """Same key, same draws, in any shape, as int or tensor; other keys are independent."""
    x = torch.full((64, 1000), 1.0625)
    with path(way):
        draw = round_to_grid(x, E4M3, Rule("stochastic"), key=3)
        again = round_to_grid(x.view(-1), E4M3, Rule("stochastic"), key=torch.tensor(3))
        assert_same(draw.flatten(), again)
        part = round_to_grid(x.view(-1)[:777], E4M3, Rule("stochastic"), key=3)
        assert_same(draw.flatten()[:777], part)
        others = [round_to_grid(x, E4M3, Rule("stochastic"), key=k) for k in (4, -3, 2**40 + 3)]
    for other in others:
        agreement = (draw == other).double().mean().item()
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(x.numel())


def test_random_bits_are_random():
    """Bits, neighbours and blocks of the hash look random, within 5 standard errors each."""
    n = 1 << 17
    for key in (0, 1, 2**62):
        h = random_bits(torch.Size([n]), key, torch.device("cpu")).long() & 0xFFFFFFFF
        bits = ((h[:, None] >> torch.arange(9, 32)) & 1).double().mean(0)
        assert ((bits - 0.5).abs() * 2 * math.sqrt(n) < 5).all()
        u = (h.double() + 0.5) / 2**32 - 0.5
        for lag in (1, 2, 3, 7, 64, 768, 1024, 4096):
            assert abs((u[lag:] * u[:-lag]).mean().item()) * 12 * math.sqrt(n - lag) < 5
        cells = torch.bincount((h[1:] >> 25) * 128 + (h[:-1] >> 25), minlength=1 << 14).double()
        expected = (n - 1) / (1 << 14)
        chi = ((cells - expected) ** 2 / expected).sum().item()
        assert abs(chi - (1 << 14)) < 5 * math.sqrt(2 * (1 << 14))
