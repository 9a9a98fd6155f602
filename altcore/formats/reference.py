"""The slow scalar reference: rounding one number by definition, in exact arithmetic.

Every fast path is tested against this. It knows nothing of floating-point tricks: it finds the
two neighbours in the format's ordered values and decides between them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction

from altcore.errors import BadInput
from altcore.formats.base import Format

# In the order of the compiled kernels, which have no loop for the last: it goes by thresholds.
ROUNDINGS = ("nearest-even", "nearest-away", "to-zero", "up", "down", "stochastic", "log-nearest")
NEAREST_EVEN = "nearest-even"
OVERFLOWS = ("saturate", "inf", "nan", "raise")


def full_rounding(name: str) -> str:
    """Return the name of a rounding; ``nearest`` is short for nearest-even.

    >>> full_rounding("nearest"), full_rounding("up")
    ('nearest-even', 'up')
    """
    return NEAREST_EVEN if name == "nearest" else name


def round_scalar(
    x: float | Fraction,
    fmt: Format,
    rounding: str = "nearest-even",
    overflow: str = "saturate",
    uniform: Fraction | None = None,
    *,
    single: bool = False,
) -> float:
    """Round ``x`` to a value of ``fmt``.

    ``nearest-even`` means the format's own boundaries and rule for ties, which is even unless
    the format says otherwise; ``nearest-away`` takes ties away from zero in every format;
    ``log-nearest`` takes the value with the nearest logarithm, see `log_boundary`. ``uniform``
    in [0, 1) decides stochastic rounding: away from zero when it is below the fraction of the
    interval. ``single``: to `Format.singles`, as tensors of float32 are rounded; the boundaries
    between neighbours stay those of the exact values. NaN gives NaN in every format; an infinity
    follows the overflow rule, by which a number overflows to the infinity on its side; a result
    of zero has the sign of ``x``. Raises `BadInput` for overflow under ``raise``, or
    ``inf``/``nan`` where the format has no such code.

    >>> from altcore.formats import float_format
    >>> round_scalar(1.1, float_format("E3M4", 3, 4))
    1.125
    """
    rounding = full_rounding(rounding)
    if rounding not in ROUNDINGS or overflow not in OVERFLOWS:
        raise BadInput(f"unknown rounding {rounding!r} or overflow {overflow!r}")
    if isinstance(x, float) and math.isnan(x):
        return math.nan
    values, (low_end, high_end) = fmt.singles if single else fmt.values, fmt.beyond
    if isinstance(x, float) and math.isinf(x):
        return _overflowed(x, fmt, values, overflow)
    exact = Fraction(x)
    if exact >= high_end or exact <= low_end:
        return _overflowed(x, fmt, values, overflow)
    i = bisect_left(values, x)
    if i < len(values) and values[i] == x:
        return _signed(values[i], x)
    i = _choose(exact, fmt, values, i, rounding, uniform)
    if i in (-1, len(values)):
        return _overflowed(x, fmt, values, overflow)
    return _signed(values[i], x)


def _choose(
    exact: Fraction,
    fmt: Format,
    values: tuple[float, ...],
    above: int,
    rounding: str,
    uniform: Fraction | None,
) -> int:
    """The index in ``values`` of the neighbour to take; -1 and the length lie beyond."""
    below = above - 1
    if rounding == "up":
        return above
    if rounding == "down":
        return below
    low, high = _value(fmt, values, below), _value(fmt, values, above)
    # The inner neighbour is the one nearer zero; where zero lies midway, the one on x's side.
    inner_is_above = exact >= 0 if high == -low else abs(high) < abs(low)
    inner, outer = (above, below) if inner_is_above else (below, above)
    if rounding == "to-zero":
        return inner
    if rounding == "stochastic":
        if uniform is None:
            raise BadInput("stochastic rounding needs a uniform number")
        inner_value = high if inner_is_above else low
        return outer if uniform * (high - low) < abs(exact - inner_value) else inner
    side = _side(exact, fmt, above, rounding)
    if side:
        return above if side > 0 else below
    if exact == 0 or (rounding != "nearest-away" and fmt.ties == "down"):
        return inner
    if rounding == "nearest-away" or fmt.ties == "up":
        return outer
    # Both even: a format without subnormals, between zero and its first value.
    return outer if is_even(fmt, outer) and not is_even(fmt, inner) else inner


def _side(exact: Fraction, fmt: Format, above: int, rounding: str) -> Fraction:
    """Positive above the point where the rounding changes sides, negative below it, 0 on it."""
    if rounding == "log-nearest":
        return exact * abs(exact) - log_boundary(fmt, above)
    inside = 0 < above < len(fmt.values)
    return exact - (fmt.boundaries[above - 1] if inside else fmt.limits[above > 0])


def log_boundary(fmt: Format, above: int) -> Fraction:
    """Return the point b below value number ``above`` where log-nearest changes sides, as b·|b|.

    The square, because the point itself is irrational in most gaps; with b's sign. It is

    - between two values of one sign their geometric mean, and so between the largest (smallest)
      value and `Format.beyond`;
    - between 0 and the value m next to it the geometric mean of m and m²/n, where the grid would
      go on from n, the value after m, by their ratio instead of to 0. Where no value lies after
      m it is that of m and m/2;
    - between two values of opposite sign 0.

    A format's own `boundaries` and `limits` do not count, its rule for ties does. For the powers
    of two this is the square root of 2 everywhere, as in formats that state it (ExM0-by-log).

    >>> from altcore.formats import table_format
    >>> fmt = table_format("small", [0, 1, 4])  # 4 * 1, and 1 * 1/4
    >>> log_boundary(fmt, 2), log_boundary(fmt, 1)
    (Fraction(4, 1), Fraction(1, 4))
    """
    low, high = _value(fmt, fmt.values, above - 1), _value(fmt, fmt.values, above)
    if low < 0 < high:
        return Fraction(0)
    square = low * high
    if square == 0:
        m, following = (high, above + 1) if low == 0 else (-low, above - 2)
        n = abs(_value(fmt, fmt.values, following))
        square = m**3 / n if n > m else m**2 / 2
    return square if high > 0 else -square


def _value(fmt: Format, values: tuple[float, ...], index: int) -> Fraction:
    if index < 0:
        return fmt.beyond[0]
    return Fraction(values[index]) if index < len(values) else fmt.beyond[1]


def is_even(fmt: Format, index: int) -> bool:
    """Whether a tie goes to the value of this index; beyond each end the parity goes on."""
    if index < 0:
        return not fmt.even[0]
    return fmt.even[index] if index < len(fmt.even) else not fmt.even[-1]


def has_code(fmt: Format, overflow: str) -> bool:
    """Whether a format has the code, if any, that an overflow rule asks for.

    >>> from altcore.formats import float_format
    >>> [has_code(float_format("E3M4", 3, 4), overflow) for overflow in OVERFLOWS]
    [True, False, False, True]
    """
    if overflow == "inf":
        return bool(fmt.inf_codes)
    return overflow != "nan" or bool(fmt.nan_codes)


def no_code(fmt: Format, overflow: str) -> BadInput:
    """The error of asking a format for an infinity or a NaN that it does not have."""
    having = [name for name, codes in (("inf", fmt.inf_codes), ("nan", fmt.nan_codes)) if codes]
    possible = ", ".join(["saturate", *having])
    return BadInput(
        f"format {fmt.name} has no {overflow} code: overflow can be {possible} or raise"
    )


def _signed(value: float, x: float | Fraction) -> float:
    negative = math.copysign(1.0, x) < 0 if isinstance(x, float) else x < 0
    return -0.0 if value == 0 and negative else value


def _overflowed(
    x: float | Fraction, fmt: Format, values: tuple[float, ...], overflow: str
) -> float:
    positive = x > values[0]
    if overflow == "saturate":
        return _signed(values[-1] if positive else values[0], x)
    if overflow == "raise":
        raise BadInput(f"a value overflows format {fmt.name}")
    if not has_code(fmt, overflow):
        raise no_code(fmt, overflow)
    infinity = math.inf if positive else -math.inf
    return infinity if overflow == "inf" else math.nan
