"""Axes: from values to the share of an axis, and the ticks on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attrs import frozen

from altcore_reporters.page.words import NONE, number

LOG_RATIO = 50.0
"""An axis is logarithmic if the greatest value is more than so many times the least."""


@frozen
class Axis:
    """A scale from ``low`` to ``high``."""

    low: float
    high: float
    is_log: bool = False
    is_share: bool = False
    """Whether values are shares, to be told in percent."""
    is_whole: bool = False
    """Whether only whole numbers are values."""

    def at(self, value: float) -> float:
        """Return where a value lies: 0 at ``low``, 1 at ``high``; not limited to them."""
        low, high, value = (self._place(v) for v in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Return places in 0..1 and labels of round values, some ``about`` of them."""
        values = _powers(self.low, self.high, about) if self.is_log else []
        if len(values) < 2:
            values = _round_values(self.low, self.high, about)
        if self.is_whole:
            values = [v for v in values if v == round(v)]
        return [(self.at(v), self.word(v)) for v in values]

    def word(self, value: float | None) -> str:
        """Return a value in words."""
        if value is None:
            return NONE
        return f"{number(100 * value)} %" if self.is_share else number(value)

    def _place(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_log and math.isfinite(value) else value


def axis_of(values: Iterable[float], *, is_share: bool = False, may_be_log: bool = False) -> Axis:
    """Return an axis that holds the values; they are finite, and there is one at least."""
    known = list(values)
    low, high = min(known), max(known)
    if may_be_log and low > 0 and high > LOG_RATIO * low:
        return Axis(low / 1.1, high * 1.1, is_log=True, is_share=is_share)
    if is_share:
        low, high = 0.0, min(1.0, high * 1.08)
        return Axis(low, high if high > 0 else 0.01, is_share=True)
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    bottom = low - room
    return Axis(0.0 if low >= 0 > bottom else bottom, high + room)


def steps_axis(steps: Sequence[int]) -> Axis:
    """Return the axis of steps."""
    low, high = min(steps), max(steps)
    return Axis(low, high if high > low else low + 1, is_whole=True)


def _round_values(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / max(1, about)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _powers(low: float, high: float, about: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    each = max(1, math.ceil((last - first + 1) / max(1, about)))
    return [10.0**k for k in range(first, last + 1, each)]
