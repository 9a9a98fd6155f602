"""Compare formats, recipes and optimizers on identical batches, with a twin and a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from attrs import define, evolve

from altcore.estimates import holm
from altcore.recipes import OPERANDS
from altcore.study.arms import Arm, select
from altcore.study.contenders import Contender
from altcore.study.differences import differences, pairs
from altcore.study.keys import run_key
from altcore.study.measures import bits_per_byte, outcome_loss, rates, validation
from altcore.study.outcome import Outcome
from altcore.study.paired import PairedRuns
from altcore.study.rates import runs_at_most
from altcore.study.runner import Runner
from altcore.study.sequential import Schedule, looks, run_in_looks
from altcore.study.statistics import plain
from altcore.study.verdict import CANNOT_TELL, Evidence


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
    schedule: Schedule = looks
    """After how many seeds an arm may stop."""
    metric: str = "train"
    """The loss that gaps are of and learning rates are chosen by: of the last tenth of the training
    steps, or ``val``."""
    given_rates: Sequence[float] | None = None
    """Factors of the learning rate that are tried as they are; by default they are searched for."""
    null: Arm | None = None
    """The null arm, if it runs; for each optimizer at its twin's learning rate."""

    @cached_property
    def paired(self) -> dict[str, PairedRuns]:
        """By optimizer the runs that are held against its twin; all share what is known of runs."""
        first = PairedRuns(
            self.runner,
            self.seeds,
            self.within,
            self.schedule,
            given_rates=self.given_rates,
            metric=self.metric,
        )
        return {
            name: evolve(first, reference=Arm(self._twin(name), {}, keys=keys))
            for name, keys in self.optimizer_keys.items()
        }

    @property
    def runs(self) -> PairedRuns:
        """The runs, for what does not hang on a twin."""
        return next(iter(self.paired.values()))

    @property
    def runs_at_most(self) -> int:
        """The largest number of runs, for the cost."""
        arms, nulls = len(self.arms()), len(self._nulls())
        return arms * runs_at_most(self.given_rates) + (arms + nulls) * len(self.seeds)

    def compare(self) -> dict[str, Any]:
        """Run everything; return a row for each contender, as plain data."""
        arms, nulls, runs = self.arms(), self._nulls(), self.runs
        self.runner.planned = self.runs_at_most
        twin_of = {key: self._twin(c.optimizer) for c in self.contenders for key in self._own(c)}
        runs.choose_rates(list(arms.values()), twin_of)
        runs.rates |= {null.key: runs.rates[self._twin(name)] for name, null in nulls.items()}
        arms |= {null.key: null for null in nulls.values()}

        def run(contenders: Sequence[Contender], count: int) -> None:
            keys = dict.fromkeys(key for c in contenders for key in self._beside(c, nulls))
            runs.run_alone([arms[key] for key in keys], count=count)

        run_in_looks(
            self.contenders,
            self.runs.shares,
            run,
            lambda left: self._unsettled(left, nulls),
        )
        curves = {key: curve.plain() for key, curve in runs.curves.items()}
        return {**self._found(nulls), "learning_rates": curves}

    @property
    def twins(self) -> dict[str, dict[int, Outcome]]:
        """The runs of each optimizer's twin, by seed."""
        return {f"the float32 twin of {name}": runs.twins for name, runs in self.paired.items()}

    def _own(self, c: Contender) -> list[str]:
        """Return a contender's arm, and its control."""
        return [c.key, self._control(c)]

    def _beside(self, c: Contender, nulls: Mapping[str, Arm]) -> list[str]:
        """Return the arms that run as far as a contender does, itself included."""
        null = [nulls[c.optimizer].key] if c.optimizer in nulls else []
        return [*self._own(c), self._twin(c.optimizer), *null]

    def _unsettled(self, left: Sequence[Contender], nulls: Mapping[str, Arm]) -> list[Contender]:
        """Return the contenders for which further seeds can matter, of those that ran."""
        found = self._found(nulls)
        differing = found["differences"]
        open_pairs = [d for d in differing if d["verdict"] == CANNOT_TELL and not d["reason"]]
        names = {d[end] for d in open_pairs for end in ("arm", "against")}
        p_of = {row["arm"]: row["p_holm"] for row in found["contenders"]}
        return [
            c
            for c in left
            if c.name in names or not self._evidence(c, p_of[c.name]).is_settled(self.within)
        ]

    def _found(self, nulls: Mapping[str, Arm]) -> dict[str, Any]:
        """Return what the runs say so far."""
        twins = {name: self._twin_row(name, nulls.get(name)) for name in self.optimizer_keys}
        rows = [self._row(c) for c in self.contenders]
        corrected = holm({i: r["gap"]["p"] for i, r in enumerate(rows)})
        for i, (c, row) in enumerate(zip(self.contenders, rows, strict=True)):
            row["p_holm"] = corrected[i]
            row |= self._evidence(c, corrected[i]).judge(self.within)
        untold = {r["arm"]: r["reason"] for r in rows if r["twin_learned"] < r["gap"]["n"]}
        gaps = {c.name: self.paired[c.optimizer].gaps(c.key) for c in self.contenders}
        held = pairs(self.contenders, self.against)
        named = {c.key for c in self.contenders} | set(map(self._twin, self.optimizer_keys))
        shown = [outcome for (key, _), outcome in self.runs.outcomes.items() if key in named]
        eval_steps = self.runner.base.eval_steps
        return {
            "contenders": rows,
            "differences": differences(held, gaps, self.within, self.runs.shares, untold),
            "twins": twins,
            "validation": validation(shown, eval_steps, self.within),
        }

    def _evidence(self, c: Contender, p: float) -> Evidence:
        """Return what says whether a contender is as good as its twin."""
        return self.paired[c.optimizer].evidence(c.key, self._control(c), p)

    def arms(self) -> dict[str, Arm]:
        """Return every arm by key. Contenders that freeze the same layers share their control."""
        arms = {runs.reference.key: runs.reference for runs in self.paired.values()}
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

    def _nulls(self) -> dict[str, Arm]:
        """Return the null arm of each optimizer's twin, if they run."""
        if self.null is None:
            return {}
        return {
            name: evolve(self.null, key=run_key(f"{self.null.key}-{name}"), keys=keys)
            for name, keys in self.optimizer_keys.items()
        }

    def _twin(self, optimizer: str) -> str:
        return run_key(f"twin-{optimizer}")

    def _row(self, c: Contender) -> dict[str, Any]:
        runs, own = self.paired[c.optimizer], self.runs.of(c.key)
        evidence = runs.evidence(c.key, self._control(c))
        return {
            "arm": c.name,
            "format": c.start.format,
            "recipe": c.start.recipe,
            "rounding": c.rounding,
            "optimizer": c.optimizer,
            "plugins": c.plugins,
            "settings": dict(c.settings),
            "key": c.key,
            "diverged": evidence.diverged,
            "learned": evidence.learned,
            "twin_learned": evidence.twin_learned,
            "gap": evidence.gap,
            "frozen": evidence.frozen,
            "ahead_of_frozen": evidence.ahead,
            "detectable": runs.detectable_beside(c.key, len(self.contenders)),
            **self._losses(c.key),
            "rates": rates(dict(zip(self.seeds, own, strict=False)), self._clip(c)),
        }

    def _losses(self, key: str) -> dict[str, Any]:
        """Return an arm's losses, and the bits a byte where the data are bytes of text."""
        runs, own = self.runs, self.runs.of(key)
        bits = [b for b in map(bits_per_byte, own) if b is not None]
        return {
            "loss": plain(runs.estimate([o.tail(runs.steps) for o in own])),
            "val_loss": plain(runs.estimate([outcome_loss(o) for o in own])),
            "bits_per_byte": plain(runs.estimate(bits)) if len(bits) == len(own) else None,
        }

    def _clip(self, c: Contender) -> float:
        """Return the gradient norm to which a contender's runs clip."""
        return float(c.keys.get("grad_clip", self.runner.base.grad_clip))

    def _twin_row(self, optimizer: str, null: Arm | None) -> dict[str, Any]:
        """Return what an optimizer's twin came to, and what can be detected beside it."""
        runs, key = self.paired[optimizer], self._twin(optimizer)
        found = {**self._losses(key), "key": key, "learned": runs.learned(key)}
        if null is not None:
            found["null"] = runs.judge_null(null.key, len(self.contenders))
        return found
