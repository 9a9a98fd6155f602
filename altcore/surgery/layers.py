"""The layers of a model that a recipe can speak of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from altcore.recipe import Layer

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Conv3d: "conv",
    nn.Embedding: "embedding",
}
ATTENTION = re.compile("attention|attn", re.IGNORECASE)
"""What a module's class has in its name, if attention's two products belong to it."""


def matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own parameters of two or more dimensions, by name."""
    return {n: p for n, p in module.named_parameters(recurse=False) if p.dim() >= 2}


def find_layers(model: nn.Module) -> dict[str, tuple[Layer, nn.Module]]:
    """Return every module that owns a parameter of two or more dimensions, by its name.

    And every Linear and convolution whose weight is computed (as weight normalisation does), and
    every attention module: one whose class is called so, with none within it that is.
    """
    head = output_head(model)
    found = {}
    for name, module in model.named_modules():
        if matrices(module) or is_linear(module) or is_conv(module):
            found[name] = Layer(name, _kind(module), module is head), module
        elif _is_attention(module):
            found[name] = Layer(name, "attention"), module
    return found


def _is_attention(module: nn.Module) -> bool:
    inner = [m for m in module.modules() if ATTENTION.search(type(m).__name__)]
    return inner == [module]


def _kind(module: nn.Module) -> str:
    if has_transposed_weight(module):
        return "linear"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "projection"  # of torch's MultiheadAttention, which reads its weight
    return next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), "other")


def has_transposed_weight(module: nn.Module) -> bool:
    """Whether this is a linear layer whose weight is (in, out): Conv1D of the transformers library.

    Told by what it is called, so that nothing has to be imported.
    """
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """Whether the layer multiplies by a matrix: `QuantizedLinear` stands in for it."""
    return _kind(module) == "linear"


def is_conv(module: nn.Module) -> bool:
    """Whether the layer is a convolution (not a transposed one)."""
    return _kind(module) == "conv"


class SlowPath:
    """Keeps torch's encoders from their fused inference kernel, which calls no layer in them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # It is left alone where there are hooks, whatever they do.
        self.hook = module.register_forward_pre_hook(_pass)
        self.nested = getattr(module, "use_nested_tensor", None)
        if self.nested is not None:
            vars(module)["use_nested_tensor"] = False

    def remove(self) -> None:
        """Let it have its way again."""
        self.hook.remove()
        if self.nested is not None:
            vars(self.module)["use_nested_tensor"] = self.nested


def _pass(module: nn.Module, args: Any) -> None:
    """Do nothing, before a module's forward."""


def slow_paths(model: nn.Module) -> list[SlowPath]:
    """Make every encoder of torch call the layers within it, until the handles are removed."""
    encoders = nn.TransformerEncoder | nn.TransformerEncoderLayer
    return [SlowPath(m) for m in model.modules() if isinstance(m, encoders)]


def output_head(model: nn.Module) -> nn.Module | None:
    """Return the output head: what the model calls so, else its last Linear of several.

    Models of the transformers library say it with ``get_output_embeddings``.
    """
    named = getattr(model, "get_output_embeddings", None)
    if callable(named):
        found = named()
        if isinstance(found, nn.Module):
            return found
    linears = [m for m in model.modules() if is_linear(m)]
    return linears[-1] if len(linears) > 1 else None


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
