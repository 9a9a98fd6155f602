"""The forward of a quantized module: patched on the instance, and taken back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from altcore.errors import BadInput
from altcore.quantization.layers import called

if TYPE_CHECKING:
    from altcore.quantization.layer import QuantizedLayer


class PatchedForward:
    """What a quantized module has for its ``forward``: calls that of its `QuantizedLayer`.

    A copy of the module, be it deep or pickled, has the module's own forward: it is a plain one
    with the same weights.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        self.layer = layer
        # What a compiler cannot trace: kernels, counters, the scales' state.
        self.run = torch.compiler.disable(layer.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_traced = torch._C._get_tracing_state() is not None
        # The flag itself: the function that returns it logs a warning.
        is_traced |= torch.fx._symbolic_trace._is_fx_tracing_flag
        if torch.compiler.is_exporting() or is_traced:
            raise self._refused()
        return self.run(*args, **kwargs)

    @property
    def __globals__(self) -> Any:
        """What torch.jit.script asks a function for, first of all."""
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


def restore_forwards(layers: Mapping[str, QuantizedLayer]) -> None:
    """Give modules their own forward back, unless somebody replaced the patched one since."""
    for layer in layers.values():
        layer.is_removed = True
        standing = vars(layer.module).get("forward")
        if isinstance(standing, PatchedForward) and standing.layer is layer:
            del layer.module.forward
            if getattr(layer.own_forward, "__func__", None) is not type(layer.module).forward:
                layer.module.forward = layer.own_forward
