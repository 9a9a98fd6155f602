"""The layers of a model that a recipe can speak of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from attrs import frozen
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from altcore.errors import BadInput, nearest
from altcore.recipes import Layer, some

AUTO = "auto"
"""Let `output_head` look for it."""
ATTENTION = re.compile("attention|attn", re.IGNORECASE)
"""Found in the class names of modules to which attention's two products belong."""
ATTENTION_CALLS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})


def called(name: str) -> str:
    """Return the words for a layer in messages; the model itself may be one."""
    return f"layer {name or '(model)'}"


def matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own parameters of two or more dimensions, by name."""
    return {
        n: p
        for n, p in module._parameters.items()
        if p is not None and not is_lazy(p) and p.dim() >= 2
    }


@frozen(eq=False)
class ParameterSlot:
    """The place of a parameter in a module, where another one may be put."""

    module: nn.Module
    name: str
    """The parameter's, in its module."""

    @classmethod
    def of(cls, model: nn.Module, full: str) -> ParameterSlot:
        """Find the slot of the parameter with a full name."""
        name, _, own = full.rpartition(".")
        return cls(model.get_submodule(name), own)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter. Raises `BadInput` if there is none any more."""
        found = self.module._parameters.get(self.name)
        if found is None:
            raise BadInput(
                f"{type(self.module).__name__} has no parameter {self.name} any more: "
                "quantize a model after it is parametrized or changed, not before"
            )
        return found


def find_layers(model: nn.Module, head: str | None = AUTO) -> dict[str, tuple[Layer, nn.Module]]:
    """Return every module that owns a parameter of two or more dimensions, by its name.

    And every Linear and convolution whose weight is computed (as weight normalisation does), and
    every attention module: one whose class is called so, with none within it that is, or whose
    code calls torch's attention. ``head`` is that of `output_head`.
    """
    last = output_head(model, head)
    of_head = set() if last is None else set(last.modules())
    found = {}
    for name, module in model.named_modules():
        has_attention = _has_attention(module)
        if _has_weight(module):
            layer = Layer(name, layer_kind(module), module in of_head, has_attention)
        elif has_attention:
            layer = Layer(name, "attention", has_attention=True)
        else:
            continue
        found[name] = layer, module
    return found


def layer_kind(module: nn.Module) -> str:
    """Return the `Layer.kind` of a module that owns a parameter of two or more dimensions."""
    if isinstance(module, nn.Linear) or has_transposed_weight(module):
        return "linear"
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "parametrization" if isinstance(module, ParametrizationList) else "other"


def _has_weight(module: nn.Module) -> bool:
    """Whether a module is a layer that a parameter, or a computed weight, makes one."""
    return bool(matrices(module)) or layer_kind(module) in ("linear", "conv")


def weights_of(module: nn.Module) -> list[str]:
    """Return the names of the weights that a layer multiplies by; ``weight`` may be computed."""
    own = list(matrices(module))
    is_product = layer_kind(module) in ("linear", "conv")
    return ["weight", *own] if is_product and "weight" not in own else own


def has_transposed_weight(module: nn.Module) -> bool:
    """Whether this is a linear layer whose weight is (in, out): Conv1D of the transformers library.

    Recognized by its name, so that nothing has to be imported.
    """
    return any(
        cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        for cls in type(module).__mro__
    )


def runs_torchs_forward(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether ``forward``, the module's, is that of torch's Linear or convolution and no other.

    Then the layer is its one product. A subclass with a forward of its own is not, nor a module
    whose forward was replaced on the instance or on torch's class.
    """
    own = getattr(forward, "__func__", None)
    if own is not type(module).forward or "_conv_forward" in vars(module):
        return False
    if isinstance(module, nn.Linear):
        return _is_torchs(own, "torch.nn.modules.linear", "Linear.forward")
    for dims, cls in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        if isinstance(module, cls):
            inner = type(module)._conv_forward
            where = "torch.nn.modules.conv"
            return _is_torchs(own, where, f"Conv{dims}d.forward") and _is_torchs(
                inner, where, f"Conv{dims}d._conv_forward"
            )
    return _is_torchs(own, "transformers.pytorch_utils", "Conv1D.forward")


def _is_torchs(function: Any, module: str, name: str) -> bool:
    return (function.__module__, function.__qualname__) == (module, name)


def _has_attention(module: nn.Module) -> bool:
    inner = [m for m in module.modules() if ATTENTION.search(type(m).__name__)]
    return inner == [module] or _calls_attention(type(module))


def _calls_attention(cls: type[nn.Module]) -> bool:
    """Whether the code of a class names torch's attention."""
    return any(
        isinstance(f, FunctionType) and ATTENTION_CALLS.intersection(_names(f.__code__))
        for base in cls.__mro__
        if base is not nn.Module
        for f in vars(base).values()
    )


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def output_head(model: nn.Module, head: str | None = AUTO) -> nn.Module | None:
    """Return the output head, which named recipes leave alone; None if there is none.

    ``head`` names it, or is None for a model that has none. Otherwise it is what the model's
    ``get_output_embeddings`` returns (models of the transformers library have it; their base
    models have no head), else the last linear layer, unless no other linear or convolutional one
    is there. A head that adapters wrap is the wrapper, with all that is in it. Raises `BadInput`
    for a name that the model does not have, and for that of a module without a layer.
    """
    if head is None:
        return None
    modules = dict(model.named_modules())
    products = {n: k for n, m in modules.items() if (k := layer_kind(m)) in ("linear", "conv")}
    linears = [n for n, kind in products.items() if kind == "linear"]
    if head != AUTO:
        named = modules.get(head)
        if named is None or not any(map(_has_weight, named.modules())):
            problem = f"the model has no module {head!r}"
            if named is not None:
                problem = f"module {head!r}, a {type(named).__name__}, neither is nor has a layer"
            raise BadInput(
                problem,
                key="head",
                meant=nearest(head, linears),
                hint=f"linear layers are {some(linears)}",
            )
        return named
    getter = getattr(model, "get_output_embeddings", None)
    if callable(getter):
        if isinstance(found := getter(), nn.Module):
            return found
        if getattr(model, "base_model", None) is model:
            return None
    last = _wrapper(modules, linears[-1]) if linears else model
    own = set(last.modules())
    return last if any(modules[n] not in own for n in products) else None


def _wrapper(modules: dict[str, nn.Module], name: str) -> nn.Module:
    """The outermost module around a layer that wraps it, as adapters do; else the layer."""
    parts = name.split(".")
    parents = (".".join(parts[:i]) for i in range(len(parts)))
    wrapping = (
        modules[p] for p in parents if isinstance(modules[p]._modules.get("base_layer"), nn.Module)
    )
    return next(wrapping, modules[name])


def unique_matrices(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield (layer name, parameter's full name, parameter), a tied parameter once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for own, parameter in matrices(module).items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, f"{name}.{own}" if name else own, parameter


def tied_matrices(model: nn.Module) -> list[tuple[list[str], str]]:
    """Return, for each parameter that several layers own, their names and its full name."""
    owners: dict[int, list[str]] = {}
    full_names: dict[int, str] = {}
    for name, module in model.named_modules():
        for own, parameter in matrices(module).items():
            owners.setdefault(id(parameter), []).append(name)
            full_names.setdefault(id(parameter), f"{name}.{own}" if name else own)
    return [(names, full_names[key]) for key, names in owners.items() if len(names) > 1]
