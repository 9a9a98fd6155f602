"""Products inside a module's own forward, quantized where they happen.

While such a forward runs, a mode sees every call of a torch function in this thread. It knows which
tensors are weights of the layer: the parameters themselves, views of them, and tensors computed
from nothing else. A product of a weight and an activation is computed with quantized operands; a
weight that is looked up or added is rounded, if the recipe says so; all other calls run as they
are. Neither the module nor its parameters change.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from altcore.quantization import attention, linear
from altcore.quantization.checks import check_operand
from altcore.quantization.convolution import CONVOLUTIONS, convolve
from altcore.quantization.discovery import layer_kind
from altcore.quantization.layer import QuantizedLayer, WeightProducts
from altcore.quantization.recurrent import RECURRENT
from altcore.quantization.torch_functions import (
    CASTS,
    COMPOSITE,
    JOINS,
    MASKING,
    SOFTMAX,
    VIEWS,
    is_in_place,
    is_metadata,
    unguarded,
)
from altcore.quantization.torch_products import CONTRACTIONS

F = torch.nn.functional

PRODUCTS: Mapping[Callable[..., Any], Callable[..., Any]] = {**CONTRACTIONS, **RECURRENT}


@frozen(eq=False)
class Lineage:
    """The parameter that a tensor is, or is made from."""

    layer: QuantizedLayer
    parameter: str
    """Its name in the layer's module."""
    relation: str = "itself"
    """``itself``, ``part`` (its values in another shape, or some of them) or ``computed``."""


@define(eq=False)
class ForwardPass:
    """One run of one layer's forward, and the lineage of its tensors."""

    layer: QuantizedLayer
    weights: dict[int, tuple[Tensor, Lineage]] = field(init=False)
    """By identity, kept alive so that identities stay theirs."""
    made: dict[int, tuple[Tensor, Lineage]] = field(init=False, factory=dict)
    probabilities: dict[int, Tensor] = field(init=False, factory=dict)
    buffers: dict[int, Tensor] = field(init=False)
    """As they were at the start, kept alive for the same reason."""
    products: dict[tuple[int, str, bool], WeightProducts | None] = field(init=False, factory=dict)
    """The products by a parameter: by its layer's identity, its name, and whether it is stored."""
    attention_calls: int = field(init=False, default=0)
    has_gradients: bool = field(init=False, factory=torch.is_grad_enabled)

    def __attrs_post_init__(self) -> None:
        self.weights = {}
        for layer in self.layer.scope:
            for own, value in _weights(layer.module):
                how = "itself" if own in layer.module._parameters else "computed"
                self.weights[id(value)] = value, Lineage(layer, own, how)
        for value in _computing(self.layer.module):
            self.weights.setdefault(id(value), (value, Lineage(self.layer, "weight", "computed")))
        self.buffers = {id(b): b for b in self.layer.module.buffers()}

    # Lineage ----------------------------------------------------------------------------------

    def lineage(self, t: Tensor) -> Lineage | None:
        """Return the parameter that a weight is made from; None for an activation."""
        found = self.weights.get(id(t)) or self.made.get(id(t))
        if found is not None and found[0] is t:
            return found[1]
        if isinstance(t, nn.Parameter):  # one that was put there while the forward ran
            for own, value in _weights(self.layer.module):
                if value is t:
                    return Lineage(self.layer, own)
        base = t._base
        found = None if base is None else self.weights.get(id(base))
        if found is None or found[0] is not base:
            return None
        return Lineage(found[1].layer, found[1].parameter, "part")

    def is_weight(self, t: Tensor) -> bool:
        """Whether a tensor is a weight of the layer, or is made of such alone."""
        return self.lineage(t) is not None

    def mark(self, result: Any, lineage: Lineage, how: str) -> Any:
        """Remember that a result comes from a weight; returns it."""
        how = "computed" if "computed" in (how, lineage.relation) else how
        for t in _tensors((result,)):
            self.made[id(t)] = t, Lineage(lineage.layer, lineage.parameter, how)
        return result

    def forget(self, written: Tensor) -> None:
        """Take in that the forward wrote to a weight, or to a copy of one.

        What was quantized of it is old, and a copy has other values than the weight.
        """
        self.end()
        self.products.clear()
        memory = _memory(written)
        if memory not in [_memory(t) for t, _ in self.weights.values()]:
            for t, lineage in list(self.made.values()):
                if _memory(t) == memory:
                    self.mark(t, lineage, "computed")

    # Calls ------------------------------------------------------------------------------------

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a torch function that the layer's forward calls."""
        tensors = list(_tensors((*args, *kwargs.values())))
        lineages = [o for t in tensors if (o := self.lineage(t)) is not None]
        if func is F.scaled_dot_product_attention and self.layer.wants_attention:
            self.attention_calls += 1  # whatever it is of: a learned query is a weight
            return attention.attend(self.layer, attention.AttentionCall(*args, **kwargs))
        if not lineages:
            return self.call_on_activations(func, args, kwargs, tensors)
        if is_metadata(func):
            return func(*args, **kwargs)
        is_constant = all(id(t) in self.buffers or self.is_weight(t) for t in tensors)
        if not is_constant:
            result = self.multiply(func, args, kwargs)
            if result is not NotImplemented:
                return result
        lineage = next((o for o in lineages if o.parameter == "weight"), lineages[0])
        # Of one parameter: another would have another scale.
        is_join = func in JOINS and is_constant and len(set(map(_source, lineages))) == 1
        is_part = is_join and all(o.relation != "computed" for o in lineages)
        if func in VIEWS or is_part:
            return self.mark(func(*args, **kwargs), lineage, "part")
        if func in CASTS:
            return self.mark(func(*args, **kwargs), lineage, "computed")
        if is_in_place(func) and (written := self.lineage(tensors[0])) is not None:
            result = func(*args, **kwargs)
            self.forget(tensors[0])
            written.layer.put_on_grid(written.parameter, is_told=False)
            return (
                result if written.relation == "itself" else self.mark(result, written, "computed")
            )
        args, kwargs = self.look_up(func, args, kwargs)
        result = func(*args, **kwargs)
        return self.mark(result, lineage, "computed") if is_constant else result

    def multiply(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute a product with quantized operands; NotImplemented for any other call."""
        if func in CONVOLUTIONS:
            call = CONVOLUTIONS[func](*args, **kwargs)
            product = self.product_of(call[1])
            if product is None or self.is_weight(call[0]):
                return NotImplemented
            return convolve(product, *call)
        tensors = list(_tensors((*args, *kwargs.values())))
        if func not in PRODUCTS or not any(map(self.product_of, tensors)):
            return NotImplemented
        if self.has_gradients and not torch.is_grad_enabled():
            self.layer.tell_recomputation()
        for t in tensors:
            if t.is_nested or t.layout != torch.strided:
                check_operand(t, self.layer.name, "input")
        return PRODUCTS[func](self.product, self.is_weight, *args, **kwargs)

    def product(self, x: Tensor, w: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
        """Multiply as `altcore.quantization.contraction` describes it."""
        product = self.product_of(weight)
        if product is None:
            y = x @ w.mT
            return y if bias is None else y + bias
        return linear.multiply(product, x, w, bias)

    def product_of(self, weight: Tensor) -> WeightProducts | None:
        """Return the products by a weight, if it is one and the recipe casts an operand of them."""
        lineage = self.lineage(weight)
        if lineage is None or weight.dim() < 2:
            return None
        layer, own = lineage.layer, lineage.parameter
        if layer.kind == "parametrization":  # it computes the weight of the layer that runs
            if self.layer.kind not in ("linear", "conv"):
                return None
            layer, own = self.layer, "weight"
        key = id(layer), own, lineage.relation != "computed"
        if key not in self.products:
            # The forward may have put another one there.
            scale = layer.put_on_grid(own) if key[2] else None
            product = self.products[key] = layer.product(own, scale)
            if product is not None:
                product.weights = {}
        return self.products[key]

    def end(self) -> None:
        """Free the quantized weights: a backward pass keeps those that it needs."""
        for product in self.products.values():
            if product is not None:
                product.weights = None

    def look_up(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the arguments with weights rounded that are used outside a product."""
        if func in (F.embedding, F.embedding_bag):
            args, kwargs = _renormalized(func, args, kwargs)
            if (written := self.lineage(args[1])) is not None:
                written.layer.put_on_grid(written.parameter, is_told=False)
        args = tuple(map(self.looked_up, args))
        return args, {k: self.looked_up(v) for k, v in kwargs.items()}

    def looked_up(self, value: Any) -> Any:
        """Return a value with the weights in it as they are used outside a product."""
        if type(value) in (list, tuple):
            return type(value)(map(self.looked_up, value))
        lineage = self.lineage(value) if isinstance(value, Tensor) else None
        if lineage is None or lineage.relation == "computed":
            return value
        return lineage.layer.lookup(lineage.parameter, value)

    # Attention --------------------------------------------------------------------------------

    def call_on_activations(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """Run a function of activations alone: attention's products may be among them."""
        if not self.layer.wants_attention:
            return func(*args, **kwargs)
        if func in CONTRACTIONS:
            result = self.attend_by_hand(func, args, kwargs, tensors)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        follows = func in VIEWS or func in CASTS or func in MASKING
        if func in SOFTMAX or (follows and any(id(t) in self.probabilities for t in tensors)):
            self.probabilities |= {id(t): t for t in _tensors((result,))}
        return result

    def attend_by_hand(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        """Multiply probability by value, or query by key; NotImplemented for any other product.

        A product of a buffer, as of rotary frequencies by positions, is neither.
        """
        is_small = sum(t.dim() >= 3 for t in tensors) < 2
        if is_small or any(id(t) in self.buffers or id(t._base) in self.buffers for t in tensors):
            return NotImplemented
        probability = next((t for t in tensors if id(t) in self.probabilities), None)
        key = tensors[-1]

        def is_right(t: Tensor) -> bool:
            return t is key if probability is None else t is not probability

        def multiply(x: Tensor, w: Tensor, bias: Tensor | None, _: Tensor) -> Tensor:
            self.attention_calls += probability is not None
            y = attention.multiply(self.layer, x, w, probability is not None)
            return y if bias is None else y + bias

        return CONTRACTIONS[func](multiply, is_right, *args, **kwargs)


class Interception(TorchFunctionMode):
    """Sees the torch functions that a thread calls while quantized layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_pass: ForwardPass | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.forward_pass is None:
            return func(*args, **kwargs)
        if func in COMPOSITE:
            with self:
                return unguarded(func)(*args, **kwargs)
        return self.forward_pass.call(func, args, kwargs)


_threads = threading.local()


@contextmanager
def intercepting(layer: QuantizedLayer) -> Iterator[ForwardPass]:
    """Quantize the products by the layer's weights that are computed within, in this thread."""
    forward_pass, mode = ForwardPass(layer), getattr(_threads, "mode", None)
    if mode is not None:
        with _current(mode, forward_pass):
            yield forward_pass
        return
    mode = _threads.mode = Interception()
    try:
        with mode, _current(mode, forward_pass):
            yield forward_pass
    finally:
        _threads.mode = None


@contextmanager
def suspended() -> Iterator[None]:
    """Let functions pass that a quantized layer calls itself."""
    mode = getattr(_threads, "mode", None)
    if mode is None:
        yield
    else:
        with _current(mode, None):
            yield


@contextmanager
def _current(mode: Interception, forward_pass: ForwardPass | None) -> Iterator[None]:
    before, mode.forward_pass = mode.forward_pass, forward_pass
    try:
        yield
    finally:
        mode.forward_pass = before
        if forward_pass is not None:
            forward_pass.end()
            if before is not None and forward_pass.layer.kind == "parametrization":
                before.made |= forward_pass.made  # a weight of the layer that goes on


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's weights as they are now: parameters, and a ``weight`` that a hook computed."""
    for own, value in module._parameters.items():
        if value is not None and value.dim() >= 2:
            yield own, value
    computed = vars(module).get("weight")
    if isinstance(computed, Tensor):
        yield "weight", computed


def _computing(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters from which a Linear's or a convolution's ``weight`` is computed."""
    parametrizations = module._modules.get("parametrizations")
    if parametrizations is not None and layer_kind(module) in ("linear", "conv"):
        yield from parametrizations.parameters()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _source(lineage: Lineage) -> tuple[int, str]:
    return id(lineage.layer), lineage.parameter


def _memory(t: Tensor) -> int:
    """Return the same number for tensors that share their memory."""
    return t.untyped_storage().data_ptr() if t.layout == torch.strided else id(t)


def _renormalized(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Shrink the rows that an embedding looks up, in the weight itself, as torch does.

    Returns the arguments of a call that does not.
    """
    call = inspect.signature(func).bind(*args, **kwargs)
    input, weight, *_ = call.args
    max_norm = call.arguments.pop("max_norm", None)
    if max_norm is not None:
        norm_type = call.arguments.get("norm_type", 2.0)
        with torch.no_grad():
            torch.embedding_renorm_(weight.detach(), input.contiguous(), max_norm, norm_type)
    return call.args, call.kwargs
