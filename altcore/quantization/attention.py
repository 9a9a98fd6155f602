"""The operands of attention's two products: query by key, and probability by value.

Attention is computed inside a module, by torch's function or by hand. Either way the operands are
rounded where the products happen. Their gradients pass straight through, and the backward products
are not quantized.
"""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from altcore.quantization.compute import output_dtype
from altcore.quantization.layer import QuantizedLayer


@frozen(eq=False)
class AttentionCall:
    """A call of `torch.nn.functional.scaled_dot_product_attention`, with torch's arguments.

    Bind a call that was intercepted by ``AttentionCall(*args, **kwargs)``.
    """

    query: Tensor
    """(..., heads, queries, features)."""
    key: Tensor
    """(..., heads, positions, features)."""
    value: Tensor
    """(..., heads, positions, values)."""
    attn_mask: Tensor | None = None
    """Broadcasts to the scores: True for positions that take part, or a number to add."""
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def factor(self) -> float:
        """The number that the scores are multiplied by."""
        return 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale

    @property
    def mask(self) -> Tensor | None:
        """The mask, and that of causal attention: both, if the call asks for both."""
        mask = self.attn_mask
        if not self.is_causal:
            return mask
        shape = self.query.shape[-2], self.key.shape[-2]
        causal = torch.ones(shape, dtype=torch.bool, device=self.query.device).tril()
        if mask is None:
            return causal
        is_boolean = mask.dtype == torch.bool
        return causal & mask if is_boolean else mask.masked_fill(~causal, -math.inf)

    def for_each_query(self, heads: Tensor) -> Tensor:
        """Return keys or values with a head for each of the query's, which may share them."""
        groups = self.query.shape[-3] // self.key.shape[-3] if self.enable_gqa else 1
        return heads.repeat_interleave(groups, -3) if groups > 1 else heads


def attend(layer: QuantizedLayer, call: AttentionCall) -> Tensor:
    """Compute a call of torch's attention on rounded operands.

    In float32 at least, which holds them as their scales make them; 16 bits would round them
    again, and float16 overflow in the scores. A row that may attend to nothing gives zeros.
    """
    dtype = output_dtype(call.value)
    with torch.autocast(call.value.device.type, enabled=False):
        key, value = call.for_each_query(call.key), call.for_each_query(call.value)
        query = layer.round_attention("attention@query", call.query, -1)
        key = layer.round_attention("attention@key", key, -1)
        value = layer.round_attention("attention@value", value, -2)
        weights = _probabilities(query @ key.mT * call.factor, call.mask)
        probability = layer.round_attention("attention@probability", weights, -1)
        layer.count_attention("scores", query, key.mT)
        layer.count_attention("mix", probability, value)
        dropped = torch.dropout(probability, call.dropout_p, train=call.dropout_p > 0)
        return (dropped @ value).to(dtype)


def _probabilities(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores.softmax(-1)
    is_boolean = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, -math.inf) if is_boolean else scores + mask
    # Before as well as after, or the gradient of such a row is NaN.
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def multiply(layer: QuantizedLayer, x: Tensor, w: Tensor, is_probability: bool) -> Tensor:
    """Return ``x @ w.mT`` of rounded operands: probability by value, or else query by key.

    As in `attend`, 16 bits hold the result, not the operands.
    """
    names = ("probability", "value") if is_probability else ("query", "key")
    dtype = torch.promote_types(output_dtype(x), output_dtype(w))
    x = layer.round_attention(f"attention@{names[0]}", x, -1)
    w = layer.round_attention(f"attention@{names[1]}", w, -1)
    layer.count_attention("mix" if is_probability else "scores", x, w.mT)
    with torch.autocast(x.device.type, enabled=False):
        return (x @ w.mT).to(dtype)
