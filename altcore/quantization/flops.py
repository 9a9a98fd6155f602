"""Count the FLOPs of matrix products, convolutions, recurrent networks and attention.

torch's `FlopCounterMode` sees every operation, forward and backward. This module keeps
its correct formulas, and replaces the others:

- It has none for grouped matrix products, fused recurrent networks, bilinear layers, the CPU's
  fused attention, or products by a vector.
- It counts the backward pass of a convolution of G groups up to G times.
- It counts the scores that fused attention computes again in the backward pass. Attention that
  is written out keeps them, so a share would depend on the kernel.

A product (M, K) by (K, N) has 2 M N K FLOPs. Sums that are not products, as of a bias, have none.
Products with zeros count: those of a convolution's padding, and of a mask in attention.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from attrs import define, field
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from altcore.recipes import PRODUCTS

OPERANDS_OF = {
    "fwd": PRODUCTS[0],
    "dgrad": PRODUCTS[1],
    "wgrad": PRODUCTS[2],
    "scores": ("attention@query", "attention@key"),
    "mix": ("attention@probability", "attention@value"),
}
"""The two operands of each product, of a layer and of attention."""


@define
class FlopCount:
    """Floating-point operations of products with operands on a grid."""

    total: int | None = None
    """Of the whole step, whatever computes them; None until that is known."""
    made: int = 0
    """Of all products that quantized layers made, without the padding of Hadamard transforms."""
    both: int = 0
    """Of products with both operands on a grid."""
    by_operand: Counter[str] = field(factory=Counter)

    def add(self, product: str, first: bool, second: bool, flops: int) -> None:
        """Count a product of which the ``first`` and the ``second`` operand are on a grid."""
        self.both += flops if first and second else 0
        for operand, is_on_grid in zip(OPERANDS_OF[product], (first, second), strict=True):
            self.by_operand[operand] += flops if is_on_grid else 0


_is_counting = ContextVar("_is_counting", default=True)


def count_flops(run: Callable[[], object]) -> int:
    """Call ``run``, and return its FLOPs."""
    formulas = {op: _unless_uncounted(formula) for op, formula in _formulas().items()}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    # Its own tracker of modules hooks into each of them, and fails in inference mode.
    counter.mod_tracker = _Untracked()
    with counter:
        run()
    return counter.get_total_flops()


class _Untracked(ModuleTracker):
    """A tracker that tells no modules apart."""

    def __enter__(self) -> None:
        self.parents = {"Global"}

    def __exit__(self, *args: object) -> None:
        pass


@contextmanager
def uncounted() -> Iterator[None]:
    """Hide products that are not the model's own from `count_flops`."""
    token = _is_counting.set(False)
    try:
        yield
    finally:
        _is_counting.reset(token)


def _unless_uncounted(formula: Callable[..., int]) -> Callable[..., int]:
    def count(*args: Any, **kwargs: Any) -> int:
        return formula(*args, **kwargs) if _is_counting.get() else 0

    count._get_raw = True  # type: ignore[attr-defined] # torch's mark: tensors, not their shapes
    return count


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return torch's formulas and ours, by operation; not every torch has all of them."""
    aten = torch.ops.aten
    ours = {getattr(aten, name): f for name, f in _OURS.items() if hasattr(aten, name)}
    return {**flop_registry, **ours}


# ----------------------------------------------- formulas: an operation's arguments, to FLOPs


def _mv(matrix: Tensor, vector: Tensor, **_: Any) -> int:
    return 2 * matrix.numel()


def _addmv(added: Tensor, matrix: Tensor, vector: Tensor, **_: Any) -> int:
    return 2 * matrix.numel()


def _addbmm(added: Tensor, a: Tensor, b: Tensor, **_: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _grouped_mm(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Count every row, in a group or not."""
    if (a.dim(), b.dim()) == (3, 2):  # the columns of b are in groups
        return 2 * b.numel() * a.shape[1]
    return 2 * a.numel() * b.shape[-1]


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Count one product by the outer product of two of the three."""
    shapes = []
    for t, expand in ((a, expand_a), (b, expand_b), (c, expand_c)):
        shape = [*t.shape]
        for dim in expand:
            shape.insert(dim, 1)
        shapes.append(shape)
    return 2 * math.prod(torch.broadcast_shapes(*shapes))


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Count the forward product once for each of the two gradients that are asked for."""
    places = x if transposed else grad
    product = 2 * w.numel() * len(x) * math.prod(places.shape[2:])
    return product * sum(output_mask[:2])


def _mkldnn_rnn_layer(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    return _recurrent(x, [w_ih, w_hh])


def _mkldnn_rnn_layer_backward(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _recurrent(x, [w_ih, w_hh])  # it always makes all gradients


def _cudnn_rnn(x: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return _recurrent(x, weights)


def _cudnn_rnn_backward(x: Tensor, weights: Sequence[Tensor], *rest: Any, **_: Any) -> int:
    *of_data, of_weights = rest[-1]  # input, states; weights
    return _recurrent(x, weights) * (any(of_data) + of_weights)


def _recurrent(x: Tensor, weights: Sequence[Tensor]) -> int:
    """Count one product by each matrix for each time step of each sequence."""
    return 2 * math.prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Count the scores and the weighted sum of values."""
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2 * scores * (query.shape[-1] + value.shape[-1])


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return 2 * _attention(query, key, value)


_OURS: dict[str, Callable[..., int]] = {
    "mv": _mv,
    "dot": _mv,
    "vdot": _mv,
    "addmv": _addmv,
    "addbmm": _addbmm,
    "_grouped_mm": _grouped_mm,
    "_trilinear": _trilinear,
    "convolution_backward": _convolution_backward,
    "mkldnn_rnn_layer": _mkldnn_rnn_layer,
    "mkldnn_rnn_layer_backward": _mkldnn_rnn_layer_backward,
    "_cudnn_rnn": _cudnn_rnn,
    "_cudnn_rnn_backward": _cudnn_rnn_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_scaled_dot_product_flash_attention_backward": _attention_backward,
    "_scaled_dot_product_efficient_attention_backward": _attention_backward,
    "_scaled_dot_product_cudnn_attention_backward": _attention_backward,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_fused_attention_overrideable_backward": _attention_backward,
}
