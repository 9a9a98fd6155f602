"""Counterfactual casts: rounded stochastically, or in a format extended above, below, or finer.

Since casts are data, an experiment can answer "rounding, too large, too small or too coarse": run
the guilty operand again, with a cast that differs in that alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

from attrs import evolve

from altcore.formats import (
    MAX_BITS,
    AnyFormat,
    BlockFormat,
    FloatFormat,
    Format,
    Stochastic,
    float_format,
    table_format,
)
from altcore.recipes import Cast, Scaling

STOCHASTIC = "stochastic"
CAUSES = (STOCHASTIC, "above", "below", "finer")
"""Rounding, values beyond the largest, values below the smallest, and too coarse within its range;
the cheapest to repair first."""
CAUSE_CHANGE = {
    STOCHASTIC: "stochastic rounding",
    "above": "a format that reaches higher",
    "below": "a format that reaches lower",
    "finer": "a format with two more mantissa bits",
}
RANGE = ("above", "below")
FORMATS = (*RANGE, "finer")
"""The causes for which another format is the change."""
RESCALED = "scaled by its exact amax"
_BINADES = 16  # how far a table is extended
_PARTS = 4  # of each interval, for two more bits
_LARGEST, _SMALLEST = 2.0**127, 2.0**-133
"""Beyond these nothing is lost in products of float32 that is not lost without the format."""


@cache
def is_fixed_point(fmt: Format) -> bool:
    """Return whether all intervals are equal, so that finer means reaching lower."""
    signs = [[v for v in fmt.values if v >= 0], [v for v in fmt.values if v <= 0]]
    steps = {b - a for values in signs for a, b in itertools.pairwise(values)}
    return len(steps) == 1


def variants(cast: Cast) -> dict[str, Cast]:
    """Return the casts that could replace one, by cause, if they make sense for it.

    The scale stays the same, so numbers reach the new largest value only if some lie there. If
    nothing can overflow, there is no variant above. In fixed point, ``finer`` stands for ``below``,
    too. A format that reaches as far as float32, or has the largest possible width, cannot be
    extended that way.
    """
    element = cast.element
    made: dict[str, Cast] = {}
    unbiased = evolve(cast, rounding=STOCHASTIC, stochastic=Stochastic())
    if unbiased != cast:
        made[STOCHASTIC] = unbiased
    has_code = element.bits < MAX_BITS
    if has_code and element.max < _LARGEST and not cast.uses_amax and cast.blocks is None:
        made["above"] = _with(cast, above(element))
    if has_code and element.smallest > _SMALLEST and not is_fixed_point(element):
        made["below"] = _with(cast, below(element))
    if element.bits + 2 <= MAX_BITS:
        made["finer"] = _with(cast, finer(element))
    return made


def to(cause: str) -> Callable[[Cast], Cast]:
    """Return the change of a cast to its variant for a cause, if it has one."""
    return lambda cast: variants(cast).get(cause, cast)


def rescaled(cast: Cast) -> Cast:
    """Return the cast with the exact amax of each tensor, or channel, as its scale.

    Block formats and blocks have theirs.
    """
    if cast.blocks is not None:
        return cast
    kind = "channel" if cast.scaling.kind == "channel" else "tensor"
    return evolve(cast, scaling=Scaling(kind, power_of_two=cast.scaling.power_of_two))


def _with(cast: Cast, element: Format) -> Cast:
    """Return the cast with another element format, at the same scale."""
    fmt: AnyFormat = element
    if isinstance(cast.format, BlockFormat):
        # The rule goes by the element's largest value, which may have moved within its binade.
        fmt = evolve(cast.format, name=f"{cast.format.name}*{element.name}", element=element)
        return evolve(cast, format=fmt)
    scaling = cast.scaling
    if scaling.kind in ("tensor", "channel", "delayed") and not scaling.power_of_two:
        ratio = element.max / cast.element.max
        scaling = evolve(scaling, margin=scaling.margin * ratio)
    return evolve(cast, format=fmt, scaling=scaling)


@cache
def above(fmt: Format) -> Format:
    """Extend above the largest value: one more exponent bit, or sixteen more binades."""
    name = f"{fmt.name}+above"
    if isinstance(fmt, FloatFormat) and fmt.exponent_bits:
        return float_format(name, fmt.exponent_bits + 1, fmt.mantissa_bits, bias=fmt.bias)

    def more(side: list[float]) -> list[float]:
        pattern = [v for v in side if v > side[-1] / 2]
        return [v * 2.0**k for k in range(1, _BINADES + 1) for v in pattern]

    return _extended(name, fmt, more)


@cache
def below(fmt: Format) -> Format:
    """Extend below the smallest value: one more exponent bit, or sixteen more binades."""
    name = f"{fmt.name}+below"
    if isinstance(fmt, FloatFormat) and fmt.exponent_bits:
        bits, bias = fmt.exponent_bits + 1, fmt.bias + 2**fmt.exponent_bits
        wide = float_format(name, bits, fmt.mantissa_bits, bias=bias)
        return table_format(name, [v for v in wide.values if abs(v) <= fmt.max])

    def more(side: list[float]) -> list[float]:
        # The relative pattern of the fullest binade, carried on downwards.
        binades: dict[int, list[float]] = {}
        for v in side:
            binades.setdefault(_exponent(v), []).append(v)
        low = min(binades)
        exponent, pattern = max(binades.items(), key=lambda item: len(item[1]))
        lower = [v * 2.0 ** (low - k - exponent) for k in range(_BINADES) for v in pattern]
        return [v for v in lower if v < side[0]]

    return _extended(name, fmt, more)


@cache
def finer(fmt: Format) -> Format:
    """Give two more mantissa bits between the smallest and the largest value.

    In fixed point these reach down to 0, which is its only way to be finer.
    """
    start = [0.0] if is_fixed_point(fmt) else []

    def more(side: list[float]) -> list[float]:
        return [
            a + (b - a) * part / _PARTS
            for a, b in itertools.pairwise([*start, *side])
            for part in range(1, _PARTS)
        ]

    return _extended(f"{fmt.name}+finer", fmt, more)


def _extended(name: str, fmt: Format, more: Callable[[list[float]], list[float]]) -> Format:
    """Return the format's values with ``more`` magnitudes, ascending, for each sign."""
    values = set(fmt.values)
    for sign in (1.0, -1.0):
        side = sorted(sign * v for v in fmt.values if sign * v > 0)
        values |= {sign * v for v in (more(side) if side else [])}
    return table_format(name, sorted(values))


def _exponent(value: float) -> int:
    return math.frexp(value)[1]
