"""The optimizer of a quantized model: found in its wrapper, and its moments rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from altcore.errors import BadInput, shown
from altcore.numerics import fake_round, scale_of
from altcore.quantization.checks import check_whole
from altcore.quantization.context import Clock, Context
from altcore.quantization.discovery import ParameterSlot
from altcore.quantization.quantizer import random_key
from altcore.quantization.rules import rule_of
from altcore.quantization.stored import size_of
from altcore.recipes import Cast, some

HOOKS = "_optimizer_step_post_hooks"
"""An attribute that torch's constructor gives an optimizer. A wrapper that is a subclass, but never
ran that, has none, and its steps run no hooks."""

NOT_STORED = (
    "optimizer_state: nothing of it is rounded, as altcore knows no optimizer: give it to "
    "quantize_model, or call q.store(optimizer) after each step"
)

ROUNDABLE = "roundable_state"
"""An attribute by which an optimizer may say which of its state tensors a recipe rounds."""


def unwrap(optimizer: object) -> Optimizer:
    """Return the optimizer itself, or the one in a wrapper; raise `BadInput` for anything else."""
    for one in (optimizer, getattr(optimizer, "optimizer", None)):
        if isinstance(one, Optimizer) and HOOKS in vars(one):
            return one
    raise BadInput(
        f"optimizer: one of torch.optim's is needed, or a wrapper of one, not "
        f"{type(optimizer).__name__}: without it, call q.store after each step"
    )


def is_or_wraps(optimizer: object, inner: Optimizer) -> bool:
    """Whether an optimizer is ``inner``, or a wrapper of it."""
    hooks = getattr(optimizer, HOOKS, None)  # Lightning's wrapper takes the attributes over.
    is_inside = getattr(optimizer, "optimizer", None) is inner
    return optimizer is inner or is_inside or hooks is vars(inner)[HOOKS]


def store_optimizer_state(
    optimizer: Optimizer | None,
    casts: Mapping[str, tuple[ParameterSlot, Cast]],
    context: Context,
) -> dict[str, Tensor | float]:
    """Round the optimizer's state of ``casts``' parameters, in place; warn of the state that stays.

    Returns the scale of each moment, by its parameter's full name and its own. Raises `BadInput` if
    the model was sharded.
    """
    if optimizer is None:
        context.warn(NOT_STORED)
        return {}
    for full, (slot, _) in casts.items():
        check_whole(full.rpartition(".")[0], slot.module, slot.name, "optimizer_state")
    parameters = {name: (slot.parameter, cast) for name, (slot, cast) in casts.items()}
    scales, left = _round_moments(optimizer, parameters, context.clock)
    kind = type(optimizer).__name__
    own = [p for p, _ in parameters.values()]
    if not any(p in optimizer.state for p in own) and any(p.grad is not None for p in own):
        context.warn(
            f"optimizer_state: {kind} has no state to round, or keeps it elsewhere "
            "(ZeroRedundancyOptimizer): nothing is rounded"
            if _steps_any(optimizer, own)
            else _none_of_its_own(optimizer)
        )
    if left:
        context.warn(
            f"optimizer_state: {kind} keeps what cannot be rounded; it stays as it is: {some(left)}"
        )
    return scales


def check_steps(optimizer: Optimizer, model: nn.Module, context: Context) -> None:
    """Warn if the optimizer is another model's."""
    if not _steps_any(optimizer, model.parameters()):
        context.warn(_none_of_its_own(optimizer))


def _steps_any(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether one of the parameters is the optimizer's, as far as it says."""
    groups = getattr(optimizer, "param_groups", [])
    stepped = {id(p) for group in groups for p in group["params"]}
    return not stepped or any(id(p) in stepped for p in parameters)


def _none_of_its_own(optimizer: Optimizer) -> str:
    kind = type(optimizer).__name__
    return f"optimizer: this {kind} steps none of the model's parameters: nothing of it is rounded"


def roundable_state(optimizer: Optimizer) -> frozenset[str] | None:
    """Return the names in an optimizer's `ROUNDABLE`, None if it has none.

    Raises `BadInput` for anything but a collection of names.
    """
    names = getattr(optimizer, ROUNDABLE, None)
    if names is None:
        return None
    if not isinstance(names, tuple | list | set | frozenset) or not all(
        isinstance(name, str) for name in names
    ):
        raise _not_roundable(optimizer, f"is {shown(names)}, not a tuple of names of its state")
    return frozenset(names)


def check_roundable(optimizer: Optimizer) -> None:
    """Raise `BadInput` if `ROUNDABLE` names a state that the optimizer, having stepped, has not."""
    names = roundable_state(optimizer)
    if names is None:
        return
    states = [own for own in optimizer.state.values() if isinstance(own, Mapping)]
    known = {str(key) for own in states for key in own}
    if known and not names <= known:
        unknown = some(sorted(names - known))
        raise _not_roundable(optimizer, f"names {unknown}: its state has {some(sorted(known))}")


def _not_roundable(optimizer: Optimizer, problem: str) -> BadInput:
    return BadInput(f"{ROUNDABLE} {problem}", key="optimizer", part=type(optimizer).__name__)


@torch.no_grad()
def _round_moments(
    optimizer: Optimizer,
    casts: Mapping[str, tuple[nn.Parameter, Cast]],
    clock: Clock,
) -> tuple[dict[str, Tensor | float], list[str]]:
    """Round the optimizer's moments of ``casts``' parameters to their formats, in place.

    A moment is a floating-point state tensor of its parameter's shape. If the optimizer names some
    in `ROUNDABLE`, the others are none: a compensation, say. The next step divides by a second
    moment, a tensor with no negative element: its nonzero elements do not become zero, but the
    smallest positive value.

    Returns:
        The scale of each moment, and the state tensors that are not moments, described: those that
        the optimizer quantizes itself, factors, or keeps as integers. They stay as they are.
    """
    scales: dict[str, Tensor | float] = {}
    left = []
    roundable = roundable_state(optimizer)
    check_roundable(optimizer)
    for name, (parameter, cast) in casts.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if roundable is not None and key not in roundable:
                continue
            if not isinstance(value, Tensor) or value.numel() <= 1 < parameter.numel():
                continue
            if not _is_moment(value, parameter):
                what = f"{type(value).__name__}, {value.dtype}, {list(value.shape)}"
                left.append(f"{key} of {name} ({what})")
                continue
            s: Tensor | None = None
            r: Tensor | None = None
            if cast.scaling.kind != "none":
                size, top = size_of(value, cast)
                s, r = scale_of(
                    size, cast.element, power_of_two=cast.scaling.power_of_two, meets=top
                )
            noise = None
            if cast.rounding == "stochastic":
                noise = random_key(clock.seed, clock.step, 0, moment_name(name, key))
            rounded = fake_round(value, cast.element, rule_of(cast), r=r, s=s, key=noise)
            floor = cast.element.smallest * (1.0 if s is None else s)
            lost = (rounded == 0) & (value > 0) & (value.min() >= 0)
            value.copy_(torch.where(lost, floor, rounded))
            scales[moment_name(name, key)] = 1.0 if s is None else s
    return scales, left


def moment_name(parameter: str, key: str) -> str:
    """Return the name of a moment of a parameter."""
    return f"{parameter}/{key}"


def _is_moment(value: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a state tensor holds a number for each of the parameter's."""
    is_plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    return is_plain and value.is_floating_point() and value.shape == parameter.shape
