"""Checks of a quantization's state before it is loaded: scales, histories, and weights on grids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from altcore.errors import BadInput, InvalidCheckpoint
from altcore.formats import check_digests
from altcore.numerics import Rule, fake_round
from altcore.quantization.discovery import unique_matrices
from altcore.quantization.quantization import Quantization
from altcore.recipes import Cast, resolved_from_plain


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
    casts = {full: c for name, full, _ in unique_matrices(q.model) if (c := plan[name][STORED])}
    if other := sorted(casts.keys() ^ state["stored"].keys()):
        raise InvalidCheckpoint(f"{other[0]} is stored by its plan, or has a scale: not both")
    for name, cast in casts.items() if is_healthy else ():
        _check_stored(name, weights[name], state["stored"][name]["scale"], cast)
    for site, history in state["histories"].items():
        if history.dim() != 1 or not history.is_floating_point() or bool((history < 0).any()):
            raise InvalidCheckpoint(f"the history of {site} is no list of magnitudes")


STORED = "stored_weight"


@torch.no_grad()
def _check_stored(name: str, weight: Tensor, scale: Tensor, cast: Cast) -> None:
    if scale.dim() or not bool(torch.isfinite(scale)) or not bool(scale > 0):
        raise InvalidCheckpoint(f"the scale of {name} is {scale.tolist()}, not a positive number")
    # Values of the grid stay where they are under every rule but the drawn one, which needs a key.
    rule = Rule("nearest-even" if cast.rounding == "stochastic" else cast.rounding)
    off = fake_round(weight, cast.element, rule, r=1 / scale, s=scale) != weight
    if count := int(off.sum()):
        value = weight[off][0].item()
        raise InvalidCheckpoint(
            f"{name} has {count} of {weight.numel()} values off the grid of {cast.format.name}, "
            f"as {value:.6g} at the scale {scale.item():.6g}"
        )
