"""Checks of a quantization's state before it is loaded: scales, histories, and weights on grids."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from altcore.errors import BadInput, InvalidCheckpoint
from altcore.formats import check_digests
from altcore.numerics import Rule, fake_round
from altcore.quantization.discovery import unique_matrices
from altcore.quantization.optimizer import moment_name
from altcore.quantization.quantization import Quantization
from altcore.recipes import Cast, ResolvedRecipe, resolved_from_plain


class OffGrid(InvalidCheckpoint):
    """A stored weight or moment is on no grid, as after a step without `Quantization.store`."""


def check_quantization_state(
    q: Quantization,
    state: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    is_healthy: bool = True,
) -> None:
    """Check what `Quantization.load_state_dict` is about to take.

    Args:
        q: the quantization as it was built.
        state: as `Quantization.state_dict` returns it.
        weights: the model's state beside it, of the right names, shapes and types.
        is_healthy: whether weights have to be on their grids; those of an anomaly need not.

    Raises:
        InvalidCheckpoint: naming the layer or parameter.
        BadInput: if a format of its plan is not the one that it was.
    """
    check_digests(state["formats"])
    try:
        plan = resolved_from_plain(state["plan"])
    except BadInput as error:
        raise InvalidCheckpoint(f"its plan cannot be read: {error}") from error
    if other := sorted(plan.keys() ^ q.found.keys()):
        raise InvalidCheckpoint(f"the layer {other[0]} is in its plan or in the model, not in both")
    casts = {
        full: c for name, full, _ in unique_matrices(q.model) if (c := plan[name]["stored_weight"])
    }
    if other := sorted(casts.keys() ^ state["stored"].keys()):
        raise InvalidCheckpoint(f"{other[0]} is stored by its plan, or has a scale: not both")
    for name, cast in casts.items() if is_healthy else ():
        _check_stored(name, weights[name], state["stored"][name]["scale"], cast)
    for site, history in state["histories"].items():
        if history.dim() != 1 or not history.is_floating_point() or bool((history < 0).any()):
            raise InvalidCheckpoint(f"the history of {site} is no list of magnitudes")
    for site, calls in state["calls"].items():
        if type(calls) is not int or calls < 1:
            raise InvalidCheckpoint(f"the calls of {site} in the step are no number")


def check_moments(
    q: Quantization,
    state: Mapping[str, Any],
    moments: Iterable[tuple[Tensor, Mapping[str, Any]]],
) -> None:
    """Check an optimizer's moments against the grids that they were rounded to.

    Args:
        q: the quantization as it was built.
        state: as `Quantization.state_dict` returns it, checked.
        moments: each parameter of the model, and the optimizer's state of it.

    Raises:
        InvalidCheckpoint: naming the moment.
    """
    plan, scales = resolved_from_plain(state["plan"]), dict(state["moments"])
    casts = {
        id(p): (full, plan[name]["optimizer_state"]) for name, full, p in unique_matrices(q.model)
    }
    for parameter, entry in moments:
        full, cast = casts.get(id(parameter), ("", None))
        if cast is None:
            continue
        for key, value in entry.items():
            name = moment_name(full, key)
            if name in scales:
                _check_moment(name, value, torch.as_tensor(scales.pop(name)), cast)
    if scales:
        raise InvalidCheckpoint(f"{next(iter(scales))} has a scale, and is no moment")


def unstored(
    q: Quantization, plan: ResolvedRecipe, formats: Container[str]
) -> tuple[dict[str, dict[str, Cast | None]], set[str]]:
    """Return a plan without stored weights in some formats, and the full names of these weights.

    Args:
        q: the quantization as it was built.
        plan: of its layers.
        formats: by name.
    """
    made = {
        layer: {
            o: None if c and o == "stored_weight" and c.format.name in formats else c
            for o, c in casts.items()
        }
        for layer, casts in plan.items()
    }
    return made, {full for name, full, _ in unique_matrices(q.model) if made[name] != plan[name]}


CLOSE = 2.0**-21
"""Relative. A scale that is no power of two makes no exact multiples of the grid's values."""


@torch.no_grad()
def _check_moment(name: str, value: Tensor, scale: Tensor, cast: Cast) -> None:
    if scale.dim() or bool(scale <= 0) or bool(scale.isinf()):
        raise InvalidCheckpoint(f"the scale of {name} is {scale.tolist()}, not a positive number")
    if bool(scale.isnan()):  # a moment was not finite
        return
    rule = Rule("nearest-even", cast.overflow)
    scale = scale.to(value.device)
    again = fake_round(value, cast.element, rule, r=1 / scale, s=scale)
    off = (again - value).abs() > CLOSE * value.abs()
    if count := int(off.sum()):
        raise _off_grid(name, value, off, count, scale, cast)


def _off_grid(name: str, x: Tensor, off: Tensor, count: int, scale: Tensor, cast: Cast) -> OffGrid:
    return OffGrid(
        f"{name} has {count} of {x.numel()} values off the grid of {cast.format.name}, "
        f"as {x[off][0].item():.6g} at the scale {scale.item():.6g}"
    )


@torch.no_grad()
def _check_stored(name: str, weight: Tensor, scale: Tensor, cast: Cast) -> None:
    if scale.dim() or not bool(torch.isfinite(scale)) or not bool(scale > 0):
        raise InvalidCheckpoint(f"the scale of {name} is {scale.tolist()}, not a positive number")
    # Values of the grid stay where they are under every rule but the drawn one, which needs a key.
    rule = Rule("nearest-even" if cast.rounding == "stochastic" else cast.rounding)
    off = fake_round(weight, cast.element, rule, r=1 / scale, s=scale) != weight
    if count := int(off.sum()):
        raise _off_grid(name, weight, off, count, scale, cast)
