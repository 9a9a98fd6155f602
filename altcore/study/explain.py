"""Find out where a format breaks: a factorial of arms, then operand, layer, cause and repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field

from altcore.recipes import OPERANDS, ResolvedRecipe
from altcore.study.arms import (
    FACTORS,
    Arm,
    factorial,
    factors_in,
    frozen_control,
    layer_groups,
    operands_in,
)
from altcore.study.cause import find_causes
from altcore.study.changes import MOST_CHANGES, changes_of
from altcore.study.culprit import find_culprit
from altcore.study.factors import judge_factors
from altcore.study.onset import onset
from altcore.study.paired import PairedRuns
from altcore.study.rates import FACTOR, between, runs_at_most
from altcore.study.recommendation import recommend
from altcore.study.runner import Runner
from altcore.study.sequential import Schedule, looks
from altcore.study.variants import CAUSES


@define
class Explanation:
    """The stages of one explanation."""

    runner: Runner
    plan: ResolvedRecipe
    seeds: Sequence[int]
    within: float
    """The largest gap to the twin, in the unit of the loss, that counts as training."""
    ties: Sequence[Sequence[str]] = ()
    """Layers that share a parameter, together."""
    schedule: Schedule = looks
    """After how many seeds an arm may stop."""
    given_rates: Sequence[float] | None = None
    """Factors of the learning rate that are tried as they are; by default they are searched for."""
    null: Arm | None = None
    """The null arm, if it runs; at the twin's learning rate."""
    watch: Mapping[str, Any] = field(factory=dict)
    """Further keys of the full arm's runs: the diagnostics that say when and where."""
    runs: PairedRuns = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runs = PairedRuns(
            self.runner, self.seeds, self.within, self.schedule, given_rates=self.given_rates
        )

    def explain(self) -> dict[str, Any]:
        """Run all stages; return the answer as plain data."""
        self.runner.planned = self.runs_at_most
        arms, control, runs = factorial(self.plan), frozen_control(self.plan), self.runs
        full = arms[frozenset(self.factors)]
        inner = [arm for arm in arms.values() if arm.key not in (runs.reference.key, full.key)]

        runs.choose_rates([runs.reference, full, control])
        runs.choose_rates_between(inner, full)
        if self.null is not None:
            runs.rates[self.null.key] = runs.rates[runs.reference.key]
        found = {
            "operands_of": {f: operands_in(self.plan, FACTORS[f]) for f in self.factors},
            **judge_factors(runs, arms, control, self.watch, self.null),
        }
        watched = zip(self.seeds, runs.of(full.key), strict=False)
        found["onset"] = {str(seed): onset(outcome.lines) for seed, outcome in watched}
        if found["full"]["distinguishable"]:
            culprit, tables = find_culprit(runs, self.plan, self.ties, arms, found["shapley"])
            causes = find_causes(culprit, self.plan)
            changes = changes_of(self.plan, self.ties, culprit.factor, causes)
            found |= {**tables, "causes": causes, "cause": causes[0]["cause"]}
            found |= recommend(runs, control, changes, found["full"]["gap"]["mean"])
        found["learning_rates"] = {key: curve.plain() for key, curve in runs.curves.items()}
        return found

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors that the recipe has."""
        return factors_in(self.plan)

    @property
    def runs_at_most(self) -> int:
        """The largest number of runs, for the cost."""
        arms = 2 ** len(self.factors) + 1
        inside = max(len(operands_in(self.plan, FACTORS[f])) for f in self.factors)
        groups = layer_groups(self.plan, OPERANDS)
        layers = max((len(g) for g in groups.values()), default=0)
        causes = inside * (1 + len(CAUSES))
        later = inside + len(groups) + layers + causes + 1 + (self.null is not None)
        fresh = 2 + MOST_CHANGES  # the twin and the control again
        inner = arms - 3  # all but the twin, the full arm and the control
        rated = (3 + MOST_CHANGES) * runs_at_most(self.given_rates)
        rated += inner * runs_at_most(self.given_rates or between(1.0, FACTOR))
        return rated + len(self.seeds) * (arms + later + fresh)
