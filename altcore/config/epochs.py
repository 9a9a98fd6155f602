"""What a configuration says in epochs, and the keys in steps that come of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from altcore.errors import DEFAULT, BadInput, Source, shown

IN_STEPS = {
    "epochs": "max_steps",
    "warmup_epochs": "warmup_steps",
    "evals_per_epoch": "eval_interval",
}
"""Keys in epochs, and those in steps that are computed from them."""


class Unasked(int):
    """A number of steps that nobody gave: the default of a key that may also be said in epochs."""


def refuse_both(
    plain: Mapping[str, Any], sources: Mapping[str, Source | None]
) -> Mapping[str, Any]:
    """Return plain keys without the defaults of steps that are given in epochs.

    Raises `BadInput` if a key is given in steps and in epochs. The record of a run holds both, and
    the steps of its epoch: there nobody gave the first.
    """
    left_out = set()
    for key, steps in IN_STEPS.items():
        if plain.get(key) is None or steps not in plain:
            continue
        is_recorded = plain.get("steps_per_epoch") is not None
        if sources.get(steps) is DEFAULT:
            left_out.add(steps)
        elif not is_recorded or _place(sources, steps) != _place(sources, "steps_per_epoch"):
            raise given_twice(key, sources.get(steps))
    return {k: v for k, v in plain.items() if k not in left_out}


def given_twice(key: str, also: Source | None = None) -> BadInput:
    """Return the error of a key in epochs whose steps are given, too."""
    where = f", {also}" if also else ""
    hint = f"leave one of them out, or set {key} to null"
    return BadInput(f"{IN_STEPS[key]} is given, too{where}", key=key, hint=hint)


def without_uncounted(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a plain configuration without the steps that are yet to be computed from epochs."""
    uncounted = {IN_STEPS[key] for key in IN_STEPS if plain[key] is not None}
    is_counted = plain["steps_per_epoch"] is not None
    return plain if is_counted else {k: v for k, v in plain.items() if k not in uncounted}


def _place(sources: Mapping[str, Source | None], key: str) -> str:
    """Return the file or flag by which a key is given, for a comparison."""
    source = sources.get(key)
    return f"{source.file} {source.flag}" if source else ""


def read_interval(value: Any, key: str) -> int | Fraction | None:
    """Return an interval: steps as an int, and epochs, such as ``0.25 epoch``, as a fraction.

    None stays None. Raises `BadInput`, naming ``key``, for a value that says neither.

    >>> read_interval("1/4 epoch", "stiffness.interval"), read_interval("50 steps", "a.interval")
    (Fraction(1, 4), 50)
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    number, _, unit = value.strip().partition(" ") if isinstance(value, str) else ("", "", "")
    count, is_epochs = _fraction(number), unit.strip() in ("epoch", "epochs")
    is_steps = unit.strip() in ("step", "steps") and count.denominator == 1
    if count <= 0 or not (is_epochs or is_steps):
        hint = "50 (steps), 2 epochs or 0.25 epoch"
        raise BadInput(f"{shown(value)} is not an interval", key=key, hint=hint)
    return count if is_epochs else int(count)


def _fraction(text: str) -> Fraction:
    """Return a number or a ratio of two, 0 if it is neither."""
    try:
        # Python would write out the zeros of 1e999999999.
        is_short = all(0 < float(part) < math.inf for part in text.split("/"))
        return Fraction(text) if is_short else Fraction(0)
    except (ValueError, ZeroDivisionError):
        return Fraction(0)
