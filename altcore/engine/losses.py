"""A workload's loss, which may come alone or with measures, and what the record takes of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from altcore.errors import PluginError
from altcore.recipes import some
from altcore.runs import AFTER_PLUGINS, EVALUATED

RESERVED = frozenset(
    {
        *("step", "epoch", "loss", "learning_rate", "grad_norm", "discarded"),
        *("stored_stall_rate", "view_stall_rate", "lost_stall_rate"),
        *("overflow_rate", "flushed_rate", AFTER_PLUGINS),
        *EVALUATED,
    }
)
"""Names in the record that are not a workload's to give."""
MOST_TOLD = 8
"""Measures that an error lists."""


class HasLoss(Protocol):
    """The part of a workload that gives the loss."""

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Return the loss, or the loss and measures."""


def who_is(workload: object) -> str:
    """Return kind, name and distribution of a workload, as errors name it."""
    return getattr(workload, "who", "the workload")


def loss_and_measures(
    workload: HasLoss, model: nn.Module, batch: Any, before: Sequence[Mapping[str, Tensor]] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, and the workload's measures by name, without their gradients.

    Raises `PluginError` if the workload returns anything else, or has other measures than it had
    ``before``: loss and measures of batches with which these are to be averaged.
    """
    returned = workload.loss(model, batch)
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    loss, measures = returned if is_pair else (returned, {})
    if not (_is_number(loss) and isinstance(measures, Mapping)):
        wrong = loss if isinstance(loss, Tensor) and not _is_number(loss) else returned
        raise PluginError(
            f"{who_is(workload)}: loss returned {_described(wrong)}: a tensor is needed, "
            "real and without dimensions, alone or with a mapping of measures"
        )
    checked = {n: _checked(n, value, who_is(workload)) for n, value in measures.items()}
    if before and before[0].keys() != {"loss", *checked}:
        known = " and ".join(_told_apart(before[0], checked))
        raise PluginError(f"{who_is(workload)}: batches have different measures: {known}")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise PluginError(f"{who_is(workload)}: its loss depends on no parameter that is trained")
    return loss, checked


def _checked(name: Any, value: Any, who: str) -> Tensor:
    problem = _why_no_name(name)
    if problem:
        raise PluginError(f"{who}: a measure of its loss cannot be called {name!r}: {problem}")
    if not _is_number(value):
        problem = f"{_described(value)}, not a tensor that is real and has no dimensions"
        raise PluginError(f"{who}: the measure {name} of its loss is {problem}")
    if not value.is_floating_point():  # a count has a mean, too
        return value.detach().double()
    return value.detach().clone()  # the workload may go on with it


def _why_no_name(name: Any) -> str:
    """Return why a measure cannot have a name, or an empty text."""
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
        return "a name is text that can be printed"
    if "/" in name:
        return "a slash is for the measures of plugins"
    if name in RESERVED:
        return "the record has a value of that name"
    if name.startswith("val_"):
        return "names that begin with val_ are those of evaluations"
    return ""


def _is_number(value: Any) -> bool:
    """Whether a value is a tensor that holds one real number."""
    return (
        isinstance(value, Tensor)
        and value.dim() == 0
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_meta or value.is_quantized)
    )


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = f"{type(value).__name__} of shape {tuple(value.shape)}"
    return kind if value.dim() else f"{kind}, {value.dtype}, {value.layout}, {value.device}"


def check_same_measures(who: str, found: Sequence[Collection[str]]) -> None:
    """Raise `PluginError` unless all ranks have the same measures, whose names are told by rank."""
    for rank, other in enumerate(found):
        if set(other) != set(found[0]):
            one, two = _told_apart(found[0], other)
            raise PluginError(
                f"{who}: its loss has different measures on the ranks: {one} on rank 0, {two} on "
                f"rank {rank}; in a step and in an evaluation they must be the same on each rank"
            )


def _told_apart(*both: Collection[str]) -> Iterator[str]:
    """Yield the measures that each of two has; of many how many they are, and what differs."""
    one, two = ({*names} - {"loss"} for names in both)
    for own, other in ((one, two), (two, one)):
        only = some(sorted(own - other), MOST_TOLD)
        many = f"{len(own)} (the other lacks {only})"
        yield many if len(own) > MOST_TOLD else repr(sorted(own))


def means(found: Sequence[Mapping[str, Tensor]], items: Sequence[int]) -> dict[str, Tensor]:
    """Return the means of loss and measures over the items of a step's micro-batches, by name."""
    if len(found) == 1:
        return dict(found[0])
    stacked = {name: torch.stack([own[name] for own in found]) for name in found[0]}
    return {name: mean_over_items(values, items) for name, values in stacked.items()}


def mean_over_items(values: Tensor, items: Sequence[int]) -> Tensor:
    """Return the mean over the last dimension, that of batches, each weighted by its items.

    In float32 at least: shares that are rounded to 16 bits do not sum to 1.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if len(set(items)) == 1:
        return values.mean(-1)
    shares = torch.tensor(items, dtype=torch.float64, device="cpu") / sum(items)
    return values @ shares.to(values)
