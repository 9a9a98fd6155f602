"""Measures of parameters: of the whole model, by layer, and, if asked for, by parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from altcore.plugin import MeasureTable, layer_of


class ParameterTable:
    """A `MeasureTable` whose rows are parameters, by their full names.

    A layer's measure joins its parameters'. With ``per_parameter`` each also has its own,
    ``measure/layer.name.weight``.
    """

    def __init__(
        self,
        finish: Callable[[Tensor], Mapping[str, Tensor]],
        join: Callable[[Tensor], Tensor] = lambda rows: rows.sum(0),
        *,
        per_parameter: bool = False,
    ) -> None:
        self.layers = MeasureTable(finish, join)
        self.parameters = MeasureTable(finish, join)
        self.per_parameter = per_parameter

    def add(self, kind: str, name: str, *numbers: Tensor) -> None:
        """Add the row of the parameter ``name``."""
        self.layers.add(kind, layer_of(name), *numbers)
        if self.per_parameter:
            self.parameters.add(kind, name, *numbers)

    def by_layer(self) -> dict[str, Tensor]:
        """Return the measures of the whole model and of each layer."""
        return self.layers.measures()

    def by_parameter(self) -> dict[str, Tensor]:
        """Return the measures of each parameter; none unless they are asked for."""
        return {k: v for k, v in self.parameters.measures().items() if "/" in k}

    def measures(self) -> dict[str, Tensor]:
        """Return all measures."""
        return self.by_layer() | self.by_parameter()
