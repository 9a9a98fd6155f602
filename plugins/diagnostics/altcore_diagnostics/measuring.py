"""What several diagnostics share: the weights on a grid, operands, statistics that add up.

A statistic of a layer or of the whole model is made of one row of numbers for each tensor: rows
are joined, and only what was joined becomes a measure. So an element counts once everywhere,
however the elements are spread over tensors. All of it stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import field
from torch import Tensor

from altcore.numerics import round_to_grid

if TYPE_CHECKING:
    from altcore import Format
    from altcore.state import Run, Step


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
    for name, parameter in run.model.named_parameters():
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
        return run.model.get_submodule(layer).get_parameter(own).detach()
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
    rows: dict[str, dict[str, list[Tensor]]] = field(init=False, factory=dict)

    def add(self, kind: str, layer: str, *numbers: Tensor) -> None:
        """Add a row: scalars and vectors, in order."""
        row = torch.cat([n.double().reshape(-1) for n in numbers])
        self.rows.setdefault(kind, {}).setdefault(layer, []).append(row)

    def measures(self) -> dict[str, Tensor]:
        """Return the measures of each kind, as a whole and of each layer."""
        found = {}
        for kind, layers in self.rows.items():
            whole = [row for rows in layers.values() for row in rows]
            joined = [self._joined(rows) for rows in (whole, *layers.values())]
            places = ("", *(f"/{layer}" for layer in layers))
            for key, values in self.finish(torch.stack(joined, dim=-1)).items():
                name = f"{kind}_{key}" if kind else key
                for place, value in zip(places, values.unbind(-1), strict=True):
                    found[f"{name}{place}"] = value
        return found

    def _joined(self, rows: list[Tensor]) -> Tensor:
        return rows[0] if len(rows) == 1 else self.join(torch.stack(rows))


def moments(x: Tensor, where: Tensor | None = None) -> Tensor:
    """Return number, mean and sum of squared deviations of the elements, float64 (3,)."""
    x = x.detach()
    if where is None:
        mean = x.mean(dtype=torch.float64)
        number = torch.full_like(mean, x.numel())
        return torch.stack([number, mean, (x.double() - mean).square_().sum()])
    left_out = ~where
    number = torch.count_nonzero(where)
    mean = x.masked_fill(left_out, 0).sum(dtype=torch.float64) / number.clamp(min=1)
    squares = (x.double() - mean).masked_fill_(left_out, 0).square_().sum()
    return torch.stack([number, mean, squares])


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
