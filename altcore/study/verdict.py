"""Verdicts: is an arm within a distance of its twin, beyond it, or can nobody tell, and why?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from altcore.builtin_types import digits
from altcore.estimates import LEVEL, quantile
from altcore.study.sequential import Schedule, looks

WITHIN, BEYOND, CANNOT_TELL = "within", "beyond", "cannot tell"
MOST_SEEDS = 100
"""More are not proposed."""


@frozen(kw_only=True)
class Evidence:
    """What a verdict rests on; estimates are rows with ``mean``, ``low``, ``high`` and ``n``."""

    gap: Mapping[str, Any]
    """To the twin."""
    p: float
    """Of the gap, corrected for the rows of its table."""
    frozen: Mapping[str, Any]
    """The gap of the frozen control."""
    ahead: Mapping[str, Any]
    """How far the arm is ahead of the frozen control."""
    seeds: int
    diverged: int
    """In how many seeds, as the next two."""
    learned: int
    twin_learned: int
    schedule: Schedule = looks
    """Of the study, for the number of seeds that would tell."""
    detectable: float | None = None
    """The smallest detectable gap, from the null arm."""

    @property
    def is_worse(self) -> bool:
        """Whether the arm diverged, or its gap is significant and above 0."""
        return self.diverged > 0 or bool(self.gap["low"] > 0 and self.p < LEVEL)

    @property
    def is_better(self) -> bool:
        """Whether its gap is significant and below 0."""
        return bool(self.gap["high"] < 0 and self.p < LEVEL)

    def judge(self, within: float) -> dict[str, str]:
        """Return the verdict, and the reason for it in words.

        An arm is within a distance if its interval ends there or before, and beyond it if the
        interval begins above, or if it diverged or never learned where its twin did. Whether a
        run learned hangs on one noisy loss, so an arm that missed it with some seeds is beyond
        by its interval alone, and within by nothing.
        """
        word, reason = self._judge(within)
        return {"verdict": word, "reason": reason}

    def is_settled(self, within: float) -> bool:
        """Return whether further seeds cannot matter: there is a verdict, or there will be none.

        One that rests on what was learned alone is no verdict before the last seed.
        """
        if self.twin_learned < self.seeds:
            return True
        if self.learned < self.seeds and not self.diverged and self.gap["low"] <= within:
            return False
        return self._judge(within)[0] != CANNOT_TELL

    def _judge(self, within: float) -> tuple[str, str]:
        if self.twin_learned < self.seeds:
            return CANNOT_TELL, f"the twin did not learn in {self._some(self.twin_learned)}"
        if self.diverged:
            return BEYOND, f"diverged in {self.diverged} of {self.seeds} seeds"
        if self.learned == 0:
            return BEYOND, f"did not learn in {self._some(self.learned)}"
        if self.frozen["low"] <= 0:
            return CANNOT_TELL, "the twin is not ahead of the frozen control"
        if self.learned < self.seeds:
            return self._judge_unsteady(within)
        if self.gap["low"] > within:
            return BEYOND, "learns, but less" if self._is_ahead else self._not_ahead
        if not self._is_ahead:
            return CANNOT_TELL, self._not_ahead
        if self.gap["high"] <= within:
            return WITHIN, self._side
        return CANNOT_TELL, self._missing(within)

    def _judge_unsteady(self, within: float) -> tuple[str, str]:
        """Judge an arm that learned with some seeds only."""
        reason = f"did not learn in {self._some(self.learned)}"
        if self.gap["low"] > within:
            return BEYOND, reason
        if self.gap["high"] > within:
            return CANNOT_TELL, f"{reason}, and the interval contains {digits(within)}"
        return CANNOT_TELL, f"{reason}, but the interval ends at {self.gap['high']:.2g}"

    def _some(self, learned: int) -> str:
        return f"{self.seeds - learned} of {self.seeds} seeds"

    @property
    def _is_ahead(self) -> bool:
        return bool(self.ahead["low"] > 0)

    _not_ahead = "not distinguishable from the frozen control"

    @property
    def _side(self) -> str:
        if self.is_better:
            return "better than the twin"
        return "worse than the twin" if self.is_worse else "not distinguishable from the twin"

    def _missing(self, within: float) -> str:
        """Return why an interval that holds the distance tells nothing, and what would."""
        reason = f"the interval contains {digits(within)}"
        if self.detectable is not None and self.detectable > within:
            reason += f", and chaos alone hides gaps below {self.detectable:.2g}"
        needed = seeds_needed(self.gap, within, self.schedule)
        told = f"more than {MOST_SEEDS}" if needed is None else f"about {needed}"
        return f"{reason}: {told} seeds are needed"


def seeds_needed(gap: Mapping[str, Any], within: float, schedule: Schedule = looks) -> int | None:
    """Return with how many seeds the interval of such a gap would leave out a distance, or None.

    Args:
        gap: at the last look of its study.
        within: the distance.
        schedule: of that study, and of the one with more seeds: as much of the error as its last
            look has is there for the interval.

    >>> seeds_needed({"mean": 0.03, "low": 0.0, "high": 0.06, "n": 5}, 0.05)
    9
    """
    width = (gap["high"] - gap["low"]) / 2
    if not width < math.inf:
        return None
    spread = width / _half_width(gap["n"], schedule)
    for seeds in range(gap["n"] + 1, MOST_SEEDS + 1):
        if spread * _half_width(seeds, schedule) < abs(within - gap["mean"]):
            return seeds
    return None


def _half_width(seeds: int, schedule: Schedule) -> float:
    """Return half an interval of so many seeds, in their standard deviations."""
    level = LEVEL * schedule(seeds)[seeds]
    return quantile(1 - level / 2, seeds - 1) / math.sqrt(seeds)
