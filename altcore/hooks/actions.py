"""The actions that interventions propose, and the pure function that decides between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from attrs import asdict, field, frozen

from altcore.builtin_types import as_builtin, misfit
from altcore.errors import BadInput, ConflictingActions, nearest, shown
from altcore.formats import (
    ROUNDINGS,
    AnyFormat,
    BlockFormat,
    Format,
    full_rounding,
    get_format,
)
from altcore.recipes import ROLES, Place, Scaling, is_meant, operands_of, read_scaling

KEEP = "keep"
"""In a ChangeRecipe: leave this part of the recipe as it is."""


def _refuse(action: str, name: str, value: object, wanted: str) -> NoReturn:
    raise BadInput(f"{action}: {name} is {shown(value)}, not {wanted}")


def _check_reason(action: str, reason: object) -> None:
    if not isinstance(reason, str) or not reason.strip():
        raise BadInput(f"{action}: its reason is text, not {shown(reason)}")


@frozen(kw_only=True)
class Action:
    """A change that an intervention proposes; ``reason`` is written to the events."""

    reason: str = field()

    @reason.validator
    def _is_text(self, _: object, reason: object) -> None:
        _check_reason(type(self).__name__, reason)


@frozen(kw_only=True)
class SkipStep(Action):
    """Discard this step's update.

    ``counts``: whether a step that is not finite counts towards ``nan_patience``. One that does not
    count neither adds to the number of consecutive ones nor resets it.
    """

    counts: bool = field(default=True, converter=as_builtin)

    @counts.validator
    def _is_bool(self, _: object, counts: object) -> None:
        if not isinstance(counts, bool):
            _refuse("SkipStep", "counts", counts, "True or False")


def _tuple(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


@contextmanager
def _inside(action: str) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise error.inside(action) from error


def _format_for(action: str, value: Any) -> Any:
    """Return a format or None; `BadInput` naming the action for anything else."""
    with _inside(action):
        found = get_format(value) if isinstance(value, Mapping) else value
    if not (found is None or isinstance(found, Format | BlockFormat)):
        raise BadInput(
            f"{action} takes a Format, not {shown(found)}: declare a name as a "
            "setting of type Format, so that it is resolved before the first step"
        )
    return found


def _is_keep(value: object) -> bool:
    return isinstance(value, str) and value == KEEP


def _format(value: Any) -> Any:
    return value if _is_keep(value) else _format_for("ChangeRecipe", value)


def _scaling(value: Any) -> Any:
    return value if _is_keep(value) else read_scaling(value, Place("ChangeRecipe", "scaling"))


@frozen(kw_only=True)
class ChangeRecipe(Action):
    """Change format, scaling or rounding of some roles of some layers, from the next step.

    ``layers`` are names of layers or patterns of them; ``roles`` are roles or operands
    (``weight@dgrad``), or empty for every role that is quantized now. ``format`` is a format or
    one in plain form, or None: leave it in float32. ``scaling`` is given as recipes do.
    """

    layers: tuple[str, ...] = field(default=("*",), converter=_tuple)
    roles: tuple[str, ...] = field(default=(), converter=_tuple)
    format: AnyFormat | str | None = field(default=KEEP, converter=_format)
    scaling: Scaling | str = field(default=KEEP, converter=_scaling)
    rounding: str = field(default=KEEP, converter=full_rounding)

    def __attrs_post_init__(self) -> None:
        for name in ("layers", "roles"):
            names = getattr(self, name)
            if not isinstance(names, tuple) or not all(isinstance(own, str) for own in names):
                _refuse("ChangeRecipe", name, names, "a list of names")
        with _inside("ChangeRecipe"):
            for role in self.roles:
                operands_of(role)
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
    _check_reason("ShiftFormat", reason)
    return ChangeRecipe(layers=layers, format=_format_for("ShiftFormat", to), reason=reason)


@frozen
class ScaleLearningRate(Action):
    """Multiply the learning rate, for the rest of the run."""

    factor: float = field(converter=as_builtin)

    @factor.validator
    def _is_positive(self, _: object, factor: Any) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            _refuse("ScaleLearningRate", "factor", factor, "a number")
        if misfit(factor, float) or not 0 < factor < math.inf:
            _refuse("ScaleLearningRate", "factor", factor, "a positive and finite number")


@frozen
class Rollback(Action):
    """Restore the newest snapshot verified finite that is at least ``steps`` old; go on.

    Batches are not replayed, and plugins and random states are not rolled back. ``then`` is
    carried out after the restore.
    """

    steps: int = field(converter=as_builtin)
    then: ChangeRecipe | ScaleLearningRate | None = field(default=None, kw_only=True)

    @steps.validator
    def _is_count(self, _: object, steps: object) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            _refuse("Rollback", "steps", steps, "a whole number of at least 1")

    @then.validator
    def _can_follow(self, _: object, then: object) -> None:
        if not isinstance(then, ChangeRecipe | ScaleLearningRate | None):
            _refuse("Rollback", "then", then, "a ChangeRecipe, a ScaleLearningRate or None")


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
        """Whether a non-finite step counts: no SkipStep says otherwise, be it chosen or refused.

        A non-finite step is discarded whatever comes first.
        """
        heard = (*self.chosen, *(r.proposal for r in self.refused))
        skips = [p.action for p in heard if isinstance(p.action, SkipStep)]
        return all(skip.counts for skip in skips)


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
            if is_meant(layer, action.layers):
                for part in ("format", "scaling", "rounding"):
                    value = getattr(action, part)
                    if not _is_keep(value):
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
        if _is_keep(value):
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
