"""Curves of runs, and bands over their seeds, thinned to what a screen shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore_reporters.pictures.groups import by_seed

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

POINTS = 500
"""Points of a curve: more than a screen can show apart."""
UNIT = 1074
"""The least positive float is 2 to the power of minus this."""


@frozen
class Curve:
    """A measure of one run over its steps."""

    name: str
    """The run's."""
    steps: Sequence[int]
    values: Sequence[float]

    @property
    def finite(self) -> list[float]:
        """The values that can be drawn."""
        return [v for v in self.values if math.isfinite(v)]


@frozen
class Band:
    """A measure of several seeds over their steps: mean, least and greatest.

    At each step of those seeds that have a finite value there; NaN where none has. Several runs of
    one seed count as their mean.
    """

    steps: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def curve_of(record: RunRecord, key: str, limit: int | None = POINTS) -> Curve:
    """Return the curve of a key of the run's metrics, empty if no line has it.

    Args:
        record: the run.
        key: of metrics.jsonl: ``loss``, ``val_loss``, ``ulp-stats/stored_mean`` and so on.
        limit: the most points to keep, see `thinned`; None for all.
    """
    steps, values = _points(record, key)
    kept = _kept(limit, values)
    return Curve(record.name, [steps[i] for i in kept], [values[i] for i in kept])


def band_of(
    records: Sequence[RunRecord], key: str, limit: int | None = POINTS, window: int = 1
) -> Band:
    """Return mean, least and greatest of a key over runs that repeat one another.

    Args:
        records: the runs.
        key: of metrics.jsonl.
        limit: the most points to keep, see `thinned`; None for all.
        window: how many points of a run are averaged first, see `smoothed`.
    """
    at: dict[int, dict[str, list[float]]] = {}
    for seed, record in ((seed, r) for seed, own in by_seed(records).items() for r in own):
        steps, values = _points(record, key)
        for step, value in zip(steps, smoothed(values, window), strict=True):
            known = at.setdefault(step, {})
            if math.isfinite(value):
                known.setdefault(seed, []).append(value)
    steps = sorted(at)
    found = [[_mean(own) for own in at[step].values()] for step in steps]
    means = [_mean(each) for each in found]
    lows, highs = _over(min, found), _over(max, found)
    kept = _kept(limit, lows, highs)
    return Band(*([column[i] for i in kept] for column in (steps, means, lows, highs)))


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the finite values around each one; one that is not finite stays.

    >>> smoothed([0.0, 3.0, math.nan, 1.0, 2.0], window=3)
    [1.5, 1.5, nan, 1.5, 1.5]
    """
    if window < 2:
        return list(values)
    half, found = window // 2, []
    # A value comes and one goes, however wide the window is. The sum is exact: in floats it would
    # stay wrong after a value of 1e20.
    total = count = 0
    for i in range(-half, len(values)):
        for at, sign in ((i + half, 1), (i - half - 1, -1)):
            if 0 <= at < len(values) and math.isfinite(values[at]):
                total += sign * _units(values[at])
                count += sign
        if i >= 0:
            is_known = math.isfinite(values[i])
            found.append(total / (count << UNIT) if is_known else values[i])
    return found


def _units(value: float) -> int:
    """Return a finite value in units of the least float, of which it is a whole number."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (UNIT + 1 - denominator.bit_length())


def thinned(values: Sequence[float], limit: int = POINTS) -> list[int]:
    """Return the indices of at most ``limit`` values that look the same when drawn.

    Kept are the first and the last one, and of each stretch between them its least and greatest
    value, and the first that is NaN, at which the curve breaks.

    >>> thinned([5, 1, 9, 3, 4, 2, 2, 3, 0, 2], limit=6)
    [0, 1, 2, 7, 8, 9]
    """
    return _kept(limit, values)


def _kept(limit: int | None, *columns: Sequence[float]) -> list[int]:
    """`thinned` of several columns with one index: extremes of each are kept."""
    number = len(columns[0])
    if limit is None or number <= limit:
        return list(range(number))
    is_broken = any(not math.isfinite(v) for column in columns for v in column)
    each = 2 * len(columns) + is_broken
    stretches = max(1, (limit - 2) // each)
    found = {0, number - 1}
    for k in range(stretches):
        own = range(
            1 + k * (number - 2) // stretches,
            1 + (k + 1) * (number - 2) // stretches,
        )
        for column in columns:
            finite = [i for i in own if math.isfinite(column[i])]
            if finite:
                found |= {min(finite, key=column.__getitem__), max(finite, key=column.__getitem__)}
            if len(finite) < len(own):
                found.add(next(i for i in own if not math.isfinite(column[i])))
    return sorted(found)


def _points(record: RunRecord, key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of the lines that have the key."""
    steps, values = [], []
    for line in record.metrics:
        value: Any = line.get(key)
        if isinstance(value, int | float):
            steps.append(line["step"])
            values.append(float(value))
    return steps, values


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _over(
    choose: Callable[[Sequence[float]], float], found: Sequence[Sequence[float]]
) -> list[float]:
    return [choose(each) if each else math.nan for each in found]
