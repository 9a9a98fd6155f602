"""What a quantized layer is given: `BadInput` for what it cannot compute with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from altcore.errors import BadInput, with_article
from altcore.quantization.layers import called

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What a product takes. torch's own types of 8 bits and fewer only hold numbers."""


def check_operand(x: Tensor, layer: str, argument: str) -> Tensor:
    """Return a product's operand as a plain tensor.

    Raises `BadInput`, which names layer and argument, for what is not a dense floating-point
    tensor with values. A subclass that only labels a tensor is taken for what it holds.
    """
    if type(x) not in (Tensor, nn.Parameter):
        if not isinstance(x, Tensor):
            raise BadInput(f"{called(layer)}: {argument} is {x!r:.60}, not a tensor")
        if type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise _refused(layer, argument, with_article(type(x).__name__))
        x = x.as_subclass(Tensor)
    if x.layout != torch.strided or x.is_nested or x.is_quantized or x.is_meta:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else None
        kind = kind or ("meta" if x.is_meta else str(x.layout).removeprefix("torch."))
        raise _refused(layer, argument, f"a {kind} tensor")
    if x.dtype not in DTYPES:
        raise _refused(layer, argument, f"a tensor of {str(x.dtype).removeprefix('torch.')}")
    return x


def _refused(layer: str, argument: str, what: str) -> BadInput:
    return BadInput(
        f"{called(layer)}: {argument} is {what}: a quantized product needs a dense floating-point "
        "tensor of 16 to 64 bits (skip the layer in the recipe, or run it under q.off())"
    )


def refuse_transforms(layer: str, module: nn.Module) -> None:
    """Raise `BadInput` within torch.func's transforms and forward-mode differentiation."""
    is_forward = torch.autograd.forward_ad._current_level >= 0
    if is_forward or torch._C._functorch.peek_interpreter_stack() is not None:
        raise BadInput(
            f"{called(layer)} ({type(module).__name__}): vmap, jvp, torch.func.grad and hessian do "
            "not go through a quantized layer: transform the unquantized model, under q.off()"
        )
