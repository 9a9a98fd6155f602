"""Data as a quantizer sees it: the share of numbers beyond a point, and their two moments.

For named distributions these are integrals of the density, exact up to float64's rounding. For a
tensor they are sums over its elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import TypeAlias

import torch
from attrs import frozen
from torch import Tensor

NUMBERS = 1 << 18
"""The size of a tensor whose largest magnitude is a named distribution's amax."""
FAR = 1e100  # stands for infinity, whose products with 0 are NaN

Tails: TypeAlias = Callable[[Tensor], Tensor]
"""From points, float64 (n,) and not negative, to the moments beyond them: float64 (3, n).

Row k is the integral of ``x**k`` times the density, from each point to infinity.
"""


@frozen(eq=False, slots=False)
class Distribution:
    """The tails of positive numbers, those of negative numbers' magnitudes, and amax.

    Zeros count as positive numbers. A distribution's ``amax`` is the median largest magnitude of
    `NUMBERS` numbers.
    """

    positive: Tails
    negative: Tails
    amax: float

    @cached_property
    def moments(self) -> tuple[float, float, float]:
        """1, the mean magnitude, and the mean square."""
        start = torch.zeros(1, dtype=torch.float64)
        one, mean, square = (self.positive(start) + self.negative(start)).flatten().tolist()
        return one, mean, square

    @property
    def signal(self) -> float:
        """The mean square."""
        return self.moments[2]

    def within(self, largest: float) -> float:
        """Return the share of numbers whose magnitude is at most ``largest``."""
        end = torch.tensor([largest], dtype=torch.float64)
        return 1 - float((self.positive(end) + self.negative(end))[0])

    def up_to_amax(self) -> Distribution:
        """Return the distribution of the numbers whose magnitude is at most amax."""
        share = self.within(self.amax)

        @cache
        def cut(tails: Tails) -> Tails:
            beyond = tails(torch.tensor([self.amax], dtype=torch.float64))
            return lambda t: (tails(t.clamp(max=self.amax)) - beyond) / share

        return Distribution(cut(self.positive), cut(self.negative), self.amax)


def _normal(t: Tensor) -> Tensor:
    density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    share = torch.erfc(t / math.sqrt(2)) / 2
    return torch.stack([share, density, t * density + share])


def _uniform(t: Tensor) -> Tensor:
    t = t.clamp(max=1)
    return torch.stack([(1 - t) / 2, (1 - t**2) / 4, (1 - t**3) / 6])


def _laplace(t: Tensor) -> Tensor:
    density = torch.exp(-t) / 2
    return torch.stack([density, (t + 1) * density, (t * t + 2 * t + 2) * density])


def _student(t: Tensor) -> Tensor:
    """Student's t with 5 degrees of freedom; with x = √5 cot φ its density is ∝ sin(φ)⁴ dφ."""
    angle = torch.atan2(torch.full_like(t, math.sqrt(5)), t)
    fourth = (4 * angle).sin()
    share = (12 * angle - 8 * (2 * angle).sin() + fourth) / 32
    # Far out these terms cancel; by their series a small share has all its digits, too.
    square, series = angle.square(), torch.zeros_like(angle)
    for k in range(14, 1, -1):
        term = (-1) ** k * (16**k - 4 * 4**k) / (8 * math.factorial(2 * k) * (2 * k + 1))
        series = series * square + term
    share = torch.where(angle < 0.5, series * square.square() * angle, share)
    second = 5 * (angle / 8 - fourth / 32)
    return torch.stack([share, math.sqrt(5) / 4 * angle.sin() ** 4, second]) * (8 / (3 * math.pi))


NAMES: dict[str, Tails] = {
    "normal": _normal,
    "uniform": _uniform,
    "laplace": _laplace,
    "t5": _student,
}
"""The standard normal, uniform on [-1, 1], Laplace of scale 1, Student's t with 5 degrees."""


@cache
def named(name: str) -> Distribution:
    """Return the distribution of that name, one of `NAMES`. Finds its amax by bisection."""
    tails, share = NAMES[name], -math.expm1(math.log(0.5) / NUMBERS)
    low, high = 0.0, 1e3  # of which fewer is beyond, in all of them
    while low < (middle := (low + high) / 2) < high:
        beyond = 2 * float(tails(torch.tensor([middle], dtype=torch.float64))[0])
        low, high = (middle, high) if beyond > share else (low, middle)
    return Distribution(tails, tails, low)


def of_elements(x: Tensor) -> Distribution:
    """Return the distribution of a tensor's elements, which are finite."""
    x = x.flatten().double()

    def tails(magnitudes: Tensor) -> Tails:
        ordered = magnitudes.sort().values
        # From the top, so that small tails are sums of their own elements only.
        sums = [torch.nn.functional.pad(_from_top(ordered**k), (0, 1)) for k in range(3)]
        beyond = torch.stack(sums) / x.numel()
        return lambda t: beyond[:, torch.searchsorted(ordered, t)]

    return Distribution(tails(x[x >= 0]), tails(-x[x < 0]), float(x.abs().amax()))


def _from_top(x: Tensor) -> Tensor:
    return x.flip(0).cumsum(0).flip(0)
