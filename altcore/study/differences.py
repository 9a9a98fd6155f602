"""Differences between two arms of a comparison, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from altcore.errors import BadInput, nearest
from altcore.study.contenders import Contender
from altcore.study.statistics import LEVEL, Estimate, estimate, holm, plain, share_closed

START = ("start", "format", "recipe")
AXES = (*START, "rounding", "optimizer")
"""In what contenders may differ. The format and the recipe are the start together."""


def references(contenders: Sequence[Contender], against: str | None) -> dict[str, str]:
    """Return for each contender the one that it is held against, by their names.

    Args:
        contenders: all arms.
        against: an arm's name: all others are held against it. Or a value in which arms differ,
            such as a rounding: each is held against the one that differs from it in that alone.

    Raises:
        BadInput: if it is neither.
    """
    if against is None:
        return {}
    names = [c.name for c in contenders]
    if against in names:
        return {name: against for name in names if name != against}
    for axis in AXES:
        found = dict(_counterparts(contenders, axis, against))
        if found:
            return found
    values = {str(getattr(c, axis)) for c in contenders for axis in AXES}
    raise BadInput(
        "no other arm can be held against it",
        key="--against",
        part=against,
        meant=nearest(against, [*names, *values]),
        hint=f"one of {', '.join(names)}, or in what they differ",
    )


def _counterparts(
    contenders: Sequence[Contender], axis: str, value: str
) -> Iterable[tuple[str, str]]:
    """Yield the pairs of names of contenders that differ on an axis alone, one having a value."""
    if axis == "start":
        rest = [a for a in AXES if a not in START]
    elif axis in START:
        rest = [a for a in AXES if a not in ("start", axis)]
    else:
        rest = [a for a in AXES if a != axis]
    held = {tuple(getattr(c, a) for a in rest): c for c in contenders if getattr(c, axis) == value}
    for contender in contenders:
        reference = held.get(tuple(getattr(contender, a) for a in rest))
        if reference is not None and getattr(contender, axis) != value:
            yield contender.name, reference.name


def differences(
    pairs: Mapping[str, str], gaps: Mapping[str, Sequence[float]], within: float
) -> list[dict[str, Any]]:
    """Return a row for each pair of arms: the difference of their gaps, and what it closes.

    Args:
        pairs: the arms, and for each the one that it is held against.
        gaps: of each arm to its twin, by seed. Where two share a twin, their difference is that of
            their losses: the twin's chaos, which is in both gaps, is not in it.
        within: the largest difference that counts as none.
    """
    found = {
        arm: estimate([a - b for a, b in zip(gaps[arm], gaps[against], strict=True)])
        for arm, against in pairs.items()
    }
    corrected = holm({arm: difference.p for arm, difference in found.items()})
    rows = []
    for arm, against in pairs.items():
        share = share_closed(gaps[arm], gaps[against])
        rows.append(
            {
                "arm": arm,
                "against": against,
                "difference": plain(found[arm]),
                "p_holm": corrected[arm],
                "share_closed": share and plain(share),
                "verdict": _verdict(found[arm], corrected[arm], within),
            }
        )
    return rows


def _verdict(difference: Estimate, p_holm: float, within: float) -> str:
    """Return what an interval allows: better, worse, alike (no farther than ``within``), or not."""
    if p_holm < LEVEL and difference.high < 0:
        return "better"
    if p_holm < LEVEL and difference.low > 0:
        return "worse"
    if -within <= difference.low and difference.high <= within:
        return "alike"
    return "cannot tell"
