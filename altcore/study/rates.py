"""Learning rates: a logarithmic grid for each arm, extended until the best is inside it.

Rates are factors of the given learning rate. They are chosen on seeds that no result uses. A run
costs as much as one that counts, so none is made that could hardly change the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field

from altcore.builtin_types import digits
from altcore.errors import BadInput
from altcore.study.arms import Arm
from altcore.study.outcome import Outcome
from altcore.study.runner import Runner, Trial

GRID = (1 / 3, 1.0, 3.0)
FACTOR = 3.0
"""Between a rate at the edge and the next one beyond it."""
BEYOND = 2
"""Rates that may be tried beyond the grid, on the side on which the best one is."""
CONTENDERS = 3
"""Rates that may be tried with a second seed."""
SELECTION_SEED = 1000
"""Added to the study's first seed for the runs that choose rates, and which no result uses."""

Wanted = list[tuple[float, int]]
"""Runs to make, each as a rate and the number of its selection seed."""


def checked(rates: Sequence[float] | float | None) -> tuple[float, ...] | None:
    """Return rates from the lowest to the highest. Raises `BadInput` for what is none.

    >>> checked([3, 1, 0.3])
    (0.3, 1.0, 3.0)
    """
    if rates is None:
        return None
    given = [rates] if isinstance(rates, int | float) else list(rates)
    for rate in given:
        if not isinstance(rate, int | float) or not 0 < rate < math.inf:
            told = digits(rate) if isinstance(rate, int | float) else repr(rate)
            raise BadInput("a factor of the learning rate is above 0", key="--rates", part=told)
    if not given:
        raise BadInput("no factor of the learning rate is given", key="--rates")
    if len(set(given)) < len(given):
        raise BadInput("each factor of the learning rate is given once", key="--rates")
    return tuple(sorted(map(float, given)))


def runs_at_most(rates: Sequence[float] | None) -> int:
    """Return how many runs choose an arm's rate, unless its best ones diverge again."""
    if rates is None:
        return len(GRID) + 2 * BEYOND + 1 + CONTENDERS
    return len(rates) + min(len(rates), CONTENDERS) if len(rates) > 1 else 0


def between(one: float, other: float) -> tuple[float, ...]:
    """Return two rates, and the one halfway if they are as far apart as rates of the grid.

    >>> between(1.0, 1.0), between(9.0, 1.0)
    ((1.0,), (1.0, 3.0, 9.0))
    """
    low, high = sorted((one, other))
    halfway = (math.sqrt(low * high),) if high > 0.99 * FACTOR * low else ()
    return (low, *halfway, high) if low < high else (low,)


@define
class Curve:
    """The losses of an arm over its rates, in the order of the selection seeds."""

    losses: dict[float, list[float]] = field(factory=dict)
    """Infinite for a run that diverged."""
    is_bracketed: bool = False
    """Whether the rates lie between those of arms with a search of their own."""

    @property
    def best(self) -> float:
        """The rate with the least mean loss of those with the most seeds; the lowest of equals."""
        most = max(map(len, self.losses.values()))
        rates = sorted(rate for rate, losses in self.losses.items() if len(losses) == most)
        return min(rates, key=lambda rate: math.fsum(self.losses[rate]))

    @property
    def edge(self) -> str | None:
        """Whether the best rate is the ``lowest`` or the ``highest`` of those tried, or neither."""
        if len(self.losses) > 1 and not self.is_bracketed:
            for name, end in (("lowest", min(self.losses)), ("highest", max(self.losses))):
                if self.best == end:
                    return name
        return None

    @property
    def beyond(self) -> float | None:
        """The next rate past the edge at which the best one lies, or None if it lies inside."""
        past = {"highest": FACTOR, "lowest": 1 / FACTOR, None: None}[self.edge]
        return self.best * past if past else None

    @property
    def ranked(self) -> list[float]:
        """The rates that did not diverge with the first seed, by their losses with it."""
        finite = [rate for rate in sorted(self.losses) if self.losses[rate][0] < math.inf]
        return sorted(finite, key=lambda rate: self.losses[rate][0])

    def contenders(self, margin: float) -> list[float]:
        """Return the rates that the first seed leaves open: losses within ``margin`` of the least.

        The best is one of them, since it may diverge with another seed.
        """
        ranked = self.ranked[:CONTENDERS]
        return [r for r in ranked if self.losses[r][0] <= self.losses[ranked[0]][0] + margin]

    @property
    def between(self) -> float:
        """The rate between the best and its better neighbour.

        A parabola through the three has its least there.
        """
        rates = sorted(self.losses)
        place = rates.index(self.best)
        beside = [rates[i] for i in (place - 1, place + 1) if 0 <= i < len(rates)]
        return math.sqrt(self.best * min(beside, key=lambda rate: self.losses[rate]))

    def plain(self) -> dict[str, Any]:
        """Return the choice and what it rests on as plain data."""
        return {
            "factor": self.best,
            "edge": self.edge,
            "curve": [
                {
                    "factor": rate,
                    "losses": self.losses[rate],
                    "diverged": self.losses[rate].count(math.inf),
                }
                for rate in sorted(self.losses)
            ],
        }


def search(
    curve: Curve, margin: float, rates: Sequence[float] | None, around: float = 1.0
) -> Iterator[Wanted]:
    """Yield the runs to make next, whose losses are in ``curve`` before it goes on.

    ``rates`` that are given are tried as they are; otherwise the grid begins ``around`` one.
    """
    if rates is None:
        low, middle, high = (around * factor for factor in GRID)
        yield [(middle, 0), (high, 0)]
        if not curve.losses[high][0] + margin < curve.losses[middle][0] < math.inf:
            yield [(low, 0)]
    else:
        yield [(rate, 0) for rate in rates]
    left = BEYOND if rates is None else 0
    while left and (beyond := curve.beyond):
        yield [(beyond, 0)]
        left -= 1
    if rates is None and curve.ranked:
        yield [(curve.between, 0)]
    contenders = curve.contenders(margin)
    if curve.is_bracketed and len(contenders) == 1:
        return  # it lies where others with a search of their own do not diverge
    yield [(rate, 1) for rate in contenders]
    for rate in curve.ranked[len(contenders) :]:
        if math.inf in curve.losses[curve.best]:
            yield [(rate, 1)]
    while left and (beyond := curve.beyond):
        yield [(beyond, 0), (beyond, 1)]
        left -= 1


def choose(
    runner: Runner,
    arms: Sequence[Arm],
    seed: int,
    margin: float,
    rates: Sequence[float] | None = None,
    around: Mapping[str, float] | None = None,
    loss: Callable[[Outcome], float] | None = None,
    is_bracketed: bool = False,
) -> dict[str, Curve]:
    """Find the learning rate at which each arm ends with the least loss, side by side.

    Args:
        runner: makes the runs.
        arms: whose rates are chosen.
        seed: of the first of the runs that choose; the second is the next number.
        margin: the difference of losses that the first selection seed decides by itself.
        rates: tried as they are, if given; a single one is taken untried.
        around: where an arm's grid begins, by its key; 1 for others.
        loss: of a run, infinite if it diverged; by default that of the last training steps.
        is_bracketed: whether ``rates`` lie between those of arms with a search of their own.
    """
    if rates is not None and len(rates) == 1:
        return {arm.key: Curve({rates[0]: []}) for arm in arms}
    loss = loss or (lambda outcome: outcome.tail(runner.base.max_steps))
    curves = {arm.key: Curve(is_bracketed=is_bracketed) for arm in arms}
    searches = {
        arm.key: search(curves[arm.key], margin, rates, (around or {}).get(arm.key, 1.0))
        for arm in arms
    }
    while True:
        wanted = [(arm, *run) for arm in arms for run in next(searches[arm.key], [])]
        if not wanted:
            return curves
        trials = [Trial(arm, seed + n, rate) for arm, rate, n in wanted]
        for trial, outcome in zip(trials, runner.outcomes(trials), strict=True):
            losses = curves[trial.arm.key].losses.setdefault(trial.rate, [])
            losses.append(loss(outcome))
