"""The intervention ``mantissa-shift``: moves a run that breaks on to another number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import field
from attrs.validators import and_, ge, le

from altcore.plugin import (
    Action,
    BadInput,
    BlockFormat,
    ChangeRecipe,
    Format,
    ShiftFormat,
    Stop,
    get_format,
    hookimpl,
    setting,
)
from altcore_interventions.nonfinite import Streak, is_loss_scales, warn_if_never_reached
from altcore_interventions.stall_threshold import warn_of_threshold
from altcore_interventions.view_stall import ViewStall

if TYPE_CHECKING:
    from altcore.plugin import Cast, NonFinite, ResolvedRecipe, Run, Step

CHAINS = {
    # For all its name, only the first step of it keeps more mantissa bits; the others trade
    # mantissa for exponent.
    "original": {
        "E7M0": "E5M2",
        "E1M6": "E3M4",
        "E0M7": "E3M4",
        "E3M4": "E5M2",
        "E5M2": "none",
    },
    # More mantissa bits at each step. Not from E1M6 on: E0M7 is the same grid.
    "mantissa": {
        "E7M0": "E5M2",
        "E6M1": "E5M2",
        "E5M2": "E4M3",
        "E4M3": "E3M4",
        "E3M4": "E2M5",
        "E2M5": "E1M6",
        "E1M6": "none",
        "E0M7": "none",
    },
    # More exponent bits at each step.
    "range": {
        "E0M7": "E3M4",
        "E1M6": "E3M4",
        "E2M5": "E3M4",
        "E3M4": "E4M3",
        "E4M3": "E5M2",
        "E5M2": "E6M1",
        "E6M1": "E7M0",
        "E7M0": "none",
    },
}
"""Chains by name: for each format the next one, or none at the end."""

CAUSES = {"nonfinite": "range", "stalled": "mantissa"}
"""The causes of a shift, and the chain that each follows if the cause decides."""

Chain = dict[str, Format | None]


def _resolved(chain: str | Mapping[str, Any]) -> Chain:
    """Return the chain with formats for names; a mistyped one is an error on either side."""
    if isinstance(chain, str):
        if chain not in CHAINS:
            raise BadInput(f"{chain!r} is none of {', '.join(CHAINS)}", key="mantissa-shift.chain")
        chain = CHAINS[chain]
    try:
        return {
            get_format(name).name: None if to is None or to == "none" else get_format(to)
            for name, to in chain.items()
        }
    except BadInput as error:
        error.fill(key="mantissa-shift.chain")
        raise


@attrs.frozen
class Shift:
    """All operands of some layers that hold one format."""

    format: str
    layers: tuple[str, ...]
    """Their names, or ``*``."""
    roles: tuple[str, ...]
    """Operands, or none if the layers hold no other format: then every one they have."""


@attrs.define(eq=False)
class MantissaShift:
    """Shift formats along a chain when a run's numbers break down.

    Every role in a format goes to the format that the chain names for it: after ``nan_patience``
    consecutive non-finite steps, or when updates stall at a rate above ``stall_threshold``. With
    ``stall_of: stored`` that is on a collapse called ``stalled``. With ``stall_of: view`` it is
    the rule of the original experiments: the views of float32 masters stalled over
    ``stall_window`` recorded steps after warm-up, at a learning rate of at least half its peak,
    and the training loss did not improve by two standard errors. No update is lost then, and the
    run may well learn: it is not a collapse. A format that the chain does not mention stays as it
    is; for it the plugin has no opinion.

    If no format that is to be shifted has a next one and at least one is at the chain's end
    (``none``), non-finite steps stop the run. A stall there is a ``warning``, told once for a
    recipe, and the run goes on.

    Chains: ``original`` is that of the original experiments, E7M0 → E5M2, E1M6 and E0M7 → E3M4,
    E3M4 → E5M2; ``mantissa`` goes to more mantissa bits at each step, E7M0 → E5M2 → E4M3 → E3M4 →
    E2M5 → E1M6; ``range`` to more exponent bits, E0M7 → E3M4 → E4M3 → E5M2 → E6M1 → E7M0. With
    ``direction: cause`` the chain is ``range`` for non-finite steps and ``mantissa`` for a stall,
    whatever ``chain`` says; a format may then come back.

    With ``scope: layer`` only the guilty layers are shifted: for a non-finite step those in which
    a cast made infinities or NaN of what overflowed, else the one in which such a value was met
    first; for a stall those whose own rate in the last step is above the threshold. If no such
    layer is known or none holds a format of the chain, it is the whole model, and the reason says
    so.

    A gradient that is lost while the loss is finite and the loss scale above 1 is the loss scale's
    business, and not counted. Proposing a shift resets the count of non-finite steps. All formats
    of a recipe that are to be shifted are shifted at once: from the next step the whole run is in
    others, as the original's, which had one format. A step shifts once, whatever else goes wrong
    in it.

    Each shift is an event (``recipe``, with its reason). Measures, each step (so that each is
    recorded), counting the changes of recipe that were carried out: ``nonfinite_shifts`` and
    ``stalled_shifts``, by cause.
    """

    nan_patience: int = setting(
        3, help="consecutive non-finite steps before a shift", validator=ge(1)
    )
    stall_threshold: float = setting(
        0.5,
        help="stall rate above which the format is shifted",
        validator=and_(ge(0.0), le(1.0)),
    )
    stall_of: Literal["stored", "view"] = setting(
        "stored", help="whose stall counts: that of stored weights, or of views of float32 masters"
    )
    chain: str | dict[str, Any] = setting(
        "original",
        help="original, mantissa or range; or for each format's name the next, none at the end",
        converter=_resolved,
    )
    scope: Literal["model", "layer"] = setting(
        "model", help="what is shifted: the whole model, or the guilty layers only"
    )
    direction: Literal["chain", "cause"] = setting(
        "chain", help="which chain is followed: the one given, or the one that suits the cause"
    )
    name: str = field(init=False, default="mantissa-shift")
    chains: dict[str, Chain] = field(init=False)
    """By cause."""
    nonfinite: Streak = field(init=False, factory=Streak)
    cause: str = field(init=False, default="nonfinite")
    """The cause of the shift that was proposed last."""
    has_asked: bool = field(init=False, default=False)
    """Whether a shift was proposed in this step."""
    done: dict[str, int] = field(init=False, factory=lambda: dict.fromkeys(CAUSES, 0))
    """Changes of recipe that were carried out, by cause."""
    views: ViewStall = field(init=False, factory=ViewStall)
    has_told_end: bool = field(init=False, default=False)
    """Whether a stall at the chain's end was told, of this recipe."""

    def __attrs_post_init__(self) -> None:
        given: Any = self.chain  # as the converter made it
        by_cause = self.direction == "cause"
        self.chains = {c: _resolved(name) if by_cause else given for c, name in CAUSES.items()}

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Warn of settings under which this plugin would never act, and refuse impossible ones."""
        held = {s.format for s in shifts(run.quantization.plan)}
        warn_if_never_reached(run, self.name, self.nan_patience)
        if self.stall_of == "stored":
            warn_of_threshold(run, self.name, self.stall_threshold)
        self._check_stored(run.quantization.plan)
        if any(self.done.values()):  # a run that goes on: what holds of its recipe was told
            return
        if not held:
            run.emit("warning", message=f"{self.name} will change nothing: nothing is quantized")
        unknown = sorted(held.difference(*self.chains.values()))
        if unknown:
            run.emit(
                "warning",
                message=f"{self.name}: the chain does not mention {', '.join(unknown)}: "
                "what is in it will not be shifted",
            )
        if held and not any(self._may_stall(casts) for casts in run.quantization.plan.values()):
            what = "stored weight" if self.stall_of == "stored" else "view of a float32 master"
            run.emit(
                "warning",
                message=f"{self.name}: there is no {what} whose stall would count in this run: "
                f"none shifts a format (stall_of: {self.stall_of})",
            )

    def _check_stored(self, plan: ResolvedRecipe) -> None:
        """Refuse a chain on which what is stored, with one scale, would come to a block format."""
        stored = [casts[o] for casts in plan.values() for o in ("stored_weight", "optimizer_state")]
        reached = list(dict.fromkeys(cast.format.name for cast in stored if cast is not None))
        for name in reached:
            for to in (chain.get(name) for chain in self.chains.values()):
                if isinstance(to, BlockFormat):
                    raise BadInput(
                        f"{name} goes to {to.name}, which has a scale for each block, and what "
                        "the recipe stores has one scale",
                        key=f"{self.name}.chain",
                    )
                if to is not None and to.name not in reached:
                    reached.append(to.name)

    def _may_stall(self, casts: Mapping[str, Cast | None]) -> bool:
        stored = casts["stored_weight"]
        if self.stall_of == "view":
            return stored is None and casts["weight@fwd"] is not None
        return stored is not None and stored.rounding != "stochastic"

    @hookimpl
    def post_backward(self) -> dict[str, int]:
        """Measure how many shifts there have been."""
        return {f"{cause}_shifts": count for cause, count in self.done.items()}

    @hookimpl
    def on_record(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Keep how views stall."""
        if self.stall_of == "view":
            self.views.note(run, metrics)

    @hookimpl
    def pre_step(self, run: Run) -> list[Action]:
        """Judge the views."""
        self.has_asked = False
        found = self.views.judge(run, self.stall_threshold)
        if found is None:
            return []
        rate, trend = found
        guilty = stalled_layers(run.quantization.stats(), "view", self.stall_threshold)
        why = f"a stall rate of {rate:.1%} of views (threshold {self.stall_threshold:g}): {trend}"
        return self._shift(run, "stalled", why, guilty)

    @hookimpl
    def on_nan(self, run: Run, step: Step, where: NonFinite) -> list[Action]:
        """Count consecutive non-finite steps; propose a shift when there are enough."""
        if is_loss_scales(where, step):
            return []
        count = self.nonfinite.add(step)
        if count < self.nan_patience:
            return []
        plan = run.quantization.plan
        guilty = overflowing_layers(run) if self.scope == "layer" else []
        guilty = guilty or [name for name in plan if where.layer and is_of(where.layer, name)]
        why = f"{count} consecutive steps were not finite: {where}"
        return self._shift(run, "nonfinite", why, guilty)

    @hookimpl
    def on_collapse(self, run: Run, evidence: Mapping[str, Any]) -> list[Action]:
        """Propose a shift when most updates of stored weights stalled and the run stands still."""
        rate = evidence.get("rate")
        if evidence["cause"] != "stalled" or self.stall_of != "stored":
            return []
        if rate is None or rate <= self.stall_threshold:
            return []
        guilty = stalled_layers(evidence.get("layers", ()), "stored", self.stall_threshold)
        why = f"a stall rate of {rate:.1%} (threshold {self.stall_threshold:g})"
        return self._shift(run, "stalled", why, guilty)

    @hookimpl
    def on_event(self, event: Mapping[str, Any]) -> None:
        """Count what was carried out; another recipe or state is judged by its own steps."""
        if event["event"] == "recipe" and event["plugin"] == self.name:
            self.done[self.cause] += 1
        if event["event"] in ("recipe", "rollback"):
            self.views = ViewStall(since=event["step"])
            self.has_told_end = False

    def _shift(self, run: Run, cause: str, why: str, guilty: list[str]) -> list[Action]:
        if self.has_asked:
            return []
        self.cause, chain, plan = cause, self.chains[cause], run.quantization.plan
        held: list[Shift] = []
        if self.scope == "layer":
            own = {name: casts for name, casts in plan.items() if name in guilty}
            held = [s for s in shifts(own, whole=False) if s.format in chain]
            why += "" if held else "; no layer of the chain's formats is known to be guilty of it"
        held = held or [s for s in shifts(plan) if s.format in chain]
        possible = [s for s in held if chain[s.format] is not None]
        if possible:
            self.nonfinite, self.has_asked = Streak(), True
            return [self._change(shift, why) for shift in possible]
        if held:
            ends = ", ".join(dict.fromkeys(s.format for s in held))
            why = f"{why}; the chain of formats ends at {ends}"
            if cause == "nonfinite":
                return [Stop(reason=why)]
            if not self.has_told_end:
                self.has_told_end = True
                run.emit("warning", message=f"{self.name}: {why}; the run goes on")
        return []

    def _change(self, shift: Shift, why: str) -> ChangeRecipe:
        to = self.chains[self.cause][shift.format]
        are_several = len(shift.layers) > 1
        place = f"{shift.layers[0]}{' and others' if are_several else ''}"
        where = "" if place == "*" else f" in {place}"
        reason = f"{why}; {shift.format} is shifted to {to}{where}"
        if not shift.roles:
            return ShiftFormat(to, shift.layers, reason=reason)
        return ChangeRecipe(layers=shift.layers, roles=shift.roles, format=to, reason=reason)

    def state_dict(self) -> dict[str, Any]:
        """Return counts and what was judged, as plain data."""
        return {
            "nonfinite": attrs.asdict(self.nonfinite),
            "cause": self.cause,
            "done": dict(self.done),
            "views": self.views.state_dict(),
            "has_told_end": self.has_told_end,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.nonfinite = Streak(**state["nonfinite"])
        self.cause, self.done = state["cause"], dict(state["done"])
        self.views.load_state_dict(state["views"])
        self.has_told_end = state["has_told_end"]


def overflowing_layers(run: Run) -> list[str]:
    """Return the layers with a cast that made infinities or NaN in this step; a host read."""
    found = []
    for row in run.quantization.stats():
        cast = run.quantization.plan[row["layer"]].get(row["operand"])
        if row.get("overflow") and cast is not None and cast.overflow in ("inf", "nan"):
            found.append(row["layer"])
    return list(dict.fromkeys(found))


def is_of(name: str, layer: str) -> bool:
    """Whether ``name`` is a layer's or one of its parameters'."""
    return name == layer or name.rpartition(".")[0] == layer


def stalled_layers(rows: Any, stall_of: str, threshold: float) -> list[str]:
    """Return the layers whose weights stalled above the threshold, from the rows of ``stats``."""
    operand, moved = {"stored": ("stored_weight", "updates"), "view": ("weight view", "moved")}[
        stall_of
    ]
    return [
        row["layer"]
        for row in rows
        if row["operand"] == operand
        and row.get("rounding") != "stochastic"
        and row["stalled"] > threshold * row[moved]
    ]


def shifts(plan: ResolvedRecipe, *, whole: bool = True) -> list[Shift]:
    """Return what a plan holds, by format, such that each part can change on its own.

    ``whole``: the plan is that of the whole model, so that one format alone can be named ``*``.
    Layers that hold one format only are named with no roles; the others with exactly the
    operands that hold it, since naming an operand would quantize it where it is left alone.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for layer, casts in plan.items():
        formats = {o: cast.format.name for o, cast in casts.items() if cast is not None}
        for name in dict.fromkeys(formats.values()):
            operands = tuple(o for o, held in formats.items() if held == name)
            alone = len(operands) == len(formats)
            groups.setdefault((name, () if alone else operands), []).append(layer)
    if whole and len(groups) == 1:
        ((name, _),) = groups
        return [Shift(name, ("*",), ())]
    return [Shift(name, tuple(layers), roles) for (name, roles), layers in groups.items()]
