"""Rounding a tensor to a format's grid: scaled or not, counted or not, by a choice of rules."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.formats import Format
from altcore.numerics.backends import rounder_for
from altcore.numerics.rules import NEAREST, UNMETERED, Meters, Rule


def round_to_grid(
    x: Tensor,
    fmt: Format,
    rule: Rule = NEAREST,
    *,
    r: Tensor | None = None,
    meters: Meters = UNMETERED,
    key: int | Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Round each element of ``x * r`` to a value of ``fmt``.

    Args:
        x: any shape, floating point; not modified.
        fmt: a format of single numbers.
        rule: the rounding and the overflow rule.
        r: a tensor that broadcasts to ``x``; 1 if None.
        meters: tensors to which measurements are added; see `COUNTS` and `ERRORS`.
        key: decides the random bits of stochastic rounding: an int, or a 0-dim int64 tensor.
        dtype: that of the result, to which grid values are rounded once if it has not all of
            them; None for the compute dtype (see `compute_dtype`).

    Returns:
        Grid values, unscaled, of ``x``'s shape. NaN gives NaN in every format, an infinity follows
        the overflow rule, and a zero has the sign of ``x``.

    Raises:
        BadInput: for an ``x`` that is not floating-point, an unknown rule, one for which the
            format has no code, meters of another shape, dtype or device, and any overflow under
            the rule ``raise`` (which reads from the device).
    """
    return rounder_for(x, fmt, rule).round(x, r, meters, key, dtype)


def fake_round(
    x: Tensor,
    fmt: Format,
    rule: Rule = NEAREST,
    *,
    r: Tensor | None,
    s: Tensor | None,
    meters: Meters = UNMETERED,
    key: int | Tensor | None = None,
) -> Tensor:
    """Round ``x * r`` to the grid of ``fmt``, multiply by ``s``, round once to ``x``'s dtype.

    ``s`` is the counterpart of ``r`` from `scale_of`. The other arguments, and the errors, are
    those of `round_to_grid`. Returns a tensor like ``x``.
    """
    return rounder_for(x, fmt, rule).fake(x, r, s, meters, key)


def round_scaled(
    x: Tensor,
    fmt: Format,
    rule: Rule = NEAREST,
    *,
    power_of_two: bool = False,
    margin: float = 1.0,
    meets: float | None = None,
    meters: Meters = UNMETERED,
    key: int | Tensor | None = None,
    fake: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round ``x`` by the scale of its own largest magnitude: `amax`, `scale_of` and rounding.

    Returns ``(q, s, r)``: the scales that `scale_of` gives for `amax`, and the result of
    `round_to_grid` or, under ``fake``, of `fake_round`. Arguments and errors are theirs; ``dtype``
    is that of grid values.
    """
    return rounder_for(x, fmt, rule).round_by_amax(
        x, power_of_two, margin, meets, meters, key, fake=fake, dtype=dtype
    )
