"""What a configuration says in epochs, and the keys in steps that come of it."""

from __future__ import annotations

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


def interval_in_epochs(value: Any, key: str) -> Fraction | None:
    """Return the epochs of an interval such as ``0.25 epoch``; None for one that is not text.

    Raises `BadInput`, naming ``key``, for another text.

    >>> interval_in_epochs("1/4 epoch", "stiffness.interval")
    Fraction(1, 4)
    """
    if not isinstance(value, str):
        return None
    number, _, unit = value.strip().partition(" ")
    try:
        epochs = Fraction(number)
    except (ValueError, ZeroDivisionError):
        epochs = Fraction(0)
    if epochs <= 0 or unit.strip() not in ("epoch", "epochs"):
        raise BadInput(
            f"{shown(value)} is not an interval", key=key, hint="50 (steps), 2 epochs or 0.25 epoch"
        )
    return epochs
