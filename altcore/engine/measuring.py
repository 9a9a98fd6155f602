"""Helpers for plugins that measure: quantized weights, operands, and statistics that add up.

A statistic of a layer or of the whole model is made of one row of numbers for each tensor. Rows
are joined first, and the joined row becomes the measure. So each element counts once, however the
elements are spread over tensors. Everything stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from attrs import field
from torch import Tensor

from altcore.engine.state import Run, Step
from altcore.formats import Format
from altcore.numerics import interval_width, moments, round_to_grid
from altcore.quantization import WeightGrid


@attrs.frozen(eq=False)
class QuantizedWeight:
    """A parameter that is stored on a grid, or that a product sees on one."""

    name: str
    parameter: Tensor
    grid: WeightGrid
    """Its format and scale, from ``run.quantization.grid_of``."""

    @property
    def layer(self) -> str:
        """The name of the layer that owns it."""
        return layer_of(self.name)

    @property
    def kind(self) -> str:
        """``stored`` if it lives on the grid, ``view`` if only a product sees it there."""
        return "stored" if self.grid.is_stored else "view"


def quantized_weights(run: Run, *, before_step: bool = False) -> Iterator[QuantizedWeight]:
    """Yield the weights of a run that have a grid, a tied one once.

    ``before_step``: at the scale that a stored weight had before the optimizer's step.
    """
    for name, parameter in run.quantization.weights.parameters.items():
        grid = run.quantization.grid_of(parameter, before_step=before_step)
        if grid is not None:
            yield QuantizedWeight(name, parameter, grid)


def layer_of(name: str) -> str:
    """Return the layer that owns the parameter called ``name``."""
    return name.rpartition(".")[0] or name


def inverse_scale(scale: Tensor | None) -> Tensor | None:
    """Return the factor that brings a tensor onto a grid of this scale; None for a scale of 1."""
    if scale is None:
        return None
    return scale.reciprocal().clamp(max=torch.finfo(scale.dtype).max)


def interval_width_of(step: Step, weight: QuantizedWeight, before: Tensor | None = None) -> Tensor:
    """Return the width of the grid interval at each element of a weight, in the weight's units.

    The weight is that of the step's forward pass; computed once a step, for all plugins. After the
    optimizer has moved it, ``before`` is what it was.
    """

    def make() -> Tensor:
        w = weight.parameter.detach() if before is None else before
        return interval_width(w, weight.grid.format, weight.grid.scale)

    return step.shared((interval_width_of, weight.name), make)


def nan_where_not_finite(x: Tensor) -> Tensor:
    """Return 0 for each finite element, and NaN for each other one."""
    return x.detach() * 0


def on_grid(x: Tensor, fmt: Format, scale: Tensor | None) -> Tensor:
    """Return the nearest grid value of each element, unscaled; ties go to even."""
    return round_to_grid(x, fmt, r=inverse_scale(scale))


# ------------------------------------------------------------------------------ operands


def active_quantizers(run: Run) -> Iterator[tuple[int, Any]]:
    """Yield (row, quantizer) of each quantizer that rounds anything.

    The row is that of ``counts`` and ``errors`` in ``run.quantization.counters``. A weight that is
    stored on its product's grid is not rounded again, so its quantizer is left out.
    """
    for i, quantizer in enumerate(run.quantization.quantizers):
        stored = run.quantization.plan[quantizer.site.layer]["stored_weight"]
        is_weight = quantizer.site.operand.startswith("weight@")
        if is_weight and stored and stored.format == quantizer.cast.format:
            continue
        yield i, quantizer


def last_input(run: Run, step: Step, quantizer: Any) -> Tensor | None:
    """Return the tensor that a quantizer rounded last, or None if it is not at hand.

    At hand are weights, until the optimizer changes them, and the tensors of the last micro-batch
    that the needs ``activations`` and ``output_gradients`` capture. After a Hadamard transform
    none is.
    """
    role = quantizer.site.operand.partition("@")[0]
    if quantizer.cast.hadamard:
        return None
    if role == "weight":
        # A computed weight (as by weight_norm) would be computed anew, which may change a state.
        own = run.model.get_submodule(quantizer.site.layer)._parameters
        weight = own.get(quantizer.site.parameter or "weight")
        return None if weight is None else weight.detach()
    captured = {"activation": step.activations, "gradient": step.output_gradients}.get(role)
    return (captured or {}).get(quantizer.site.layer)


# ---------------------------------------------------------------------------- statistics


@attrs.define(eq=False)
class MeasureTable:
    """Rows of numbers by kind and layer, and the measures that they make.

    A measure of a kind is called ``kind_measure``, that of one layer ``kind_measure/layer``; of
    the kind "" they are ``measure`` and ``measure/layer``.

    Args:
        finish: takes joined rows, (columns, places), to measures of shape (places,), by name.
        join: takes rows, (rows, columns), to one row, (columns,): by default their sum.

    >>> share = MeasureTable(lambda columns: {"zero_share": columns[0] / columns[1]})
    >>> share.add("", "h.0", torch.tensor(1), torch.tensor(4))
    >>> share.add("", "h.1", torch.tensor(3), torch.tensor(4))
    >>> {name: float(value) for name, value in share.measures().items()}
    {'zero_share': 0.5, 'zero_share/h.0': 0.25, 'zero_share/h.1': 0.75}
    """

    finish: Callable[[Tensor], Mapping[str, Tensor]]
    join: Callable[[Tensor], Tensor] = field(default=lambda rows: rows.sum(0))
    rows: dict[str, dict[str, list[tuple[Tensor, ...]]]] = field(init=False, factory=dict)

    def add(self, kind: str, layer: str, *numbers: Tensor) -> None:
        """Add a row: scalars and vectors, in order."""
        self.rows.setdefault(kind, {}).setdefault(layer, []).append(numbers)

    def measures(self) -> dict[str, Tensor]:
        """Return the measures of each kind: of the whole model, and of each layer."""
        found = {}
        for kind, layers in self.rows.items():
            whole = _matrix([row for rows in layers.values() for row in rows])
            parts = whole.split([len(rows) for rows in layers.values()])
            joined = [self._joined(rows) for rows in (whole, *parts)]
            places = ("", *(f"/{layer}" for layer in layers))
            for key, values in self.finish(torch.stack(joined, dim=-1)).items():
                name = f"{kind}_{key}" if kind else key
                for place, value in zip(places, values.unbind(-1), strict=True):
                    found[f"{name}{place}"] = value
        return found

    def _joined(self, rows: Tensor) -> Tensor:
        return rows[0] if len(rows) == 1 else self.join(rows)


def _matrix(rows: list[tuple[Tensor, ...]]) -> Tensor:
    """Put rows of scalars and vectors together, float64; column by column, in few calls."""
    columns = []
    for numbers in zip(*rows, strict=True):
        is_uniform = len({n.dtype for n in numbers}) == 1
        column = torch.stack([n if is_uniform else n.double() for n in numbers])
        columns.append(column.double().reshape(len(rows), -1))
    return torch.cat(columns, 1)


def moments_without_zeros(x: Tensor, number: Tensor) -> Tensor:
    """Return the `moments` of ``number`` elements of ``x``, the others being 0."""
    total, mean, squares = moments(x).unbind()
    number = number.double()
    kept = total * mean / number.clamp(min=1)
    squares = squares + mean * total * mean - kept * number * kept
    return torch.stack([number, kept, torch.where(squares < 0, 0.0, squares)])


def join_moments(rows: Tensor) -> Tensor:
    """Join rows of `moments`, (rows, 3), into one of all their elements."""
    number, mean, squares = rows.unbind(-1)
    total = number.sum()
    joined = (number * mean).sum() / total.clamp(min=1)
    squares = squares + number * (mean - joined).square()
    return torch.stack([total, joined, squares.sum()])


def mean_and_std(number: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (of the population); NaN of no elements."""
    return torch.where(number > 0, mean, torch.nan), (squares / number).sqrt()
