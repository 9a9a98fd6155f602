"""Compare formats, recipes and optimizers on identical batches, with a twin and a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from attrs import define, field

from altcore.recipes import OPERANDS
from altcore.study.arms import Arm, select
from altcore.study.contenders import Contender
from altcore.study.differences import differences, pairs
from altcore.study.keys import run_key
from altcore.study.outcome import Outcome, gap
from altcore.study.rates import SELECTION_SEED, Curve, choose, runs_at_most
from altcore.study.runner import Runner, Trial
from altcore.study.statistics import LEVEL, estimate, holm, plain


@define(slots=False)
class Comparison:
    """Trains every contender, its optimizer's float32 twin and a frozen control."""

    runner: Runner
    contenders: Sequence[Contender]
    seeds: Sequence[int]
    within: float
    optimizer_keys: Mapping[str, Mapping[str, Any]]
    """For each optimizer the keys of the configuration that choose it."""
    against: str | None = None
    """What contenders are held against, besides their twins; see `pairs`."""
    given_rates: Sequence[float] | None = None
    """Factors of the learning rate that are tried as they are; by default they are searched for."""
    curves: dict[str, Curve] = field(init=False, factory=dict)
    outcomes: dict[tuple[str, int], Outcome] = field(init=False, factory=dict)

    @property
    def runs_at_most(self) -> int:
        """The largest number of runs, for the cost."""
        return len(self.arms()) * (runs_at_most(self.given_rates) + len(self.seeds))

    def compare(self) -> dict[str, Any]:
        """Run everything; return a row for each contender, as plain data."""
        arms = self.arms()
        self.runner.planned = self.runs_at_most
        every = list(arms.values())
        self._choose_rates(every)
        trials = [Trial(a, s, self.curves[a.key].best) for s in self.seeds for a in every]
        for trial, outcome in zip(trials, self.runner.outcomes(trials), strict=True):
            self.outcomes[trial.arm.key, trial.seed] = outcome
        rows = [self._row(c) for c in self.contenders]
        corrected = holm({i: r["gap"]["p"] for i, r in enumerate(rows)})
        for i, row in enumerate(rows):
            row["p_holm"] = corrected[i]
            row["verdict"] = self._verdict(row)
        gaps = {c.name: self._gaps(c.key, self._twin(c.optimizer)) for c in self.contenders}
        return {
            "contenders": rows,
            "differences": differences(pairs(self.contenders, self.against), gaps, self.within),
            "twins": self._twins(),
            "learning_rates": {key: curve.plain() for key, curve in self.curves.items()},
        }

    def _choose_rates(self, arms: Sequence[Arm]) -> None:
        """Choose each arm's learning rate: the twins', and the others' from their twin's on."""
        of_contenders = {c.key: self._twin(c.optimizer) for c in self.contenders}
        of_controls = {self._control(c): self._twin(c.optimizer) for c in self.contenders}
        twin_of = of_contenders | of_controls
        seed = self.seeds[0] + SELECTION_SEED
        around: dict[str, float] = {}
        for is_twin in (True, False):
            some = [arm for arm in arms if (arm.key not in twin_of) is is_twin]
            self.curves |= choose(self.runner, some, seed, self.within, self.given_rates, around)
            around = {key: self.curves[twin].best for key, twin in twin_of.items()}

    def arms(self) -> dict[str, Arm]:
        """Return every arm by key. Contenders that freeze the same layers share their control."""
        arms: dict[str, Arm] = {}
        for name, keys in self.optimizer_keys.items():
            arms[self._twin(name)] = Arm(self._twin(name), {}, keys=keys)
        for c in self.contenders:
            keys = self.optimizer_keys[c.optimizer]
            arms[c.key] = Arm(c.key, select(c.plan, OPERANDS), keys=c.keys)
            key = self._control(c)
            arms.setdefault(key, Arm(key, {}, freeze=tuple(sorted(self._frozen(c))), keys=keys))
        return arms

    def _control(self, contender: Contender) -> str:
        return run_key(f"frozen-{self._controls[self._frozen(contender)]}-{contender.optimizer}")

    def _frozen(self, contender: Contender) -> frozenset[str]:
        """Return the layers of a contender's control: those that it quantizes, or all others do."""
        every = (c.quantized for c in self.contenders)
        return contender.quantized or frozenset[str]().union(*every)

    @cached_property
    def _controls(self) -> dict[frozenset[str], str]:
        """What the control of each set of layers is called: after a recipe, or after an arm."""
        named: dict[frozenset[str], str] = {}
        for c in self.contenders:
            taken = c.recipe_key in named.values()
            named.setdefault(self._frozen(c), c.key if taken else c.recipe_key)
        return named

    def _twin(self, optimizer: str) -> str:
        return run_key(f"twin-{optimizer}")

    def _gaps(self, key: str, reference: str) -> list[float]:
        steps = self.runner.base.max_steps
        return [gap(self.outcomes[key, s], self.outcomes[reference, s], steps) for s in self.seeds]

    def _row(self, c: Contender) -> dict[str, Any]:
        twin, control = self._twin(c.optimizer), self._control(c)
        gaps, frozen = self._gaps(c.key, twin), self._gaps(control, twin)
        return {
            "arm": c.name,
            "format": c.start.format,
            "recipe": c.start.recipe,
            "rounding": c.rounding,
            "optimizer": c.optimizer,
            "plugins": c.plugins,
            "settings": dict(c.settings),
            "key": c.key,
            "diverged": sum(self.outcomes[c.key, s].diverged for s in self.seeds),
            "learned": self._learned(c.key),
            "twin_learned": self._learned(twin),
            "gap": plain(estimate(gaps)),
            "frozen": plain(estimate(frozen)),
            "ahead_of_frozen": plain(estimate([f - g for f, g in zip(frozen, gaps, strict=True)])),
            "loss": plain(estimate([self._tail(c.key, s) for s in self.seeds])),
        }

    def _learned(self, key: str) -> int:
        """Return in how many seeds an arm learned, by the verdict of its runs."""
        return sum(self.outcomes[key, s].learned is True for s in self.seeds)

    def _tail(self, key: str, seed: int) -> float:
        return self.outcomes[key, seed].tail(self.runner.base.max_steps)

    def _verdict(self, row: Mapping[str, Any]) -> str:
        """Return in words what the intervals allow."""
        found, ahead = row["gap"], row["ahead_of_frozen"]
        if row["diverged"]:
            return f"diverges in {row['diverged']} of {len(self.seeds)}"
        seeds = len(self.seeds)
        if row["twin_learned"] < seeds:
            missing = seeds - row["twin_learned"]
            return f"cannot be told: the twin did not learn in {missing} of {seeds}"
        if row["learned"] < seeds:
            return f"did not learn in {seeds - row['learned']} of {seeds}"
        if row["frozen"]["low"] <= 0:
            return "cannot be told: the twin is not ahead of the frozen control"
        if ahead["low"] <= 0:
            return "does not train: not ahead of the frozen control"
        if found["high"] <= self.within:
            is_told = row["p_holm"] < LEVEL and (found["low"] > 0 or found["high"] < 0)
            better = ", better than the twin" if found["high"] < 0 else ""
            return f"trains{better if is_told else ', not distinguishable from the twin'}"
        if found["low"] > self.within:
            return "learns, but not as the twin does"
        return "learns; whether as the twin does cannot be told"

    def _twins(self) -> dict[str, Any]:
        return {
            name: {
                "loss": plain(estimate([self._tail(self._twin(name), s) for s in self.seeds])),
                "key": self._twin(name),
                "learned": self._learned(self._twin(name)),
            }
            for name in self.optimizer_keys
        }
