"""The workload as the engine uses it: what it offers was checked, and its errors name it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import attrs
import torch
from attrs import define
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from altcore.builtin_types import as_builtin, misfit
from altcore.engine.epochs import Epoch, training_batch
from altcore.engine.flag_watch import watched
from altcore.engine.named_errors import check_savable, naming
from altcore.engine.state import Workload
from altcore.errors import PluginError, shown

ENTROPY = "unigram_entropy"
"""The fact by which the verdict judges the validation loss, in the loss's unit."""

Facts = Mapping[str, str | int | float]


@define(eq=False)
class CheckedWorkload:
    """A workload whose parts are of the right kind, and whose errors name it.

    Errors of ``loss`` are left to the caller: a plugin that looks on may have made them.
    """

    own: Workload
    who: str
    """Kind, name and distribution."""
    model: nn.Module
    facts: Facts
    items_per_batch: int
    item: str
    steps_per_epoch: int | None
    validation_batches: int | None
    counts_items: bool
    """Whether it has ``items``."""
    device: torch.device
    """The run's: where batches go."""

    def batch(self, split: str, step: int, micro: int) -> Any:
        """Return a micro-batch on the run's device; `PluginError` if it has no items."""
        called = f"batch({split!r}, {step}, {micro})"
        where = f"{self.who}: {called}"
        with naming(self.who, called):
            batch = self.own.batch(split, step, micro)
            check_batch(batch, where)
            return placed(batch, self.device, where)

    def items(self, batch: Any) -> int:
        """Return how many items a batch has; `PluginError` if it is no number of at least 1."""
        if not self.counts_items:
            return self.items_per_batch
        with naming(self.who, "items"):
            found = self.own.items(batch)  # type: ignore[attr-defined]
        return _count(found, f"{self.who}: items(batch)")

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Return the loss of a batch, or the loss and measures."""
        with watched(self.who, "loss"):
            return self.own.loss(model, batch)

    def __getattr__(self, name: str) -> Any:
        """Return what only some workloads have."""
        found = getattr(self.own, name)
        if not callable(found):
            return found

        def named(*args: Any, **kwargs: Any) -> Any:
            with naming(self.who, name):
                return found(*args, **kwargs)

        return named


def check_workload(own: Any, who: str, device: torch.device) -> CheckedWorkload:
    """Return what a workload's ``build`` returned, checked.

    Raises `PluginError`, naming the workload and the part, for what the engine cannot use. The
    model's state must fit into a checkpoint. Its batches go to ``device``.
    """
    model, facts, size, item = (
        _part(own, name, who) for name in ("model", "facts", "items_per_batch", "item")
    )
    _check_kinds(who, model=(model, nn.Module), facts=(facts, Mapping), item=(item, str))
    for name in ("batch", "loss"):
        if not callable(_part(own, name, who, None)):
            raise PluginError(f"{who} has no method {name}")
    items = _part(own, "items", who, None)
    if items is not None and not callable(items):
        raise PluginError(f"{who}: items is not a method")
    with naming(who, "state_dict of its model"):
        check_savable(who, "model", model.state_dict())
    epoch, split = (
        _part(own, name, who, None) for name in ("steps_per_epoch", "validation_batches")
    )
    return CheckedWorkload(
        own,
        who,
        model,
        _facts(facts, who),
        _count(size, f"{who}: items_per_batch"),
        item,
        None if epoch is None else _count(epoch, f"{who}: steps_per_epoch"),
        None if split is None else _count(split, f"{who}: validation_batches"),
        items is not None,
        device,
    )


def check_batch(batch: Any, where: str) -> None:
    """Raise `PluginError` for a batch all tensors of which are empty: its loss would be NaN."""
    sizes = (tensor.numel() for tensor in tensors_in(batch))
    if next(sizes, None) == 0 and not any(sizes):
        raise PluginError(f"{where} has no items")


def placed(batch: Any, device: torch.device, where: str) -> Any:
    """Return a batch on ``device`` if all its tensors are on the CPU, else as it is.

    Where some are on the device already, whoever made it left the others, as lengths, on purpose.
    A container that torch does not know is moved by its own ``to``. Raises `PluginError` if it has
    none.
    """
    if device.type == "cpu" or any(t.device.type != "cpu" for t in tensors_in(batch)):
        return batch

    def moved(part: Any) -> Any:
        if isinstance(part, Tensor):
            # Of pinned memory, its owner may fill it again before such a copy is done.
            return part.to(device, non_blocking=not part.is_pinned())
        if not isinstance(part, type) and callable(getattr(part, "to", None)):
            return part.to(device)
        if any(True for _ in tensors_in(part)):
            text = f"a {type(part).__name__} with tensors on the CPU cannot be moved to {device}"
            raise PluginError(f"{where}: {text}: make it there, or give it a method to(device)")
        return part

    return tree_map(moved, batch)


def training_batches(workload: Any, epoch: Epoch | None, step: int, count: int) -> list[Any]:
    """Return the micro-batches of a step, all but the last one in memory of their own.

    A workload may give each of them in the same memory, as loaders with one buffer do.
    """
    drawn = (training_batch(workload, epoch, step, micro) for micro in range(count))
    return [kept(batch) if micro + 1 < count else batch for micro, batch in enumerate(drawn)]


def kept(batch: Any) -> Any:
    """Return a batch in memory of its own, which stays what it is whatever its owner fills anew."""

    def own(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part if part.requires_grad else part.clone()
        return copy.deepcopy(part) if any(True for _ in tensors_in(part)) else part

    return tree_map(own, batch)


def check_last_batch(workload: Any) -> None:
    """Raise `PluginError` if a finite validation split has no last batch.

    Found out at the first evaluation, it would cost the run up to there.
    """
    count = workload.validation_batches
    if count is None:
        return
    try:
        batch = workload.batch("val", count - 1, 0)
    except PluginError as error:
        said = f"validation_batches is {count}, and batches count from 0"
        raise PluginError(f"{error} ({said})") from error
    workload.items(batch)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, at every depth of mappings and sequences."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | Sequence) and not isinstance(batch, str | bytes):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(part)


def rows_of(batch: Any) -> int | None:
    """Return how many rows the first tensor or array of a batch has; None without any."""
    shape = getattr(batch, "shape", None)
    if isinstance(shape, tuple):
        return shape[0] if shape else None
    parts: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        parts = batch.values()
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        parts = batch
    elif is_dataclass(batch) or attrs.has(type(batch)):
        parts = vars(batch).values()
    return next((rows for rows in map(rows_of, parts) if rows is not None), None)


def _check_kinds(who: str, **parts: tuple[Any, type]) -> None:
    for name, (part, kind) in parts.items():
        if not isinstance(part, kind):
            text = f"{name} is {type(part).__name__}, not {kind.__name__}"
            raise PluginError(f"{who}: {text}")


MISSING = object()


def _part(own: Any, name: str, who: str, default: Any = MISSING) -> Any:
    """Return an attribute of a workload, or the default if it has none."""
    with naming(who, name):
        try:
            return getattr(own, name)
        except AttributeError:
            if default is MISSING or hasattr(type(own), name):  # a property that failed
                raise
            return default


def _count(value: Any, where: str) -> int:
    """Return a whole number of at least 1 as Python's."""
    number = as_builtin(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1 or misfit(number, int):
        raise PluginError(f"{where} is {shown(number)}, not a whole number of at least 1")
    return number


def _facts(facts: Mapping[Any, Any], who: str) -> Facts:
    """Return facts as JSON can hold them: text to text, whole and finite numbers."""
    made: dict[str, str | int | float] = {}
    for key, value in facts.items():
        if not isinstance(key, str):
            raise PluginError(f"{who}: the key {shown(key)} of facts is not text")
        where, fact = f"{who}: {key!r} of facts", as_builtin(value)
        if not isinstance(fact, str | int | float):
            kind = type(fact).__name__
            raise PluginError(f"{where} is {kind}, neither text nor a number: {shown(fact)}")
        if isinstance(fact, float) and not math.isfinite(fact):
            raise PluginError(f"{where} is {fact}, not a finite number")
        if isinstance(fact, int) and misfit(fact, int):
            raise PluginError(f"{where} {misfit(fact, int)}; write it as text")
        made[key] = fact
    entropy = made.get(ENTROPY, 1.0)
    if isinstance(entropy, str | bool) or entropy <= 0:
        raise PluginError(f"{who}: {ENTROPY!r} of facts is {shown(entropy)}, not a positive number")
    return made
