"""Find out where a format breaks: a factorial of arms, then operand, layer and cause.

Each stage looks only inside the finding of the stage before. It says 'not distinguishable' if the
interval of a paired difference holds 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from attrs import asdict, define, evolve, field

from altcore.recipes import OPERANDS, Cast, ResolvedRecipe
from altcore.study.arms import (
    FACTORS,
    OWN,
    Arm,
    factorial,
    factors_in,
    frozen_control,
    layer_groups,
    merged,
    operands_in,
    select,
    twin,
)
from altcore.study.outcome import Outcome, gap
from altcore.study.runner import FACTORS_OF_RATE, Runner, Trial
from altcore.study.statistics import LEVEL, Estimate, dividends, estimate, holm, shapley
from altcore.study.variants import CAUSES, is_fixed_point, variants

SELECTION_SEED = 1000
"""Added to the seed for the runs that choose learning rates, and which no result uses."""
FRESH_SEED = 2000
"""Added to the seed for the runs that confirm a recommendation."""
RECOVERS = 0.5
"""Share of a gap that a counterfactual format must remove to be the cause."""
LOW_COSINE, ONSET_LINES = 0.9, 3
"""The gradient left its shadow: a cosine below this, for so many consecutive recorded steps."""


@define
class Explanation:
    """The stages of one explanation; `found` collects the answer."""

    runner: Runner
    plan: ResolvedRecipe
    seeds: Sequence[int]
    within: float
    """The largest gap to the twin, in the unit of the loss, that counts as training."""
    ties: Sequence[Sequence[str]] = ()
    """Layers that share a parameter, together."""
    watch: Mapping[str, Any] = field(factory=dict)
    """Further keys of the full arm's runs: the diagnostics that say when and where."""
    found: dict[str, Any] = field(init=False, factory=dict)
    rates: dict[str, float] = field(init=False, factory=dict)
    outcomes: dict[tuple[str, int], Outcome] = field(init=False, factory=dict)
    reference: str = field(init=False, default="twin")
    """The twin to compare with inside a factor, at the same learning rate."""

    @property
    def steps(self) -> int:
        """The number of steps of each run."""
        return self.runner.base.max_steps

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors that the recipe has."""
        return factors_in(self.plan)

    def _with_tied(self, operand: str, layers: list[str]) -> list[str]:
        """Return the layers; for casts of a parameter itself, with the layers that share it."""
        if operand not in OWN:
            return layers
        shared = {n for names in self.ties if set(names) & set(layers) for n in names}
        return [*layers, *sorted(shared - set(layers))]

    @property
    def runs_at_most(self) -> int:
        """The largest number of runs, for the cost."""
        arms = 2 ** len(self.factors) + 1
        inside = max(len(operands_in(self.plan, FACTORS[f])) for f in self.factors)
        groups = layer_groups(self.plan, OPERANDS)
        layers = max((len(g) for g in groups.values()), default=0)
        later = inside + len(groups) + layers + len(CAUSES) + 2
        changes = 4
        rated, fresh = arms + changes, 2 + changes  # the twin and the control again
        return rated * len(FACTORS_OF_RATE) + len(self.seeds) * (arms + later + fresh)

    def explain(self) -> dict[str, Any]:
        """Run all stages; return the answer as plain data."""
        self.runner.planned = self.runs_at_most
        arms = factorial(self.plan)
        full = arms[frozenset(self.factors)]
        control = frozen_control(self.plan)
        every = [*arms.values(), control]
        self.rates = self.runner.best_rates(every, self.seeds[0] + SELECTION_SEED)
        self.found = {
            "learning_rate_factors": dict(self.rates),
            "operands_of": {f: operands_in(self.plan, FACTORS[f]) for f in self.factors},
        }
        self._run(every, watched=full)
        self._judge_arms(arms, control)
        self._find_onset(full)
        verdict = self.found["full"]
        if verdict["distinguishable"]:
            self._look_inside(arms)
            self._recommend(control)
        return self.found

    # The factorial ---------------------------------------------------------------------------

    def _run(
        self,
        arms: Collection[Arm],
        *,
        seeds: Sequence[int] | None = None,
        rate: float | None = None,
        watched: Arm | None = None,
    ) -> None:
        """Run arms with every seed, side by side; each at its own rate unless one is given."""
        keys = {watched.key: self.watch} if watched else {}
        trials = [
            Trial(arm, seed, rate or self.rates.get(arm.key, 1.0), keys.get(arm.key, {}))
            for seed in seeds or self.seeds
            for arm in arms
        ]
        for trial, outcome in zip(trials, self.runner.outcomes(trials), strict=True):
            self.outcomes[trial.arm.key, trial.seed] = outcome

    def _gaps(
        self, key: str, seeds: Sequence[int] | None = None, reference: str = "twin"
    ) -> list[float]:
        """Return an arm's gap to the twin, by seed."""
        return [
            gap(self.outcomes[key, s], self.outcomes[reference, s], self.steps)
            for s in (seeds or self.seeds)
        ]

    def _diverged(self, key: str, seeds: Sequence[int] | None = None) -> int:
        return sum(self.outcomes[key, s].diverged for s in (seeds or self.seeds))

    def _learned(self, key: str, seeds: Sequence[int] | None = None) -> int:
        """Return in how many seeds an arm learned, by the verdict of its runs."""
        return sum(self.outcomes[key, s].learned is True for s in (seeds or self.seeds))

    def _row(self, key: str, reference: str = "twin") -> dict[str, Any]:
        gaps = self._gaps(key, reference=reference)
        return {**plain(estimate(gaps)), "diverged": self._diverged(key)}

    def _judge_arms(self, arms: Mapping[frozenset[str], Arm], control: Arm) -> None:
        rows = {a.key: self._row(a.key) for s, a in arms.items() if s}
        _correct(rows)
        by_seed = [
            {s: 0.0 if not s else self._gaps(a.key)[i] for s, a in arms.items()}
            for i in range(len(self.seeds))
        ]
        effects = _by_seed([{_name(k): v for k, v in dividends(g).items()} for g in by_seed])
        shares = _by_seed([shapley(g) for g in by_seed])
        full = "".join(self.factors)
        self.found |= {
            "arms": rows,
            "frozen": self._row(control.key),
            "effects": effects,
            "shapley": shares,
            "full": {**rows[full], **self._verdict(full, control.key)},
        }

    def _verdict(
        self, key: str, control: str, seeds: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Return whether an arm trains: it beats the frozen control and is close to the twin."""
        gaps, frozen = self._gaps(key, seeds), self._gaps(control, seeds)
        behind = estimate(gaps)
        ahead = estimate([f - g for f, g in zip(frozen, gaps, strict=True)])
        beats = ahead.low > 0 and self._diverged(key, seeds) == 0
        learned, twin = self._learned(key, seeds), self._learned("twin", seeds)
        have_learned = learned == twin == len(seeds or self.seeds)
        return {
            "gap": plain(behind),
            "ahead_of_frozen": plain(ahead),
            "beats_frozen": beats,
            "learned": learned,
            "twin_learned": twin,
            "trains": beats and have_learned and behind.high <= self.within,
            "distinguishable": behind.low > 0 or self._diverged(key, seeds) > 0,
        }

    # Inside the dominant factor --------------------------------------------------------------

    def _look_inside(self, arms: Mapping[frozenset[str], Arm]) -> None:
        shares: dict[str, dict[str, Any]] = self.found["shapley"]
        factor = max(shares, key=lambda f: shares[f]["mean"])
        self.found["factor"] = factor
        self.found["factor_distinguishable"] = shares[factor]["low"] > 0
        rate = self._rate_inside(arms[frozenset(factor)])
        operands = operands_in(self.plan, FACTORS[factor])
        inside = {o: Arm(f"{factor}-{_key(o)}", select(self.plan, [o])) for o in operands}
        operand = self._worst("operands", inside, rate)
        groups = layer_groups(self.plan, [operand] if operand else operands, self.ties)
        wanted = [operand] if operand else operands
        tried = {
            name: Arm(f"{factor}-{_key(operand or 'all')}-{_key(name)}", self._of(wanted, layers))
            for name, layers in groups.items()
        }
        group = self._worst("groups", tried, rate) if len(tried) > 1 else next(iter(tried), None)
        layer = self._worst_layer(factor, wanted, groups.get(group or "", []), rate)
        self.found |= {"operand": operand, "group": group, "layer": layer}
        self._find_cause(factor, wanted, groups.get(group or "", None), rate)

    def _rate_inside(self, arm: Arm) -> float:
        """Choose the learning rate of the arms inside a factor, and the twin to compare with.

        Both run at the factor's own rate. At another, the cost of the rate would count against
        every operand and layer, the innocent ones too. If the factor is not distinguishable from
        the twin there, its harm is that it forces another rate. Both then run at the twin's rate.
        """
        own, twins = self.rates[arm.key], self.rates["twin"]
        if own != twins:
            beside = evolve(twin(), key="twin-inside")
            self._run([beside], rate=own)
            row = self._row(arm.key, beside.key)
            if row["diverged"] or row["low"] > 0:
                self.reference = beside.key
            else:
                own = twins
        self.found["learning_rate_factor_inside"] = own
        return own

    def _of(self, operands: Iterable[str], layers: Iterable[str]) -> dict[str, dict[str, Cast]]:
        return select(self.plan, operands, layers)

    def _worst_layer(
        self, factor: str, operands: Sequence[str], layers: Sequence[str], rate: float
    ) -> str | None:
        if len(layers) < 2:
            return layers[0] if layers else None
        arms = {
            name: Arm(f"{factor}-{_key(operands[0])}-only-{_key(name)}", self._of(operands, [name]))
            for name in layers
        }
        return self._worst("layers", arms, rate)

    def _worst(self, stage: str, arms: Mapping[str, Arm], rate: float) -> str | None:
        """Run the arms; return the one with the largest gap, or None if no gap differs from 0."""
        self._run(arms.values(), rate=rate)
        rows = {name: self._row(arm.key, self.reference) for name, arm in arms.items()}
        _correct(rows)
        self.found[stage] = rows
        guilty = {n: r for n, r in rows.items() if r["guilty"]}
        return max(guilty, key=lambda n: guilty[n]["mean"]) if guilty else None

    def _find_cause(
        self, factor: str, operands: Sequence[str], layers: Sequence[str] | None, rate: float
    ) -> None:
        """Try counterfactual formats for the guilty operand; the cause is the one that recovers."""
        scope = None if layers is None else list(layers)
        chosen = select(self.plan, operands, scope)
        casts = [c for own in chosen.values() for c in own.values()]
        causes = {cause for c in casts for cause in variants(c)}
        base = Arm(f"{factor}-cause-none", chosen)
        tried = {
            cause: Arm(f"{factor}-cause-{cause}", select(self.plan, operands, scope, _to(cause)))
            for cause in CAUSES
            if cause in causes
        }
        self._run([base, *tried.values()], rate=rate)
        before, rows = self._gaps(base.key, reference=self.reference), {}
        for cause, arm in tried.items():
            after = self._gaps(arm.key, reference=self.reference)
            gained = estimate([b - a for b, a in zip(before, after, strict=True)])
            whole = math.fsum(before) / len(before)
            recovered = gained.mean / whole if whole > 0 else 0.0
            rows[cause] = {**plain(gained), "recovered": recovered}
        names = {c: r for c, r in rows.items() if r["low"] > 0 and r["recovered"] >= RECOVERS}
        self.found |= {
            "counterfactuals": rows,
            "cause": max(names, key=lambda c: names[c]["recovered"]) if names else None,
            "fixed_point": any(is_fixed_point(c.element) for c in casts),
        }

    # Where and when --------------------------------------------------------------------------

    def _find_onset(self, full: Arm) -> None:
        self.found["onset"] = {
            str(seed): onset(self.outcomes[full.key, seed].lines) for seed in self.seeds
        }

    # What to do ------------------------------------------------------------------------------

    def _recommend(self, control: Arm) -> None:
        """Try changes from the narrowest on, on fresh seeds, until one trains.

        Each runs at its own best rate, since a repaired recipe may learn at another rate.
        """
        seeds = [s + FRESH_SEED for s in self.seeds]
        self._run([twin(), control], seeds=seeds)
        tried = []
        for number, (text, casts) in enumerate(self._candidates()):
            arm = Arm(f"change-{number}", casts)
            rates = self.runner.best_rates([arm], self.seeds[0] + SELECTION_SEED)
            self._run([arm], seeds=seeds, rate=rates[arm.key])
            verdict = self._verdict(arm.key, control.key, seeds)
            tried.append({"change": text, **verdict})
            if verdict["trains"]:
                break
        chosen = tried[-1]["change"] if tried and tried[-1]["trains"] else None
        self.found |= {"candidates": tried, "recommendation": chosen}

    def _candidates(self) -> list[tuple[str, dict[str, dict[str, Cast]]]]:
        """Return changes of the full recipe, from the narrowest on."""
        operand, cause = self.found.get("operand"), self.found.get("cause")
        factor = self.found["factor"]
        layers = layer_groups(self.plan, [operand] if operand else FACTORS[factor], self.ties)
        group = layers.get(self.found.get("group") or "")
        everything = select(self.plan, OPERANDS)
        made = []
        if operand and cause:
            change = _to(cause)
            if group:
                layers_too = self._with_tied(operand, group)
                narrow = select(self.plan, [operand], layers_too, change)
                where = self.found["group"]
                made.append((f"{operand} of {where}: {CAUSE_CHANGE[cause]}", narrow))
            made.append(
                (f"{operand}: {CAUSE_CHANGE[cause]}", select(self.plan, [operand], None, change))
            )
        changed = [(text, merged(everything, casts)) for text, casts in made]
        if operand:
            rest = [o for o in OPERANDS if o != operand]
            changed.append((f"{operand} left in float32", select(self.plan, rest)))
        rest = [o for o in OPERANDS if o not in FACTORS[factor]]
        changed.append((f"{', '.join(FACTORS[factor])} left in float32", select(self.plan, rest)))
        return changed


CAUSE_CHANGE = {
    "above": "a format that reaches higher",
    "below": "a format that reaches lower",
    "finer": "a format with two more mantissa bits",
}


def _to(cause: str) -> Callable[[Cast], Cast]:
    return lambda cast: variants(cast).get(cause, cast)


def onset(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the step at which gradients left their shadow, and the layer with the largest error.

    This is the first of three consecutive recorded steps whose mean cosine is below 0.9; None if
    there is none, or if the shadow was not measured.
    """
    measured = [x for x in lines if isinstance(x.get("shadow/cosine_mean"), int | float)]
    for i in range(len(measured) - ONSET_LINES + 1):
        window = measured[i : i + ONSET_LINES]
        if all(x["shadow/cosine_mean"] < LOW_COSINE for x in window):
            prefix = "shadow/injected/"
            injected = {
                k.removeprefix(prefix): v
                for k, v in window[0].items()
                if k.startswith(prefix) and isinstance(v, int | float)
            }
            layer = max(injected, key=lambda k: injected[k]) if injected else None
            return {
                "step": window[0]["step"],
                "cosine": window[0]["shadow/cosine_mean"],
                "layer": layer,
                "injected": injected.get(layer) if layer else None,
            }
    return None


def plain(found: Estimate) -> dict[str, Any]:
    """Return an estimate as plain data."""
    return asdict(found)


def _correct(rows: dict[str, dict[str, Any]]) -> None:
    """Add Holm's corrected p, and whether the arm's gap is significant."""
    corrected = holm({k: r["p"] for k, r in rows.items()})
    for key, row in rows.items():
        row["p_holm"] = corrected[key]
        row["guilty"] = row["diverged"] > 0 or (row["low"] > 0 and corrected[key] < LEVEL)


def _by_seed(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    return {key: plain(estimate([f[key] for f in found])) for key in found[0]}


def _name(factors: frozenset[str]) -> str:
    return "×".join(f for f in FACTORS if f in factors)


def _key(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
