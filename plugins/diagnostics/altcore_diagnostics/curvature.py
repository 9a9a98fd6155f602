"""The diagnostic ``curvature``: the largest eigenvalue of the loss's Hessian, and its trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from altcore.plugin import BadInput, hookimpl, setting
from altcore_diagnostics.analysis.hessian import hessian_product
from altcore_diagnostics.analysis.hutchinson import SAMPLES, hutchinson
from altcore_diagnostics.analysis.lambda_max import TOLERANCE, lambda_max
from altcore_diagnostics.shadow_gradients import fresh_batch, keep_batch, unquantized

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class Curvature:
    """The largest eigenvalue and the trace of the Hessian of the unquantized loss.

    The loss is that of the run's weights with every product in float32, on the first ``items``
    items of the step's last micro-batch. The Hessian is over all trained parameters, in training
    mode: batch norms use the statistics of these items, and dropout drops the same elements in all
    products of a step.

    - ``lambda_max``: the largest eigenvalue (not the largest magnitude), to a relative
      ``tolerance``, by the Lanczos method;
    - ``hutchinson_trace``: the mean of zᵀHz over ``samples`` random vectors z of 1 and −1, and
      ``hutchinson_trace_error``, its standard error.

    Both are in the loss's unit over the square of the weights'. What is not finite, or does not
    converge, is left out, and a warning says so once. The random vectors depend on the step only.

    It runs forward and backward once, and each product takes about two backward passes more: one
    for each sample, and some twenty to thirty for the eigenvalue. Memory: the graph of both, about
    three times the activations of ``items`` items, and on the host twenty float32 vectors as large
    as the model. Attention is computed by its plain formula, since torch's fast kernels have no
    second derivative. With several processes each looks at its own items; rank 0 is recorded.
    """

    interval: int = setting(500, help="steps between measurements", validator=ge(1))
    items: int = setting(16, help="items of a batch that the loss is taken over", validator=ge(1))
    samples: int = setting(SAMPLES, help="random vectors of the trace", validator=ge(2))
    tolerance: float = setting(
        TOLERANCE, help="relative error of the largest eigenvalue", validator=gt(0)
    )

    warned: list[str] = field(init=False, factory=list)
    """The measures of which a warning told."""

    def __attrs_post_init__(self) -> None:
        if find_spec("scipy") is None:
            hint = "pip install 'altcore-diagnostics[curvature]'"
            raise BadInput("the package scipy is not installed", hint=hint)

    @hookimpl
    @contextmanager
    def watch_forward(self, step: Step) -> Iterator[None]:
        """Keep the batch as it is drawn: a model may write to it."""
        keep_batch(step)
        yield

    @hookimpl
    def post_backward(self, run: Run, step: Step) -> dict[str, float]:
        """Measure the weights of the step, before they move."""
        parameters = [p for p in run.model.parameters() if p.requires_grad]
        if not parameters:
            return {}
        size = sum(p.numel() for p in parameters)
        generator = torch.Generator(run.device).manual_seed(step.index)
        with unquantized(run), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            loss = self._loss(run, step)
            product = hessian_product(loss, parameters)
            largest = lambda_max(product, size, generator, self.tolerance)
            trace, error = hutchinson(product, size, generator, self.samples)
        found = {
            "lambda_max": largest,
            "hutchinson_trace": trace,
            "hutchinson_trace_error": error,
        }
        self._warn(run, found)
        return {name: x for name, x in found.items() if math.isfinite(x)}

    def _loss(self, run: Run, step: Step) -> Tensor:
        try:
            return run.loss(first_items(fresh_batch(step), self.items))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            message = f"the model has a batch norm, which has no statistics of {self.items} item"
            raise BadInput(message, key="curvature.items", hint="give it 2 or more") from error

    def _warn(self, run: Run, found: Mapping[str, float]) -> None:
        for name, x in found.items():
            if not math.isfinite(x) and name not in self.warned:
                self.warned.append(name)
                run.emit("warning", message=f"{name} is not finite, or did not converge")

    def state_dict(self) -> dict[str, Any]:
        """Return what was warned of."""
        return {"warned": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.warned = list(state["warned"])


def first_items(batch: Any, number: int) -> Any:
    """Return a micro-batch with the first items only, along the first dimension of its tensors.

    What is neither a tensor nor made of tensors stays as it is.
    """
    if isinstance(batch, Tensor):
        return batch[:number] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: first_items(value, number) for key, value in batch.items()}
    if not isinstance(batch, list | tuple):
        return batch
    parts = [first_items(value, number) for value in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
