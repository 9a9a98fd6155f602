"""A workload with the caller's own model, data or loss in place of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define
from torch import nn

from altcore.engine.checked_workload import (
    ENTROPY,
    CheckedWorkload,
    check_batch,
    placed,
    rows_of,
)
from altcore.engine.flag_watch import watched
from altcore.engine.named_errors import naming
from altcore.errors import PluginError


@define(eq=False)
class CustomWorkload:
    """Says of model, data and loss only what holds of those that are used."""

    base: CheckedWorkload
    model: nn.Module
    given: Callable[[str, int, int], Any] | None
    """The caller's batches, which know of no epochs; None for the workload's own."""
    given_loss: Callable[[nn.Module, Any], Any] | None = None
    """The caller's loss; None for the workload's own."""

    @property
    def items_per_batch(self) -> int:
        """Items in a batch; of the caller's, in the first one."""
        return self.items(self.batch("train", 1, 0)) if self.given else self.base.items_per_batch

    @property
    def item(self) -> str:
        """The plural by which an item is called."""
        return self.base.item if self._base_counts else "examples"

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """The base workload's facts, without those of what has been replaced."""
        facts: dict[str, str | int | float] = {"data": "a function that was given"}
        facts = facts if self.given else dict(self.base.facts)
        if self.given_loss:  # it may be in another unit
            facts.pop(ENTROPY, None)
        if self.given or "parameters" in facts:
            parameters = filter(lambda p: not nn.parameter.is_lazy(p), self.model.parameters())
            facts["parameters"] = sum(p.numel() for p in parameters)
        return facts

    @property
    def steps_per_epoch(self) -> int | None:
        """Micro-batches in an epoch of the workload's own data, if it has epochs."""
        return None if self.given else self.base.steps_per_epoch

    @property
    def shard(self) -> Callable[[Any, int, int], Any] | None:
        """How the workload's own batches are shared between ranks, if it says so."""
        return None if self.given else getattr(self.base, "shard", None)

    @property
    def validation_batches(self) -> int | None:
        """Batches of the workload's own validation split, if that is finite."""
        return None if self.given else self.base.validation_batches

    def items(self, batch: Any) -> int:
        """Return how many items a batch has, as the workload counts them.

        If it counts no batches, or its loss does not read them, those of the caller have as many
        as their first tensor or array has rows.
        """
        if self._base_counts:
            return self.base.items(batch)
        rows = rows_of(batch)
        return 1 if rows is None else rows

    @property
    def _base_counts(self) -> bool:
        return self.given is None or (self.base.counts_items and self.given_loss is None)

    def batch(self, split: str, step: int, micro: int) -> Any:
        """Return the caller's batch, or the workload's, on the run's device."""
        if self.given is None:
            return self.base.batch(split, step, micro)
        who, called = "the function data that was given", f"batch ({split!r}, {step}, {micro})"
        with naming(who, called):
            batch = self.given(split, step, micro)
            check_batch(batch, f"{who} {called}")
            if batch is None and self.given_loss is None:
                text = f"{who} returned None for {called}, which no workload's loss can use"
                raise PluginError(text)
            return placed(batch, self.base.device, f"{who} {called}")

    @property
    def who(self) -> str:
        """The loss, as errors name it: the caller's, or that of the base workload."""
        if self.given_loss:
            return "the function loss that was given"
        own = self.model is not self.base.model
        return f"{self.base.who}, with a model of your own" if own else self.base.who

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Return the caller's loss or the workload's, with measures if it has some."""
        if self.given_loss is None:
            return self.base.loss(model, batch)
        with watched(self.who, "loss"):
            return self.given_loss(model, batch)


def own_workload(workload: Any) -> Any:
    """Return a workload as its plugin built it, without what checks or replaces parts of it."""
    base = workload.base if isinstance(workload, CustomWorkload) else workload
    return base.own if isinstance(base, CheckedWorkload) else base


def own_batches(workload: Any) -> Callable[[str, int, int], Any] | None:
    """Return the caller's function of batches, None if the workload has its own."""
    return workload.given if isinstance(workload, CustomWorkload) else None


def own_loss(workload: Any) -> Callable[[nn.Module, Any], Any] | None:
    """Return the caller's loss, None if the workload has its own."""
    return workload.given_loss if isinstance(workload, CustomWorkload) else None
