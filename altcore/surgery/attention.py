"""The operands of attention's two products: query by key, and probability by value.

Attention is a function call, not a module, so it is met where it is made: while an attention
module runs, a call of ``torch.nn.functional.scaled_dot_product_attention`` within it is computed
here, with its operands rounded. Their gradients pass straight through and the backward products
are not quantized. A model that multiplies by hand is not met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from altcore.surgery.product import StraightThrough
from altcore.surgery.quantizer import Quantizer

_AXES = {
    "attention@query": (-1,),
    "attention@key": (-1,),
    "attention@probability": (-1,),
    "attention@value": (-2,),
}
"""The axis of each operand that its product sums over: features, then positions."""


class AttentionMode(TorchFunctionMode):
    """Within it, scaled dot-product attention rounds its operands."""

    def __init__(self, quantizers: Mapping[str, Quantizer], training: bool) -> None:
        super().__init__()
        self.quantizers, self.training = quantizers, training
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self.attend(*args, **(kwargs or {}))

    def attend(
        self,
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
        device, dtype = value.device.type, value.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return self._attend(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
            ).to(dtype)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
        query, key, value = (
            self.rounded(f"attention@{name}", t)
            for name, t in (("query", query), ("key", key), ("value", value))
        )
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = query @ key.mT * factor
        if is_causal:
            shape, device = scores.shape[-2:], scores.device
            attn_mask = torch.ones(shape, dtype=torch.bool, device=device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        if attn_mask is None:
            weights = scores.softmax(-1)
        else:
            # Before as well as after, or the gradient of such a row is NaN.
            empty = (scores == -math.inf).all(-1, keepdim=True)
            weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
        probability = self.rounded("attention@probability", weights)
        return torch.dropout(probability, dropout_p, train=dropout_p > 0) @ value

    def rounded(self, name: str, x: Tensor) -> Tensor:
        """Return ``x`` as the product sees it, with a gradient that passes straight through."""
        quantizer = self.quantizers.get(name)
        wide = torch.promote_types(x.dtype, torch.float32)
        if quantizer is None:
            return x.to(wide)
        operand, _ = quantizer.operand(x, self.training, _AXES[name])
        values = operand.values if operand.scale is None else operand.values * operand.scale
        return StraightThrough.apply(x, values.to(wide), operand.inside)  # type: ignore[no-untyped-call] # torch leaves it untyped
