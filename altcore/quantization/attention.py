"""The operands of attention's two products: query by key, and probability by value.

Attention is computed inside a module, by torch's function or by hand. Either way the operands are
rounded where the products happen. Their gradients pass straight through, and the backward products
are not quantized.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altcore.quantization.compute import output_dtype
from altcore.quantization.layer import QuantizedLayer


def attend(
    layer: QuantizedLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` on rounded operands.

    In float32 at least, which holds them as their scales make them; 16 bits would round them
    again, and float16 overflow in the scores. A row that may attend to nothing gives zeros.
    """
    dtype = output_dtype(value)
    with torch.autocast(value.device.type, enabled=False):
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
        query = layer.round_attention("attention@query", query, -1)
        key = layer.round_attention("attention@key", key, -1)
        value = layer.round_attention("attention@value", value, -2)
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        weights = _probabilities(query @ key.mT * factor, attn_mask, is_causal)
        probability = layer.round_attention("attention@probability", weights, -1)
        layer.count_attention("scores", query, key.mT)
        layer.count_attention("mix", probability, value)
        return (torch.dropout(probability, dropout_p, train=dropout_p > 0) @ value).to(dtype)


def _probabilities(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        shape, device = scores.shape[-2:], scores.device
        mask = torch.ones(shape, dtype=torch.bool, device=device).tril()
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
