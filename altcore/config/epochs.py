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


def refuse_both(plain: Mapping[str, Any], sources: Mapping[str, Source | None]) -> None:
    """Raise `BadInput` for a key in epochs if the one that comes of it is given, too.

    The record of a run holds both, and the steps of its epoch: there nobody gave the second.
    """
    for key, steps in IN_STEPS.items():
        if plain.get(key) is None or steps not in plain or sources.get(steps) is DEFAULT:
            continue
        is_recorded = plain.get("steps_per_epoch") is not None
        if not is_recorded or _place(sources.get(steps)) != _place(sources.get("steps_per_epoch")):
            also = sources.get(steps)
            raise BadInput(
                f"{steps} is given, too{f', {also}' if also else ''}",
                key=key,
                hint=f"leave one of them out, or set {key} to null",
            )


def without_uncounted(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a plain configuration without the steps that are yet to be computed from epochs."""
    uncounted = {IN_STEPS[key] for key in IN_STEPS if plain[key] is not None}
    is_counted = plain["steps_per_epoch"] is not None
    return plain if is_counted else {k: v for k, v in plain.items() if k not in uncounted}


def _place(source: Source | None) -> str:
    return f"{source.file} {source.flag}" if source else ""


def interval_in_epochs(value: Any, key: str) -> Fraction | None:
    """Return the epochs of an interval such as ``0.25 epoch``; None for one that is no text.

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
            f"{shown(value)} is no interval", key=key, hint="50 (steps), 2 epochs or 0.25 epoch"
        )
    return epochs
