"""A workload with epochs and a finite validation split, small enough to compute by hand."""

from typing import Any

import torch
from attrs import define, field
from torch import nn

from altcore import setting


@define(eq=False)
class Points:
    """Learns to say 0 to each of 20 numbers; validates on 1, 2, 3, 4, 5."""

    batch_size: int = setting(2, help="numbers in a micro-batch")
    measures: dict[str, Any] = setting(factory=dict, help="what the loss tells besides")

    def build(self, seed, device):
        """Return the workload."""
        return BuiltPoints(self.batch_size, self.measures, seed)


@define(eq=False)
class BuiltPoints:
    """It notes which batches are asked for."""

    items_per_batch: int
    measures: dict[str, Any]
    seed: int
    item: str = "numbers"
    facts: dict[str, Any] = field(factory=lambda: {"numbers": 20, "sha256": "those"})
    model: nn.Module = field(init=False)
    steps_per_epoch: int = field(init=False)
    validation_batches: int = field(init=False)
    _asked_cache: list[tuple[str, int, int]] = field(init=False, factory=list)

    def __attrs_post_init__(self):
        self.model = nn.Sequential(nn.Linear(1, 1, bias=False))
        nn.init.constant_(self.model[0].weight, 1.0)
        self.steps_per_epoch = -(-20 // self.items_per_batch)
        self.validation_batches = -(-5 // self.items_per_batch)

    @property
    def asked(self):
        return self._asked_cache

    def batch(self, split, step, micro):
        """Return numbers; in training each comes once an epoch."""
        self._asked_cache.append((split, step, micro))
        if split == "val":
            numbers, place = torch.arange(1.0, 6.0), step
        else:
            epoch, place = divmod(step - 1, self.steps_per_epoch or 10)
            generator = torch.Generator().manual_seed(self.seed * 1000 + int(epoch))
            numbers = torch.randperm(20, generator=generator) / 20
        return numbers[place * self.items_per_batch :][: self.items_per_batch, None]

    def items(self, batch):
        """Return how many numbers there are."""
        return len(batch)

    def loss(self, model, batch):
        """Return the mean of what the model says, and measures if any are wanted."""
        said = model(batch)
        largest = {"largest": said.max()} if not self.measures else self.measures
        return said.mean(), largest
