"""The forward of a quantized module: patched on the instance, and taken back.

A layer that runs torch's own forward is its one product. Any other module runs its own forward,
whatever that is, and its products are quantized where they happen (see
`altcore.quantization.interception`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _symbolic_trace

from altcore.errors import BadInput, check_copy
from altcore.quantization.checks import check_unflattened, check_whole, refuse_transforms
from altcore.quantization.context import Context
from altcore.quantization.convolution import Geometry, convolve
from altcore.quantization.discovery import called, has_transposed_weight
from altcore.quantization.interception import intercepting, suspended
from altcore.quantization.layer import QuantizedLayer, WeightProducts
from altcore.quantization.linear import multiply
from altcore.recipes import Casts

_is_fx_tracing = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)
"""The newer function, where torch has it, since the other then logs a warning."""


class PatchedForward:
    """The ``forward`` of a quantized module.

    A copy of the module, deep or pickled, has the module's own forward: it is a plain module with
    the same weights.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        self.layer = layer
        # A compiler cannot trace kernels, counters and the scales' state.
        self.run = torch.compiler.disable(self._run, reason=str(self._refused()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A compiler stops at `run` by itself; before torch 2.13 it takes `is_exporting` for true.
        if not torch.compiler.is_dynamo_compiling():
            is_traced = torch._C._get_tracing_state() is not None or _is_fx_tracing()
            if is_traced or torch.compiler.is_exporting():
                raise self._refused()
        return self.run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        layer, context = self.layer, self.layer.context
        if layer.is_removed:
            return layer.own_forward(*args, **kwargs)
        if context.is_off:
            with suspended():  # a layer around this one may be quantized
                return layer.own_forward(*args, **kwargs)
        refuse_transforms(layer.name, layer.module)
        layer.calls += not context.is_recomputing
        check_weights(layer)
        is_new_step = layer.module.training and not context.is_recomputing
        if is_new_step and not context.is_coverage_told and context.has_stepped:
            context.tell_coverage()
        if is_new_step and not context.is_frozen:
            context.renew_counts()
        if layer.is_direct:
            with suspended():
                return multiply_or_convolve(layer, *args, **kwargs)
        with intercepting(layer) as forward_pass:
            result = layer.own_forward(*args, **kwargs)
        if layer.wants_attention and not forward_pass.attention_calls:
            warn_of_unseen_attention(layer)
        with suspended():
            result = forward_pass.looked_up(
                result
            )  # a position table may return its weight as it is
            return noting_backward(result, context)

    @property
    def __globals__(self) -> Any:
        """The attribute that torch.jit.script asks a function for first of all."""
        raise self._refused()

    def _refused(self) -> BadInput:
        return BadInput(
            f"{called(self.layer.name)}: a quantized model cannot be traced, scripted or exported: "
            "do that to the plain model, after q.remove()"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.layer.own_forward, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.layer.own_forward,)


def _same(forward: Any) -> Any:
    return forward


def check_unpatched(name: str, module: nn.Module, casts: Casts, context: Context) -> None:
    """Raise `BadInput` if a module is to be quantized and already is, in another context."""
    standing = vars(module).get("forward")
    check_copy(standing, f"the quantization of {called(name)}", PatchedForward)
    layer = standing.layer if isinstance(standing, PatchedForward) else None
    if layer is None or layer.context is context or layer.is_removed or not any(casts.values()):
        return
    raise BadInput(
        f"{called(name)} is {type(module).__name__}: it is quantized already",
        key="model",
        hint="remove that quantization first",
    )


def restore_forwards(layers: Mapping[str, QuantizedLayer]) -> None:
    """Give modules their own forward back, unless somebody replaced the patched one since."""
    for layer in layers.values():
        layer.is_removed = True
        standing = vars(layer.module).get("forward")
        if isinstance(standing, PatchedForward) and standing.layer is layer:
            del layer.module.forward
            if getattr(layer.own_forward, "__func__", None) is not type(layer.module).forward:
                layer.module.forward = layer.own_forward


# ---------------------------------------------------------------------------- a forward's parts


def check_weights(layer: QuantizedLayer) -> None:
    """Round stored weights that somebody changed; raise `BadInput` for those that cannot be."""
    check_unflattened(layer.name, layer.module)
    parameters = layer.module._parameters
    for own, stored in layer.stored.items():
        weight = parameters.get(own)
        if weight is not stored.parameter:
            check_whole(layer.name, layer.module, own, "stored_weight")
        if weight is None or (layer.is_direct and own == "weight"):
            continue
        if stored.on_grid(weight)[0] is not weight:
            raise BadInput(
                f"{called(layer.name)}: {own} is stored on a grid, and a tensor was put in its "
                "place that is on none (torch.func.functional_call?): round it, or use q.off()"
            )


def multiply_or_convolve(layer: QuantizedLayer, input: Tensor) -> Tensor:
    """Compute torch's own forward of a Linear or a convolution, with quantized products."""
    module: Any = layer.module
    weight, products = module.weight, WeightProducts(layer, "weight")
    stored = layer.stored.get("weight")
    if stored is not None and "weight" in module._parameters:
        weight, products.stored_scale = stored.on_grid(weight)
    if layer.kind == "linear":
        weight = weight.t() if has_transposed_weight(module) else weight
        return multiply(products, input, weight, module.bias)
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pads = module._reversed_padding_repeated_twice
        input, padding = nn.functional.pad(input, pads, mode=mode), (0,) * (weight.dim() - 2)
    geometry = Geometry(module.stride, tuple(padding), module.dilation, module.groups)
    return convolve(products, input, weight, module.bias, geometry)


def warn_of_unseen_attention(layer: QuantizedLayer) -> None:
    """Warn of a module that has run, and whose attention, if it has any, was not seen."""
    if not layer.context.is_coverage_told and layer.context.flops is None:
        layer.context.warn(
            f"{called(layer.name)} ({type(layer.module).__name__}) computes no attention that "
            "can be seen (torch's scaled_dot_product_attention, or products around a softmax): "
            "the recipe's role attention does not reach it"
        )


def noting_backward(result: Any, context: Context) -> Any:
    """Return a layer's result, which notes the first backward pass that reaches it.

    The layer may have no quantized product that would.
    """

    def note(_: Tensor) -> None:
        context.note_backward()

    for t in result if isinstance(result, list | tuple) else (result,):
        if not context.has_learned and isinstance(t, Tensor) and t.grad_fn is not None:
            t.register_hook(note)
    return result


# --------------------------------------------------------------------- torch's inference kernels


class DisabledFastPath:
    """Keeps one of torch's encoders from its fast path, a fused kernel that calls no layer."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # torch takes the slow path if there are hooks, whatever they do.
        self.hook = module.register_forward_pre_hook(_pass)
        self.nested = getattr(module, "use_nested_tensor", None)
        if self.nested is not None:
            vars(module)["use_nested_tensor"] = False

    def remove(self) -> None:
        """Allow the fast path again."""
        self.hook.remove()
        if self.nested is not None:
            vars(self.module)["use_nested_tensor"] = self.nested


def _pass(module: nn.Module, args: Any) -> None:
    """Do nothing, before a module's forward."""


def disable_fast_paths(model: nn.Module) -> list[DisabledFastPath]:
    """Make every encoder of torch call the layers within it, until the handles are removed."""
    encoders = nn.TransformerEncoder | nn.TransformerEncoderLayer
    return [DisabledFastPath(m) for m in model.modules() if isinstance(m, encoders)]
