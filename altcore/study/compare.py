"""Compare formats, recipes and optimizers on identical batches, with a twin and a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from attrs import define, evolve, field

from altcore.recipes import OPERANDS
from altcore.study.arms import Arm, select
from altcore.study.contenders import Contender
from altcore.study.differences import differences, pairs
from altcore.study.keys import run_key
from altcore.study.measures import bits_per_byte, loss_of, outcome_loss, rates, val_gap, validation
from altcore.study.null_arm import detectable
from altcore.study.outcome import Outcome, gap
from altcore.study.rates import SELECTION_SEED, Curve, choose, runs_at_most
from altcore.study.runner import Runner, Trial
from altcore.study.sequential import Schedule, estimate_at, looks, run_in_looks
from altcore.study.statistics import LEVEL, holm, plain
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
    curves: dict[str, Curve] = field(init=False, factory=dict)
    outcomes: dict[tuple[str, int], Outcome] = field(init=False, factory=dict)

    @property
    def shares(self) -> Mapping[int, float]:
        """The numbers of seeds after which an arm may stop, and the share of the error of each."""
        return self.schedule(len(self.seeds))

    @property
    def runs_at_most(self) -> int:
        """The largest number of runs, for the cost."""
        arms, nulls = len(self.arms()), len(self._nulls())
        return arms * runs_at_most(self.given_rates) + (arms + nulls) * len(self.seeds)

    def compare(self) -> dict[str, Any]:
        """Run everything; return a row for each contender, as plain data."""
        arms = self.arms()
        self.runner.planned = self.runs_at_most
        every = list(arms.values())
        self._choose_rates(every)
        rates = {key: curve.best for key, curve in self.curves.items()}
        nulls = self._nulls()
        rates |= {null.key: rates[self._twin(name)] for name, null in nulls.items()}
        arms |= {null.key: null for null in nulls.values()}

        def run(contenders: Sequence[Contender], count: int) -> None:
            keys = dict.fromkeys(key for c in contenders for key in self._beside(c, nulls))
            trials = [
                Trial(arms[key], seed, rates[key])
                for seed in self.seeds[:count]
                for key in keys
                if (key, seed) not in self.outcomes
            ]
            for trial, outcome in zip(trials, self.runner.outcomes(trials), strict=True):
                self.outcomes[trial.arm.key, trial.seed] = outcome

        run_in_looks(self.contenders, self.shares, run, lambda left: self._unsettled(left, nulls))
        curves = {key: curve.plain() for key, curve in self.curves.items()}
        return {**self._found(nulls), "learning_rates": curves}

    @property
    def twins(self) -> dict[str, dict[int, Outcome]]:
        """The runs of each optimizer's twin, by seed."""
        return {
            f"the float32 twin of {name}": dict(
                zip(self.seeds, self._of(self._twin(name)), strict=False)
            )
            for name in self.optimizer_keys
        }

    def _beside(self, c: Contender, nulls: Mapping[str, Arm]) -> list[str]:
        """Return the arms that run as far as a contender does, itself included."""
        null = [nulls[c.optimizer].key] if c.optimizer in nulls else []
        return [c.key, self._twin(c.optimizer), self._control(c), *null]

    def _unsettled(self, left: Sequence[Contender], nulls: Mapping[str, Arm]) -> list[Contender]:
        """Return the contenders for which further seeds can matter, of those that ran."""
        found = self._found(nulls)
        differing = found["differences"]
        open_pairs = [d for d in differing if d["verdict"] == CANNOT_TELL and not d["reason"]]
        names = {d[end] for d in open_pairs for end in ("arm", "against")}
        evidence = {row["arm"]: self._evidence(row, found["twins"]) for row in found["contenders"]}
        return [c for c in left if c.name in names or not evidence[c.name].is_settled(self.within)]

    def _found(self, nulls: Mapping[str, Arm]) -> dict[str, Any]:
        """Return what the runs say so far."""
        twins = {name: self._twin_row(name, nulls.get(name)) for name in self.optimizer_keys}
        rows = [self._row(c) for c in self.contenders]
        corrected = holm({i: r["gap"]["p"] for i, r in enumerate(rows)})
        for i, row in enumerate(rows):
            row["p_holm"] = corrected[i]
            row |= self._evidence(row, twins).judge(self.within)
        untold = {r["arm"]: r["reason"] for r in rows if r["twin_learned"] < r["gap"]["n"]}
        gaps = {c.name: self._gaps(c.key, self._twin(c.optimizer)) for c in self.contenders}
        held = pairs(self.contenders, self.against)
        named = {c.key for c in self.contenders} | set(map(self._twin, self.optimizer_keys))
        shown = [outcome for (key, _), outcome in self.outcomes.items() if key in named]
        eval_steps = self.runner.base.eval_steps
        return {
            "contenders": rows,
            "differences": differences(held, gaps, self.within, self.shares, untold),
            "twins": twins,
            "validation": validation(shown, eval_steps, self.within),
        }

    def _choose_rates(self, arms: Sequence[Arm]) -> None:
        """Choose each arm's learning rate: the twins', and the others' from their twin's on."""
        of_contenders = {c.key: self._twin(c.optimizer) for c in self.contenders}
        of_controls = {self._control(c): self._twin(c.optimizer) for c in self.contenders}
        twin_of = of_contenders | of_controls
        seed = self.seeds[0] + SELECTION_SEED
        loss = loss_of(self.metric, self.runner.base.max_steps)
        around: dict[str, float] = {}
        for is_twin in (True, False):
            some = [arm for arm in arms if (arm.key not in twin_of) is is_twin]
            self.curves |= choose(
                self.runner, some, seed, self.within, self.given_rates, around, loss
            )
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

    def _of(self, key: str) -> list[Outcome]:
        """Return the outcomes that an arm has, by seed."""
        return [self.outcomes[key, s] for s in self.seeds if (key, s) in self.outcomes]

    def _gaps(self, key: str, reference: str) -> list[float]:
        both = zip(self._of(key), self._of(reference), strict=False)
        if self.metric == "val":
            return [val_gap(one, other) for one, other in both]
        return [gap(one, other, self.runner.base.max_steps) for one, other in both]

    def _estimate(self, values: Sequence[float]) -> dict[str, Any]:
        return plain(estimate_at(values, self.shares))

    def _row(self, c: Contender) -> dict[str, Any]:
        twin, control = self._twin(c.optimizer), self._control(c)
        gaps, frozen = self._gaps(c.key, twin), self._gaps(control, twin)
        ahead = [f - g for f, g in zip(frozen, gaps, strict=False)]
        return {
            "arm": c.name,
            "format": c.start.format,
            "recipe": c.start.recipe,
            "rounding": c.rounding,
            "optimizer": c.optimizer,
            "plugins": c.plugins,
            "settings": dict(c.settings),
            "key": c.key,
            "diverged": sum(outcome.diverged for outcome in self._of(c.key)),
            "learned": self._learned(c.key, len(gaps)),
            "twin_learned": self._learned(twin, len(gaps)),
            "gap": self._estimate(gaps),
            "frozen": self._estimate(frozen),
            "ahead_of_frozen": self._estimate(ahead),
            "detectable": self._detectable(gaps),
            **self._losses(c.key),
            "rates": rates(dict(zip(self.seeds, self._of(c.key), strict=False)), self._clip(c)),
        }

    def _detectable(self, gaps: Sequence[float]) -> float:
        """Return the smallest gap that can be detected where gaps spread over the seeds as these.

        It is for all seeds, and this table's number of rows.
        """
        seeds, rows = len(self.seeds), len(self.contenders)
        return detectable(gaps, seeds, rows, LEVEL * self.shares[seeds])

    def _losses(self, key: str) -> dict[str, Any]:
        """Return an arm's losses, and the bits a byte where the data are bytes of text."""
        own = self._of(key)
        bits = [b for b in map(bits_per_byte, own) if b is not None]
        return {
            "loss": self._estimate([o.tail(self.runner.base.max_steps) for o in own]),
            "val_loss": self._estimate([outcome_loss(o) for o in own]),
            "bits_per_byte": self._estimate(bits) if len(bits) == len(own) else None,
        }

    def _clip(self, c: Contender) -> float:
        """Return the gradient norm to which a contender's runs clip."""
        return float(c.keys.get("grad_clip", self.runner.base.grad_clip))

    def _learned(self, key: str, seeds: int) -> int:
        """Return in how many of the first seeds an arm learned, by the verdict of its runs."""
        return sum(outcome.learned is True for outcome in self._of(key)[:seeds])

    def _evidence(self, row: Mapping[str, Any], twins: Mapping[str, Mapping[str, Any]]) -> Evidence:
        """Return what says whether a contender is as good as its twin."""
        null = twins[row["optimizer"]].get("null", {})
        return Evidence(
            gap=row["gap"],
            p=row["p_holm"],
            frozen=row["frozen"],
            ahead=row["ahead_of_frozen"],
            seeds=row["gap"]["n"],
            diverged=row["diverged"],
            learned=row["learned"],
            twin_learned=row["twin_learned"],
            schedule=self.schedule,
            detectable=null.get("detectable"),
        )

    def _twin_row(self, optimizer: str, null: Arm | None) -> dict[str, Any]:
        """Return what an optimizer's twin came to, and what can be detected beside it."""
        key = self._twin(optimizer)
        found = {
            **self._losses(key),
            "key": key,
            "learned": self._learned(key, len(self.seeds)),
        }
        if null is not None:
            gaps = self._gaps(null.key, key)
            smallest, rows = self._detectable(gaps), len(self.contenders)
            found["null"] = {**self._estimate(gaps), "detectable": smallest, "rows": rows}
        return found
