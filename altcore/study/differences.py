"""Differences between two arms of a comparison, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from altcore.errors import BadInput, nearest
from altcore.estimates import LEVEL, Estimate, holm
from altcore.study.contenders import Contender
from altcore.study.sequential import estimate_at
from altcore.study.statistics import plain, share_closed
from altcore.study.verdict import CANNOT_TELL

START = ("start", "format", "recipe")
"""Of what contenders differ in, all that is of their recipe."""


def pairs(contenders: Sequence[Contender], against: str | None) -> list[tuple[str, str]]:
    """Return which contender is held against which, by their names.

    Args:
        contenders: all arms.
        against: an arm's name: all others are held against it. Or a value in which arms differ,
            such as a rounding: each is held against the one that differs from it in that alone. A
            rounding's name is enough if it is one role's alone. None: a recipe is held against
            itself without each ingredient, and no other is.

    Raises:
        BadInput: if it is neither.
    """
    names = [c.name for c in contenders]
    if against is None:
        return list(_ablations(contenders))
    if against in names:
        return [(name, against) for name in names if name != against]
    for axis in contenders[0].differs_in:
        value = _meant(contenders, axis, against)
        if found := list(_counterparts(contenders, axis, value)):
            return found
    known = _values(contenders)
    raise BadInput(
        "no other arm can be held against it",
        key="--against",
        part=against,
        meant=nearest(against, [*names, *known]),
        hint=f"an arm: {', '.join(names)}" + (f"; or {', '.join(known)}" if known else ""),
    )


def _meant(contenders: Sequence[Contender], axis: str, against: str) -> str:
    """Return the value of an axis that is meant: of a rounding's name, the one with its role."""
    values = {value for c in contenders if (value := c.differs_in[axis]) is not None}
    of_roles = [v for v in values if axis == "rounding" and v.partition("=")[2] == against]
    return of_roles[0] if len(of_roles) == 1 and against not in values else against


def _values(contenders: Sequence[Contender]) -> list[str]:
    """Return the values of all in which contenders differ."""
    every = [c.differs_in for c in contenders]
    axes = [dict.fromkeys(own[axis] for own in every) for axis in every[0]]
    return [v for values in axes if len(values) > 1 for v in values if v is not None]


def _ablations(contenders: Sequence[Contender]) -> Iterator[tuple[str, str]]:
    for without in contenders:
        for whole in contenders:
            is_whole = whole.start.name == without.start.ablates
            if is_whole and _rest(whole, *START) == _rest(without, *START):
                yield whole.name, without.name


def _counterparts(
    contenders: Sequence[Contender], axis: str, value: str
) -> Iterator[tuple[str, str]]:
    """Yield the pairs of contenders that differ on an axis alone, the second having a value."""
    left_out = {"start": START, "format": ("start", axis), "recipe": ("start", axis)}
    besides = left_out.get(axis, (axis,))
    held = {_rest(c, *besides): c for c in contenders if c.differs_in[axis] == value}
    for contender in contenders:
        reference = held.get(_rest(contender, *besides))
        if reference is not None and contender.differs_in[axis] != value:
            yield contender.name, reference.name


def _rest(contender: Contender, *besides: str) -> tuple[tuple[str, str | None], ...]:
    return tuple(item for item in contender.differs_in.items() if item[0] not in besides)


def differences(
    pairs: Sequence[tuple[str, str]],
    gaps: Mapping[str, Sequence[float]],
    within: float,
    shares: Mapping[int, float],
    no_verdict: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row for each pair of arms: the difference of their gaps, and what it closes.

    Args:
        pairs: each an arm, and the one that it is held against.
        gaps: of each arm to its twin, by seed. Where two share a twin, their difference is that of
            their losses: the twin's chaos, which is in both gaps, is not in it. Arms may have
            fewer seeds than others.
        within: the largest difference that counts as none.
        shares: the share of the error of each number of seeds, as of `looks`.
        no_verdict: why there is none on some arms: their twin did not learn.
    """
    found = {
        (arm, other): estimate_at(
            [a - b for a, b in zip(gaps[arm], gaps[other], strict=False)], shares
        )
        for arm, other in pairs
    }
    corrected = holm({pair: difference.p for pair, difference in found.items()})
    rows = []
    for (arm, against), difference in found.items():
        p_holm, n = corrected[arm, against], difference.n
        share = share_closed(gaps[arm][:n], gaps[against][:n], LEVEL * shares[n])
        reason = no_verdict.get(arm) or no_verdict.get(against) or ""
        rows.append(
            {
                "arm": arm,
                "against": against,
                "difference": plain(difference),
                "p_holm": p_holm,
                "share_closed": share and {k: plain(share)[k] for k in ("mean", "low", "high")},
                "verdict": CANNOT_TELL if reason else _verdict(difference, p_holm, within),
                "reason": reason,
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
    return CANNOT_TELL
