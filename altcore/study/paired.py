"""Runs of arms, paired by seed with a twin: gaps, intervals and verdicts.

A difference is 'not distinguishable' if the interval of a paired difference holds 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from attrs import Factory, define, evolve, field

from altcore.study.arms import Arm
from altcore.study.outcome import Outcome, gap
from altcore.study.runner import Runner, Trial
from altcore.study.statistics import LEVEL, estimate, holm, plain

SELECTION_SEED = 1000
"""Added to the seed for the runs that choose learning rates, and which no result uses."""


@define
class PairedRuns:
    """The outcomes of arms with the same seeds."""

    runner: Runner
    seeds: Sequence[int]
    within: float
    """The largest gap to the twin, in the unit of the loss, that counts as training."""
    rates: dict[str, float] = field(factory=dict)
    """The factor of the learning rate, by arm."""
    rate: float | None = None
    """The factor for every arm, if they share one."""
    reference: str = "twin"
    """The arm that gaps are measured to."""
    selection_seed: int = field(default=Factory(lambda me: me.seeds[0] + SELECTION_SEED, True))
    outcomes: dict[tuple[str, int], Outcome] = field(factory=dict)

    @property
    def steps(self) -> int:
        """The number of steps of each run."""
        return self.runner.base.max_steps

    def at(self, rate: float, reference: str) -> PairedRuns:
        """Return the same runs, for arms at a shared rate and with another reference."""
        return evolve(self, rate=rate, reference=reference)

    def with_seeds(self, seeds: Sequence[int]) -> PairedRuns:
        """Return no runs yet, for other seeds at the same rates."""
        return evolve(self, seeds=seeds, rates=dict(self.rates), outcomes={})

    def choose_rates(self, arms: Sequence[Arm]) -> None:
        """Choose each arm's learning rate, on a seed that no result uses."""
        self.rates |= self.runner.best_rates(arms, self.selection_seed)

    def run(
        self, arms: Collection[Arm], keys: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Run arms with every seed, side by side; ``keys`` are further ones of an arm's runs."""
        trials = [
            Trial(arm, seed, self._rate_of(arm), (keys or {}).get(arm.key, {}))
            for seed in self.seeds
            for arm in arms
        ]
        for trial, outcome in zip(trials, self.runner.outcomes(trials), strict=True):
            self.outcomes[trial.arm.key, trial.seed] = outcome

    def _rate_of(self, arm: Arm) -> float:
        return self.rates.get(arm.key, 1.0) if self.rate is None else self.rate

    def of(self, key: str) -> list[Outcome]:
        """Return an arm's outcomes, by seed."""
        return [self.outcomes[key, seed] for seed in self.seeds]

    def gaps(self, key: str) -> list[float]:
        """Return an arm's gap to the reference, by seed."""
        pairs = zip(self.of(key), self.of(self.reference), strict=True)
        return [gap(one, other, self.steps) for one, other in pairs]

    def diverged(self, key: str) -> int:
        """Return in how many seeds an arm diverged."""
        return sum(outcome.diverged for outcome in self.of(key))

    def learned(self, key: str) -> int:
        """Return in how many seeds an arm learned, by the verdict of its runs."""
        return sum(outcome.learned is True for outcome in self.of(key))

    def row(self, key: str) -> dict[str, Any]:
        """Return an arm's gap, with its interval."""
        return {**plain(estimate(self.gaps(key))), "diverged": self.diverged(key)}

    def table(self, arms: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
        """Return a row for each arm, with p corrected for their number, and whether it is guilty.

        An arm is guilty if its gap is significant, or if it diverged.
        """
        rows = {name: self.row(arm.key) for name, arm in arms.items()}
        corrected = holm({name: row["p"] for name, row in rows.items()})
        for name, row in rows.items():
            row["p_holm"] = corrected[name]
            row["guilty"] = row["diverged"] > 0 or (row["low"] > 0 and corrected[name] < LEVEL)
        return rows

    def verdict(self, key: str, control: str) -> dict[str, Any]:
        """Return whether an arm trains: it beats the frozen control and is close to the twin."""
        gaps, frozen = self.gaps(key), self.gaps(control)
        behind = estimate(gaps)
        ahead = estimate([f - g for f, g in zip(frozen, gaps, strict=True)])
        beats = ahead.low > 0 and self.diverged(key) == 0
        learned, twin = self.learned(key), self.learned(self.reference)
        have_learned = learned == twin == len(self.seeds)
        return {
            "gap": plain(behind),
            "ahead_of_frozen": plain(ahead),
            "beats_frozen": beats,
            "learned": learned,
            "twin_learned": twin,
            "trains": beats and have_learned and behind.high <= self.within,
            "distinguishable": behind.low > 0 or self.diverged(key) > 0,
        }


def worst(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the guilty row with the largest gap, or None if none is guilty."""
    names = guilty(rows)
    return names[0] if names else None


def guilty(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the guilty rows, the largest gap first."""
    names = (name for name, row in rows.items() if row["guilty"])
    return sorted(names, key=lambda name: -rows[name]["mean"])


def by_seed(found: Iterable[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the estimate of each quantity that every seed has one of."""
    seeds = list(found)
    return {key: plain(estimate([one[key] for one in seeds])) for key in seeds[0]}
