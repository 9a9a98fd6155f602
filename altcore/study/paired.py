"""Runs of arms, paired by seed with a twin: gaps, intervals and verdicts.

A difference is 'not distinguishable' if the interval of a paired difference holds 0. Arms may have
fewer seeds than others, at the looks of a sequential rule; a difference is over those that both
have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import starmap
from statistics import fmean
from typing import Any

from attrs import Factory, define, evolve, field

from altcore.estimates import LEVEL, Estimate, holm
from altcore.study.arms import Arm, twin
from altcore.study.measures import gap_of, loss_of
from altcore.study.null_arm import detectable
from altcore.study.outcome import Outcome
from altcore.study.rates import SELECTION_SEED, Curve, between, choose
from altcore.study.runner import Runner, Trial
from altcore.study.sequential import Schedule, estimate_at, looks, run_in_looks
from altcore.study.statistics import plain
from altcore.study.verdict import Evidence

Rows = dict[str, dict[str, Any]]
"""A table: a row for each arm, by what it is called there."""


@define
class PairedRuns:
    """The outcomes of arms with the same seeds."""

    runner: Runner
    seeds: Sequence[int]
    within: float
    """The largest gap to the twin, in the unit of the loss, that counts as training."""
    schedule: Schedule = looks
    """After how many seeds an arm may stop."""
    rates: dict[str, float] = field(factory=dict)
    """The factor of the learning rate, by arm."""
    curves: dict[str, Curve] = field(factory=dict)
    """How these were chosen."""
    given_rates: Sequence[float] | None = None
    """Factors that are tried as they are; by default they are searched for."""
    rate: float | None = None
    """The factor for every arm, if they share one."""
    reference: Arm = field(factory=twin)
    """The arm that gaps are measured to. It runs as far as any other does."""
    metric: str = "train"
    """The loss that gaps are of and learning rates are chosen by: of the last tenth of the training
    steps, or ``val``."""
    detectable: float | None = None
    """The smallest detectable gap, if the null arm ran."""
    selection_seed: int = field(default=Factory(lambda me: me.seeds[0] + SELECTION_SEED, True))
    outcomes: dict[tuple[str, int], Outcome] = field(factory=dict)

    @property
    def shares(self) -> Mapping[int, float]:
        """The numbers of seeds after which an arm may stop, and the share of the error of each."""
        return self.schedule(len(self.seeds))

    @property
    def steps(self) -> int:
        """The number of steps of each run."""
        return self.runner.base.max_steps

    def at(self, rate: float, reference: Arm) -> PairedRuns:
        """Return the same runs, for arms at a shared rate and with another reference."""
        return evolve(self, rate=rate, reference=reference)

    def with_seeds(self, seeds: Sequence[int]) -> PairedRuns:
        """Return no runs yet, for other seeds at the same rates."""
        return evolve(self, seeds=seeds, rates=dict(self.rates), outcomes={})

    def choose_rates(
        self, arms: Sequence[Arm], reference_of: Mapping[str, str] | None = None
    ) -> None:
        """Choose each arm's learning rate, on seeds that no result uses, from its reference's on.

        Args:
            arms: whose rates are chosen; references that are among them first.
            reference_of: the key of the reference by that of an arm, if it is not the own one.
        """
        keys = reference_of or dict.fromkeys((arm.key for arm in arms), self.reference.key)
        references = [arm for arm in arms if arm.key in keys.values()]
        for some in (references, [arm for arm in arms if arm not in references]):
            around = {arm.key: self.rates.get(keys.get(arm.key, ""), 1.0) for arm in some}
            self._choose(some, self.given_rates, around)

    def choose_rates_between(self, arms: Sequence[Arm], other: Arm) -> None:
        """Choose the rates of arms that lie between the reference and an arm: as theirs do."""
        if self.given_rates is not None:
            return self.choose_rates(arms)
        rates = between(self.rates[self.reference.key], self.rates[other.key])
        return self._choose(arms, rates, is_bracketed=True)

    def _choose(
        self,
        arms: Sequence[Arm],
        rates: Sequence[float] | None,
        around: Mapping[str, float] | None = None,
        is_bracketed: bool = False,
    ) -> None:
        seed, loss = self.selection_seed, loss_of(self.metric, self.steps)
        found = choose(self.runner, arms, seed, self.within, rates, around, loss, is_bracketed)
        self.curves |= found
        self.rates |= {key: curve.best for key, curve in found.items()}

    # Running ---------------------------------------------------------------------------------

    def run(
        self,
        arms: Collection[Arm],
        keys: Mapping[str, Mapping[str, Any]] | None = None,
        count: int | None = None,
    ) -> None:
        """Run arms and their reference with the first ``count`` seeds (None: all), side by side.

        ``keys`` are further ones of an arm's runs.
        """
        self.run_alone([*arms, self.reference], keys, count)

    def run_alone(
        self,
        arms: Collection[Arm],
        keys: Mapping[str, Mapping[str, Any]] | None = None,
        count: int | None = None,
    ) -> None:
        """Run arms as `run` does, without their reference."""
        trials = [
            Trial(arm, seed, self._rate_of(arm), (keys or {}).get(arm.key, {}))
            for seed in self.seeds[:count]
            for arm in {arm.key: arm for arm in arms}.values()
            if (arm.key, seed) not in self.outcomes
        ]
        for trial, outcome in zip(trials, self.runner.outcomes(trials), strict=True):
            self.outcomes[trial.arm.key, trial.seed] = outcome

    def run_table(
        self,
        arms: Mapping[str, Arm],
        is_settled: Callable[[str, Rows], bool] | None = None,
        beside: Mapping[str, Sequence[Arm]] | None = None,
        keys: Mapping[str, Mapping[str, Any]] | None = None,
        first: str | None = None,
    ) -> Rows:
        """Run arms until their rows are settled, or with every seed; return their `table`.

        Args:
            arms: by what they are called in the table.
            is_settled: whether further seeds can matter to a row of a table; by default a row is
                settled if its arm is guilty, or is within the distance that counts as training.
            beside: arms that run as far as one of these.
            keys: further ones of an arm's runs.
            first: the arm that is asked about before the others.
        """
        settled = is_settled or self._is_settled

        def run(names: Sequence[str], count: int) -> None:
            others = [arm for name in names for arm in (beside or {}).get(name, ())]
            self.run([*(arms[name] for name in names), *others], keys, count)

        def unsettled(names: Sequence[str]) -> Sequence[str]:
            rows = self.table(arms, first)
            return [name for name in names if not settled(name, rows)]

        run_in_looks(arms, self.shares, run, unsettled)
        return self.table(arms, first)

    def _is_settled(self, name: str, rows: Rows) -> bool:
        return rows[name]["guilty"] or rows[name]["high"] <= self.within

    def _rate_of(self, arm: Arm) -> float:
        return self.rates.get(arm.key, 1.0) if self.rate is None else self.rate

    # What the runs say -------------------------------------------------------------------------

    def of(self, key: str) -> list[Outcome]:
        """Return the outcomes that an arm has, by seed."""
        return [self.outcomes[key, s] for s in self.seeds if (key, s) in self.outcomes]

    @property
    def twins(self) -> dict[int, Outcome]:
        """The runs of the reference, by seed."""
        return dict(zip(self.seeds, self.of(self.reference.key), strict=False))

    def gaps(self, key: str) -> list[float]:
        """Return an arm's gap to the reference, for each seed that it has."""
        pairs = zip(self.of(key), self.of(self.reference.key), strict=False)
        return list(starmap(gap_of(self.metric, self.steps), pairs))

    def estimate(self, values: Sequence[float]) -> Estimate:
        """Return the estimate of paired differences at the look of so many seeds."""
        return estimate_at(values, self.shares)

    def difference(self, one: Sequence[float], other: Sequence[float]) -> Estimate:
        """Return the estimate of a difference of two arms' gaps, over the seeds that both have."""
        return self.estimate([a - b for a, b in zip(one, other, strict=False)])

    def diverged(self, key: str) -> int:
        """Return in how many seeds an arm diverged."""
        return sum(outcome.diverged for outcome in self.of(key))

    def learned(self, key: str) -> int:
        """Return in how many seeds an arm learned, by the verdict of its runs."""
        return sum(outcome.learned is True for outcome in self.of(key))

    def stalled(self, key: str) -> float | None:
        """Return the share of the updates of stored weights that moved nothing, or None."""
        rates = [o.stalled for o in self.of(key) if o.stalled is not None]
        return fmean(rates) if rates else None

    def row(self, key: str) -> dict[str, Any]:
        """Return an arm's gap with its interval, its diverged runs, and its stall rate."""
        gaps = plain(self.estimate(self.gaps(key)))
        return {**gaps, "diverged": self.diverged(key), "stalled": self.stalled(key)}

    def table(self, arms: Mapping[str, Arm], first: str | None = None) -> Rows:
        """Return a row for each arm, with p corrected for their number, and whether it is guilty.

        An arm is guilty if its gap is significant, or if it diverged and its twin did not. One
        that is asked about ``first`` needs no correction if nothing else is found where that one
        is not guilty (a fixed sequence: Maurer, Hothorn and Lehmacher 1995).
        """
        rows = {name: self.row(arm.key) for name, arm in arms.items()}
        others = holm({name: row["p"] for name, row in rows.items() if name != first})
        for name, row in rows.items():
            row["p_holm"] = others.get(name, row["p"])
            is_worse = row["diverged"] > 0 or (row["low"] > 0 and row["p_holm"] < LEVEL)
            row["guilty"] = is_worse and not math.isnan(row["mean"])
        if first is not None and not rows[first]["guilty"]:
            for row in rows.values():
                row["guilty"] = False
        return rows

    def verdict(self, key: str, control: str, p: float | None = None) -> dict[str, Any]:
        """Return whether an arm is as good as its twin, and why; see `Evidence.judge`.

        ``p`` is that of the arm's gap in its table, if it has one there.
        """
        evidence = self.evidence(key, control, p)
        return {
            "gap": evidence.gap,
            "ahead_of_frozen": evidence.ahead,
            "learned": evidence.learned,
            "stalled": self.stalled(key),
            "twin_learned": evidence.twin_learned,
            "distinguishable": evidence.is_worse and not math.isnan(evidence.gap["mean"]),
            **evidence.judge(self.within),
        }

    def evidence(self, key: str, control: str, p: float | None = None) -> Evidence:
        """Return what says whether an arm is as good as its twin; ``p`` as in `verdict`."""
        gaps, seeds = self.gaps(key), len(self.of(key))
        gap, ahead = self.estimate(gaps), self.difference(self.gaps(control), gaps)
        return Evidence(
            gap=plain(gap),
            p=gap.p if p is None else p,
            frozen=plain(self.estimate(self.gaps(control))),
            ahead=plain(ahead),
            seeds=seeds,
            diverged=self.diverged(key),
            learned=self.learned(key),
            twin_learned=sum(o.learned is True for o in self.of(self.reference.key)[:seeds]),
            schedule=self.schedule,
            detectable=self.detectable,
        )

    def judge_null(self, key: str, rows: int) -> dict[str, Any]:
        """Return the null arm's gap; what is detectable beside it counts in later verdicts."""
        self.detectable = self.detectable_beside(key, rows)
        gap = plain(self.estimate(self.gaps(key)))
        return {**gap, "detectable": self.detectable, "rows": rows}

    def detectable_beside(self, key: str, rows: int) -> float:
        """Return the smallest gap that all seeds detect where gaps spread as an arm's.

        ``rows`` are those of the table whose p are corrected.
        """
        seeds = len(self.seeds)
        return detectable(self.gaps(key), seeds, rows, LEVEL * self.shares[seeds])

    def has_verdict(self, key: str, control: str) -> bool:
        """Return whether further seeds cannot matter to the `verdict` on an arm."""
        return self.evidence(key, control).is_settled(self.within)


def is_not_the_worst(name: str, rows: Rows) -> bool:
    """Return whether a row is known to be guilty, or to be better than one that is.

    Further seeds do not matter then to which is the worst.
    """
    least = max((row["low"] for row in rows.values() if row["guilty"]), default=None)
    return rows[name]["guilty"] or (least is not None and rows[name]["high"] < least)


def guilty(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the guilty rows, the largest gap first."""
    names = (name for name, row in rows.items() if row["guilty"])
    return sorted(names, key=lambda name: -rows[name]["mean"])
