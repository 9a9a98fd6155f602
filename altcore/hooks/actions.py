"""The actions that interventions propose, and the pure function that decides between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from attrs import asdict, field, frozen
from attrs.validators import ge, gt

from altcore.errors import BadInput, ConflictingActions, nearest, shown
from altcore.formats import (
    ROUNDINGS,
    AnyFormat,
    BlockFormat,
    Format,
    full_rounding,
    get_format,
)
from altcore.recipes import ROLES, Place, Scaling, operands_of, read_scaling

KEEP = "keep"
"""In a ChangeRecipe: leave this part of the recipe as it is."""


@frozen(kw_only=True)
class Action:
    """A change that an intervention proposes; ``reason`` is written to the events."""

    reason: str = field()

    @reason.validator
    def _is_text(self, _: object, reason: object) -> None:
        if not isinstance(reason, str) or not reason.strip():
            raise BadInput(f"{type(self).__name__}: its reason is text, not {shown(reason)}")


@frozen(kw_only=True)
class SkipStep(Action):
    """Discard this step's update.

    ``counts``: whether a step that is not finite counts towards ``nan_patience``. One that does not
    count neither adds to the number of consecutive ones nor resets it.
    """

    counts: bool = True


def _tuple(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _format(value: Any) -> Any:
    return get_format(value) if isinstance(value, Mapping) else value


def _scaling(value: Any) -> Any:
    return value if value == KEEP else read_scaling(value, Place("ChangeRecipe", "scaling"))


@frozen(kw_only=True)
class ChangeRecipe(Action):
    """Change format, scaling or rounding of some roles of some layers, from the next step.

    ``layers`` are patterns of layer names; ``roles`` are roles or operands (``weight@dgrad``),
    or empty for every role that is quantized now. ``format`` is a format or one in plain form, or
    None: leave it in float32. ``scaling`` is given as recipes do.
    """

    layers: tuple[str, ...] = field(default=("*",), converter=_tuple)
    roles: tuple[str, ...] = field(default=(), converter=_tuple)
    format: AnyFormat | str | None = field(default=KEEP, converter=_format)
    scaling: Scaling | str = field(default=KEEP, converter=_scaling)
    rounding: str = field(default=KEEP, converter=full_rounding)

    def __attrs_post_init__(self) -> None:
        for role in self.roles:
            operands_of(role)
        if not (isinstance(self.format, Format | BlockFormat) or self.format in (KEEP, None)):
            raise BadInput(
                f"ChangeRecipe takes a Format, not {shown(self.format)}: declare a name as a "
                "setting of type Format, so that it is resolved before the first step"
            )
        if self.rounding not in (KEEP, *ROUNDINGS):
            raise BadInput(
                f"ChangeRecipe: the rounding {shown(self.rounding)} is unknown",
                meant=nearest(self.rounding, ROUNDINGS),
                hint=f"one of {', '.join(ROUNDINGS)}",
            )


def ShiftFormat(  # noqa: N802 - it reads as the action that it is short for
    to: AnyFormat | Mapping[str, Any] | None, layers: str | Iterable[str] = "*", *, reason: str
) -> ChangeRecipe:
    """Short for a ChangeRecipe of every quantized role of ``layers`` to the format ``to``."""
    return ChangeRecipe(layers=_tuple(layers), format=to, reason=reason)


@frozen(kw_only=True)
class ScaleLearningRate(Action):
    """Multiply the learning rate, for the rest of the run."""

    factor: float = field(validator=gt(0))


@frozen(kw_only=True)
class Rollback(Action):
    """Restore the newest snapshot verified finite that is at least ``steps`` old; go on.

    Batches are not replayed, and plugins and random states are not rolled back. ``then`` is
    carried out after the restore.
    """

    steps: int = field(validator=ge(1))
    then: ChangeRecipe | ScaleLearningRate | None = None


@frozen(kw_only=True)
class Stop(Action):
    """End the run; the exit code is 0, since a stop by an action is a result."""


PRECEDENCE = (Stop, Rollback, ChangeRecipe, ScaleLearningRate, SkipStep)


@frozen
class Proposal:
    """An action and the plugin that proposed it."""

    plugin: str
    action: Action


@frozen
class Refusal:
    """A proposal that was not chosen, and why."""

    proposal: Proposal
    why: str


@frozen
class Verdict:
    """The decision of `arbitrate`: all chosen proposals are of one class."""

    chosen: tuple[Proposal, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def kind(self) -> type[Action] | None:
        """The class of the chosen actions, or None."""
        return type(self.chosen[0].action) if self.chosen else None

    @property
    def counts(self) -> bool:
        """Whether a non-finite step counts: no plugin whose SkipStep was heard says otherwise."""
        heard = (*self.chosen, *(r.proposal for r in self.refused))
        skips = [p.action for p in heard if isinstance(p.action, SkipStep)]
        return self.kind is not SkipStep or all(skip.counts for skip in skips)


def arbitrate(proposals: Sequence[Proposal], layers: Sequence[str]) -> Verdict:
    """Decide between proposals: Stop > Rollback > ChangeRecipe > ScaleLearningRate > SkipStep.

    A pure function of the proposals: the order of registration decides nothing. Changes of
    disjoint ``layers`` or roles merge. Raises `ConflictingActions`, naming the plugins, for two
    values of one thing.
    """
    proposals = sorted(proposals, key=lambda p: (p.plugin, repr(p.action)))
    for kind in PRECEDENCE:
        chosen = [p for p in proposals if isinstance(p.action, kind)]
        if chosen:
            break
    else:
        return Verdict()
    _refuse_conflicts(chosen, layers)
    unique: list[Proposal] = []
    refused = [
        Refusal(p, f"{kind.__name__} comes first")
        for p in proposals
        if not isinstance(p.action, kind)
    ]
    for p in chosen:
        if kind is not ChangeRecipe and unique:
            refused.append(Refusal(p, f"the same was proposed by {unique[0].plugin}"))
        else:
            unique.append(p)
    return Verdict(tuple(unique), tuple(refused))


def _refuse_conflicts(chosen: Sequence[Proposal], layers: Sequence[str]) -> None:
    claimed: dict[tuple[str, ...], tuple[Any, str]] = {}
    for p in chosen:
        for key, value in _claims(p.action, layers):
            before = claimed.setdefault(key, (value, p.plugin))
            if before[0] != value:
                several = f"plugins {before[1]} and {p.plugin} propose"
                who = f"plugin {p.plugin} proposes" if p.plugin == before[1] else several
                raise ConflictingActions(
                    f"{who} different values for {' of '.join(key)}: {_show(before[0])} and "
                    f"{_show(value)}; give them disjoint layers or roles, or remove one"
                )


def _claims(action: Action, layers: Sequence[str]) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Yield each thing that an action would set, with its value."""
    if isinstance(action, ScaleLearningRate):
        yield ("the learning rate",), action.factor
    elif isinstance(action, Rollback):
        yield ("the rollback",), (action.steps, action.then)
    elif isinstance(action, ChangeRecipe):
        operands = [o for role in action.roles or ROLES for o in operands_of(role)]
        for layer in layers:
            if any(fnmatchcase(layer, pattern) for pattern in action.layers):
                for part in ("format", "scaling", "rounding"):
                    value = getattr(action, part)
                    if not (isinstance(value, str) and value == KEEP):
                        for operand in operands:
                            yield (part, operand, layer), value


def _show(value: object) -> str:
    return "none" if value is None else str(value)


def describe_action(action: Action) -> dict[str, Any]:
    """Return an action as plain data, for the events.

    >>> describe_action(Stop(reason="enough"))
    {'action': 'Stop', 'reason': 'enough'}
    """
    data: Mapping[str, Any] = asdict(action, recurse=False)
    plain: dict[str, Any] = {"action": type(action).__name__}
    for key, value in data.items():
        if isinstance(value, str) and value == KEEP:
            continue
        if isinstance(value, Action):
            plain[key] = describe_action(value)
        elif isinstance(value, Format | BlockFormat):
            plain[key] = value.name
        elif isinstance(value, Scaling):
            plain[key] = value.to_plain()
        else:
            plain[key] = list(value) if isinstance(value, tuple) else value
    return plain


__all__ = [
    "KEEP",
    "Action",
    "ChangeRecipe",
    "Proposal",
    "Refusal",
    "Rollback",
    "ScaleLearningRate",
    "ShiftFormat",
    "SkipStep",
    "Stop",
    "Verdict",
    "arbitrate",
    "describe_action",
]
