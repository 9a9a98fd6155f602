"""What the matrix asks of each model: does it change without rounding, and what is covered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from model_zoo import Case
from torch import Tensor, nn

from altcore import quantize_model
from altcore.formats import FloatFormat
from altcore.quantization.coverage import Coverage
from altcore.recipes import Cast, Scaling

FORWARD_BOUND, GRADIENT_BOUND = 1e-4, 1e-3
"""The largest relative differences (L2 norms) that the order of float32 sums may make."""

FLOOR = 1e-2
"""A gradient below this share of the model's largest is held against that share: the key biases of
attention and what stands before a batch norm have none but rounding noise."""


class Float32(FloatFormat):
    """The format of every float32: its codes are too many to be listed."""

    def __attrs_post_init__(self) -> None:
        """Take more bits than a format may have whose codes are listed."""

    @property
    def code_values(self) -> tuple[float, ...]:
        """The ends of the format, for those who ask for no more."""
        return -self.max, -self.smallest, 0.0, self.smallest, self.max


_LOSSLESS = Cast(Float32("FLOAT32", 8, 23, 127), Scaling("none"))
LOSSLESS: Mapping[str, Any] = {
    **dict.fromkeys(("weight", "activation", "gradient", "weight_gradient"), _LOSSLESS),
    "layers": {"<attention>": {"attention": _LOSSLESS}},
}
"""Every operand of every layer, the head and attention included, on a grid that has them all."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "master": {"recipe": "master", "format": "E4M3"},
    "master and attention": {
        "recipe": {
            **dict.fromkeys(("weight", "activation", "gradient"), "FORMAT"),
            "layers": {
                "<attention>": {"attention": "FORMAT"},
                "<head>": {"weight": "none", "activation": "none", "gradient": "none"},
            },
        },
        "format": "E4M3",
    },
    "pure": {"recipe": "pure", "format": "E4M3"},
    "mxfp8": {"recipe": "mxfp8"},
    "nvfp4": {"recipe": "nvfp4"},
}
"""The recipes of the matrix, as `quantize_model` takes them."""


@frozen
class Passed:
    """What a pass through a model gave: output, loss, and the gradients by name."""

    output: Tensor
    loss: Tensor
    gradients: dict[str, Tensor | None]

    @property
    def is_finite(self) -> bool:
        """Whether the loss and every gradient are."""
        made = (g for g in self.gradients.values() if g is not None)
        return all(bool(t.isfinite().all()) for t in (self.loss, *made))


@frozen
class Difference:
    """How far a pass is from another: relative L2 norms of the output and the worst gradient."""

    forward: float
    gradient: float
    worst: str
    """Whose gradient that is."""


@frozen
class Covered:
    """What a recipe reaches of a model, and what the pass under it gave."""

    coverage: Coverage
    found: Passed


def built(case: Case, *, training: bool = True) -> nn.Module:
    """Build a case's model, the same each time."""
    torch.manual_seed(0)
    return case.build().train(training)


def passed(case: Case, model: nn.Module) -> Passed:
    """Run a model forward and backward on the same batch, with the same random numbers.

    The gradients of inputs are among the result's.
    """
    batch = case.batch()
    model.zero_grad()
    torch.manual_seed(1)
    output, loss = case.run(model, batch)
    loss.backward()
    gradients = {f"input {k}": v.grad for k, v in batch.items()}
    gradients |= {n: p.grad for n, p in model.named_parameters()}
    return Passed(output.detach(), loss.detach(), gradients)


def difference(found: Passed, wanted: Passed) -> Difference:
    """Compare two passes."""
    floor = FLOOR * max(float(g.norm()) for g in wanted.gradients.values() if g is not None)
    far = {n: _distance(found.gradients[n], g, floor) for n, g in wanted.gradients.items()}
    worst = max(far, key=far.__getitem__)
    return Difference(_distance(found.output, wanted.output, 0.0), far[worst], worst)


def _distance(found: Tensor | None, wanted: Tensor | None, floor: float) -> float:
    if found is None or wanted is None:
        return 0.0 if found is wanted else math.inf
    away = float((found.double() - wanted.double()).norm())
    if not math.isfinite(away):
        return math.inf
    return away / max(float(wanted.double().norm()), floor) if away else 0.0


def transparency(case: Case, *, training: bool) -> Difference:
    """Compare a model whose operands are on a grid without loss with the model as it is."""
    wanted = passed(case, built(case, training=training))
    model = built(case, training=training)
    with quantize_model(model, LOSSLESS):
        return difference(passed(case, model), wanted)


def covered(case: Case, recipe: str) -> Covered:
    """Run a model under a recipe of `RECIPES`."""
    model = built(case)
    with quantize_model(model, **RECIPES[recipe]) as q:
        found = passed(case, model)
        q.count_flops(lambda: case.run(model, case.batch())[1].backward())
        return Covered(q.coverage(), found)


def shares(found: Covered) -> tuple[int, int]:
    """Return the percentages of parameters and of FLOPs on a grid, as docs/models.md has them."""
    coverage = found.coverage
    return round(100 * coverage.parameter_share), round(100 * (coverage.flop_share or 0))


def traces(model: nn.Module) -> dict[str, Any]:
    """Return what there is on each module: its type, attributes, hooks and parameters."""
    return {
        name: (
            type(module),
            sorted(vars(module)),
            [len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v is not None],
            [
                (n, id(p), len(p._backward_hooks or ()))
                for n, p in module._parameters.items()
                if p is not None
            ],
        )
        for name, module in model.named_modules()
    }
