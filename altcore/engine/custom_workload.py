"""A workload with the caller's own model or data in place of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import define
from torch import Tensor, nn

from altcore.engine.evaluation import items_in
from altcore.engine.named_errors import NamedWorkload, naming


@define(eq=False)
class CustomWorkload:
    """Says of model and data only what holds of those that are used."""

    base: NamedWorkload
    model: nn.Module
    given: Callable[[str, int, int], Any] | None
    """The caller's batches, which know of no epochs; None for the workload's own."""

    @property
    def items_per_batch(self) -> int:
        """Items in a batch, for throughput; of the caller's, in the first one."""
        return self.items(self.batch("train", 1, 0)) if self.given else self.base.items_per_batch

    @property
    def item(self) -> str:
        """The plural by which an item is called."""
        return "examples" if self.given and not hasattr(self.base, "items") else self.base.item

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """The base workload's facts, without those of what has been replaced."""
        facts: dict[str, str | int | float] = {"data": "a function that was given"}
        facts = facts if self.given else dict(self.base.facts)
        if self.given or "parameters" in facts:
            parameters = filter(lambda p: not nn.parameter.is_lazy(p), self.model.parameters())
            facts["parameters"] = sum(p.numel() for p in parameters)
        return facts

    @property
    def steps_per_epoch(self) -> int | None:
        """Micro-batches in an epoch of the workload's own data, if it has epochs."""
        return None if self.given else getattr(self.base, "steps_per_epoch", None)

    @property
    def validation_batches(self) -> int | None:
        """Batches of the workload's own validation split, if that is finite."""
        return None if self.given else getattr(self.base, "validation_batches", None)

    def items(self, batch: Any) -> int:
        """Return how many items a batch has, as the workload counts them.

        If it counts no batches, those of the caller have as many as their first tensor has rows.
        """
        if self.given is None or hasattr(self.base, "items"):
            return items_in(self.base, batch)
        return next((len(t) for t in _tensors(batch) if t.dim()), 1)

    def batch(self, split: str, step: int, micro: int) -> Any:
        """Return the caller's batch, or the workload's."""
        if self.given is None:
            return self.base.batch(split, step, micro)
        with naming("data, the function that was given,", f"batch ({split!r}, {step}, {micro})"):
            return self.given(split, step, micro)

    @property
    def who(self) -> str:
        """Kind, name and distribution of the base workload."""
        own = self.model is not self.base.model
        return f"{self.base.who}, with a model of your own," if own else self.base.who

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Return the workload's loss, with measures if it has some."""
        return self.base.loss(model, batch)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | Sequence) and not isinstance(batch, str | bytes):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)
