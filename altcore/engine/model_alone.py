"""The model of a run without its data, for those who want the weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from attrs import define
from torch import nn

from altcore.errors import BadInput


@define(eq=False)
class ModelAlone:
    """A workload that has a model and the facts that its run recorded, and no batches."""

    model: nn.Module
    facts: Mapping[str, str | int | float]
    item: str = "items"

    @property
    def items_per_batch(self) -> int:
        """Refused, as everything that the data decide."""
        _refuse()

    def batch(self, split: str, step: int, micro: int) -> Any:
        """Refused."""
        _refuse()

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Refused: a workload builds its loss with its data."""
        _refuse()


def _refuse() -> NoReturn:
    problem = "the run was loaded without its data, and has neither batches nor a loss"
    raise BadInput(problem, key="with_data", hint="altcore.load(...) loads it with them")
