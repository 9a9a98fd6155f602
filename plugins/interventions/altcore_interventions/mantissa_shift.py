"""The intervention ``mantissa-shift``: moves a run that breaks on to another number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field
from attrs.validators import and_, ge, le

from altcore import Format, ShiftFormat, Stop, get_format, hookimpl, setting
from altcore.actions import Action, ChangeRecipe

if TYPE_CHECKING:
    from altcore.recipe import Plan
    from altcore.state import NonFinite, Run, Step

ORIGINAL_CHAIN = {
    "E7M0": "E5M2",
    "E1M6": "E3M4",
    "E0M7": "E3M4",
    "E3M4": "E5M2",
    "E5M2": "none",
}
"""The chain of the original experiments. For all its name, only the first step of it keeps more
mantissa bits; the others trade mantissa for exponent."""


def _resolved(chain: Mapping[str, Any]) -> dict[str, Format | None]:
    """Return the chain with formats for names; a mistyped one is an error on either side."""
    return {
        get_format(name).name: None if to is None or to == "none" else get_format(to)
        for name, to in chain.items()
    }


@attrs.frozen
class Shift:
    """All operands of some layers that hold one format."""

    format: str
    layers: tuple[str, ...]
    """Their names, or ``*``."""
    roles: tuple[str, ...]
    """Operands, or none where the layers hold no other format: then every one they have."""

    def is_done(self, plan: Plan) -> bool:
        """Whether the layers no longer hold the format."""
        return not any(
            cast is not None and cast.format.name == self.format
            for layer, casts in plan.items()
            if layer in self.layers or "*" in self.layers
            for operand, cast in casts.items()
            if not self.roles or operand in self.roles
        )


@attrs.define(eq=False)
class MantissaShift:
    """Shift the whole model along ``chain`` when its numbers break down.

    Every role in a format goes to the format that the chain names for it: after ``nan_patience``
    consecutive non-finite steps, or on a collapse called ``stalled`` whose stall rate is above
    ``stall_threshold``. Where no format of the recipe has a next one and at least one is at the
    chain's end (``none``), the run is stopped. A format that the chain does not mention stays
    as it is; for it the plugin has no opinion.

    A hook returns one action, so a recipe of several formats is shifted by one action a step, on
    consecutive steps; if one of them is refused, the rest are dropped. Proposing a shift resets
    the count of non-finite steps.
    """

    nan_patience: int = setting(
        3, help="consecutive non-finite steps before a shift", validator=ge(1)
    )
    stall_threshold: float = setting(
        0.5,
        help="stall rate of a collapse above which the format is shifted",
        validator=and_(ge(0.0), le(1.0)),
    )
    chain: dict[str, Format | None] = setting(
        ORIGINAL_CHAIN,
        help="for each format's name the next format, or none at the end",
        converter=_resolved,
    )
    consecutive: int = field(init=False, default=0)
    """Non-finite steps in a row, up to ``last_step``."""
    last_step: int = field(init=False, default=0)
    asked: Shift | None = field(init=False, default=None)
    """The shift that was proposed last, while others wait for it."""
    waiting: list[Shift] = field(init=False, factory=list)

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Warn of settings under which this plugin would never act."""
        unknown = sorted({s.format for s in shifts(run.quantization.plan)} - set(self.chain))
        if unknown:
            run.emit(
                "warning",
                message=f"mantissa-shift: the chain does not mention {', '.join(unknown)}: "
                "what is in it will not be shifted",
            )
        if self.nan_patience > run.config.nan_patience:
            run.emit(
                "warning",
                message=f"mantissa-shift: nan_patience {self.nan_patience} is never reached: the "
                f"run collapses after {run.config.nan_patience} non-finite steps",
            )

    @hookimpl
    def pre_step(self, run: Run) -> Action | None:
        """Go on with the shifts of a recipe that holds several formats."""
        if self.asked is not None and not self.asked.is_done(run.quantization.plan):
            self.waiting.clear()
        self.asked = None
        if not self.waiting:
            return None
        return self._propose(self.waiting, "it is one of several formats of a recipe that broke")

    @hookimpl
    def on_nan(self, run: Run, step: Step, where: NonFinite) -> Action | None:
        """Count consecutive non-finite steps; propose a shift when there are enough."""
        is_next = step.index == self.last_step + 1
        self.consecutive = self.consecutive + 1 if is_next else 1
        self.last_step = step.index
        if self.consecutive < self.nan_patience:
            return None
        return self._shift(run, f"{self.consecutive} consecutive steps were not finite: {where}")

    @hookimpl
    def on_collapse(self, run: Run, step: Step, evidence: Mapping[str, Any]) -> Action | None:
        """Propose a shift when most updates stalled and the loss no longer improved."""
        rate = evidence.get("rate")
        if evidence["cause"] != "stalled" or rate is None or rate <= self.stall_threshold:
            return None
        return self._shift(run, f"a stall rate of {rate:.1%} (threshold {self.stall_threshold:g})")

    def _shift(self, run: Run, cause: str) -> Action | None:
        if self.asked is not None:
            return None  # The last shift is not through yet.
        held = [s for s in shifts(run.quantization.plan) if s.format in self.chain]
        possible = [s for s in held if self.chain[s.format] is not None]
        if possible:
            return self._propose(possible, cause)
        if held:
            ends = ", ".join(dict.fromkeys(s.format for s in held))
            return Stop(reason=f"{cause}; the chain of formats ends at {ends}")
        return None

    def _propose(self, several: list[Shift], cause: str) -> ChangeRecipe:
        first, *rest = several
        self.consecutive, self.waiting = 0, rest
        self.asked = first
        to = self.chain[first.format]
        reason = f"{cause}; {first.format} is shifted to {to}"
        if not first.roles:
            return ShiftFormat(to, first.layers, reason=reason)
        return ChangeRecipe(layers=first.layers, roles=first.roles, format=to, reason=reason)

    def state_dict(self) -> dict[str, Any]:
        """Return counts and what is under way, as plain data."""
        plain = [[s.format, list(s.layers), list(s.roles)] for s in self.waiting]
        asked = self.asked
        return {
            "consecutive": self.consecutive,
            "last_step": self.last_step,
            "waiting": plain,
            "asked": [asked.format, list(asked.layers), list(asked.roles)] if asked else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.consecutive, self.last_step = state["consecutive"], state["last_step"]
        self.waiting = [_shift_of(plain) for plain in state["waiting"]]
        self.asked = _shift_of(state["asked"]) if state["asked"] else None


def _shift_of(plain: Any) -> Shift:
    name, layers, roles = plain
    return Shift(name, tuple(layers), tuple(roles))


def shifts(plan: Plan) -> list[Shift]:
    """Return what a plan holds, by format, such that each part can change on its own.

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
    if len(groups) == 1:
        ((name, _),) = groups
        return [Shift(name, ("*",), ())]
    return [Shift(name, tuple(layers), roles) for (name, roles), layers in groups.items()]
