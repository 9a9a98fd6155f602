"""What several diagnostics share: the weights on a grid, operands, statistics that add up.

A statistic of a layer or of the whole model is made of one row of numbers for each tensor: rows
are joined, and only what was joined becomes a measure. So an element counts once everywhere,
however the elements are spread over tensors. All of it stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import attrs
import torch
from attrs import field
from torch import Tensor

from altcore.plugin import interval_width, moments, round_to_grid

if TYPE_CHECKING:
    from altcore.plugin import Format, Run, Step


@attrs.frozen(eq=False)
class Weight:
    """A parameter that is on a grid, or is seen on one."""

    name: str
    parameter: Tensor
    grid: Any
    """The `WeightGrid` that ``run.quantization.grid_of`` gave."""

    @property
    def layer(self) -> str:
        """The layer that owns it."""
        return layer_of(self.name)

    @property
    def kind(self) -> str:
        """Whether it lives on the grid, or only a product's view of it does."""
        return "stored" if self.grid.is_stored else "view"


def weights_on_grids(run: Run, *, before_step: bool = False) -> Iterator[Weight]:
    """Yield the weights of a run that have a grid, a tied one once."""
    for name, parameter in run.quantization.grids.weights.items():
        grid = run.quantization.grid_of(parameter, before_step=before_step)
        if grid is not None:
            yield Weight(name, parameter, grid)


def layer_of(name: str) -> str:
    """Return the layer that owns the parameter called ``name``."""
    return name.rpartition(".")[0] or name


def inverse(scale: Tensor | None) -> Tensor | None:
    """Return what a tensor is multiplied by to come onto the grid of ``scale``; None for 1."""
    if scale is None:
        return None
    return scale.reciprocal().clamp(max=torch.finfo(scale.dtype).max)


_widths: WeakKeyDictionary[Step, dict[str, Tensor]] = WeakKeyDictionary()
"""For all who ask on one step; gone with it."""


def width_of(step: Step, weight: Weight, before: Tensor | None = None) -> Tensor:
    """Return the stiffness at a weight as it is in the step's forward pass; computed once a step.

    After the optimizer ``before`` says what the weight was.
    """
    known = _widths.setdefault(step, {})
    if weight.name not in known:
        w = weight.parameter.detach() if before is None else before
        known[weight.name] = interval_width(w, weight.grid.format, weight.grid.scale)
    return known[weight.name]


def nan_where_not_finite(x: Tensor) -> Tensor:
    """Return 0 for every element that is finite, NaN for the others."""
    return x.detach() * 0


def on_grid(x: Tensor, fmt: Format, scale: Tensor | None) -> Tensor:
    """Return the unscaled grid values that ``x`` is nearest to, ties to even."""
    return round_to_grid(x, fmt, r=inverse(scale))


# ------------------------------------------------------------------------------ operands


def operand_of(quantizer: Any) -> tuple[str, str]:
    """Return the layer and the operand of a quantizer."""
    layer, _, operand = quantizer.name.partition(":")
    return layer, operand.partition("/")[0]


def quantizers_at_work(run: Run) -> Iterator[tuple[int, Any]]:
    """Yield (row of the counters, quantizer), without those whose weight is on its grid already."""
    for i, quantizer in enumerate(run.quantization.quantizers):
        layer, operand = operand_of(quantizer)
        stored = run.quantization.plan[layer]["stored_weight"]
        if operand.startswith("weight@") and stored and stored.format == quantizer.cast.format:
            continue
        yield i, quantizer


def tensor_of(run: Run, step: Step, quantizer: Any) -> Tensor | None:
    """Return what a quantizer rounded last, or None where that is not at hand.

    At hand are weights, until the optimizer changes them, and what the needs ``activations`` and
    ``output_gradients`` capture: of the last micro-batch.
    """
    layer, operand = operand_of(quantizer)
    role = operand.partition("@")[0]
    if quantizer.cast.hadamard:
        return None
    if role == "weight":
        own = quantizer.name.partition("/")[2] or "weight"
        # A computed one (as by weight_norm) would be computed anew, and may change a state by it.
        weight = run.model.get_submodule(layer)._parameters.get(own)
        return None if weight is None else weight.detach()
    captured = {"activation": step.activations, "gradient": step.output_gradients}.get(role)
    return (captured or {}).get(layer)


# ---------------------------------------------------------------------------- statistics


@attrs.define(eq=False)
class Table:
    """Rows of numbers by kind and layer, and the measures that they make.

    ``join`` takes (rows, columns) to (columns); ``finish`` takes (columns, any number) to
    measures, whose last dimension is that number. Those of a kind are called ``kind_measure``,
    of the kind "" ``measure``; those of a layer ``kind_measure/layer``.
    """

    finish: Callable[[Tensor], Mapping[str, Tensor]]
    join: Callable[[Tensor], Tensor] = field(default=lambda rows: rows.sum(0))
    rows: dict[str, dict[str, list[tuple[Tensor, ...]]]] = field(init=False, factory=dict)

    def add(self, kind: str, layer: str, *numbers: Tensor) -> None:
        """Add a row: scalars and vectors, in order."""
        self.rows.setdefault(kind, {}).setdefault(layer, []).append(numbers)

    def measures(self) -> dict[str, Tensor]:
        """Return the measures of each kind, as a whole and of each layer."""
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
