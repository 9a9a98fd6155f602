"""torch's functions by their effect on a tensor's values, as a mode that sees them needs it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch

F = torch.nn.functional
T = torch.Tensor

COMPOSITE = frozenset({F.multi_head_attention_forward})
"""Python functions of torch that show a mode only themselves, not the functions they call."""

_VIEWS = (
    *("view", "reshape", "view_as", "reshape_as", "t", "transpose", "swapaxes", "swapdims"),
    *("permute", "movedim", "moveaxis", "unsqueeze", "squeeze", "expand", "expand_as", "flatten"),
    *("unflatten", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "contiguous"),
    *("clone", "detach", "index_select", "gather", "take_along_dim", "diagonal", "adjoint"),
    *("ravel", "broadcast_to", "flip", "fliplr", "flipud", "roll", "rot90", "repeat"),
    *("tile", "repeat_interleave", "hsplit", "vsplit", "dsplit", "split_with_sizes", "unfold"),
    *("take", "masked_select", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"),
    *("narrow_copy",),
)
_CASTS = ("to", "float", "double", "half", "bfloat16", "type_as", "type", "cpu", "cuda", "dropout")


def _functions(names: Iterable[str]) -> frozenset[Callable[..., Any]]:
    owners = (T, torch)
    return frozenset(getattr(o, n) for n in names for o in owners if callable(getattr(o, n, None)))


VIEWS = _functions(_VIEWS) | {
    T.__getitem__,
    *(getattr(T, name).__get__ for name in ("T", "mT", "H", "mH", "data")),
}
"""Functions that return the same values in another shape, or some of them."""
JOINS = _functions(
    (
        *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "row_stack"),
        "column_stack",
    )
)
"""Functions that return the values of all their tensors, in another shape."""
METADATA = _functions(
    (
        *("data_ptr", "storage", "untyped_storage", "storage_offset", "size", "dim"),
        *("ndimension", "numel", "nelement", "element_size", "is_contiguous", "get_device"),
        *("is_floating_point", "is_complex", "register_hook", "retain_grad", "stride"),
        *("register_post_accumulate_grad_hook", "__len__", "__repr__", "__hash__", "has_names"),
    )
)
"""Functions that look at a tensor, but not at its values."""
CASTS = _functions(_CASTS) | {F.dropout}
"""Functions that return the same values in another type or place, or drop some."""

SOFTMAX = frozenset({F.softmax, torch.softmax, T.softmax, torch.special.softmax})
"""Functions that turn scores into probabilities."""

MASKING = frozenset(
    {
        *(T.masked_fill, torch.masked_fill, torch.where, T.where),
        *(T.mul, torch.mul, T.div, torch.div, torch.nan_to_num),
        *(F.pad, T.as_strided, torch.as_strided),
    }
)
"""Functions whose results are still probabilities, if an argument is."""


def is_metadata(func: Callable[..., Any]) -> bool:
    """Whether a function looks at a tensor and not at its values."""
    return func in METADATA or (_name(func) == "__get__" and func not in VIEWS)


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "")


def is_in_place(func: Callable[..., Any]) -> bool:
    """Whether a function writes to its first argument."""
    name = _name(func)
    return (name.endswith("_") and not name.endswith("__")) or name in ("__set__", "__setitem__")


@functools.cache
def unguarded(func: FunctionType) -> Callable[..., Any]:
    """Return a copy of a Python function of torch that does not hand itself to overrides.

    Called within a ``TorchFunctionMode``, the copy lets the mode see the functions that it calls.
    ``torch.nn.functional.multi_head_attention_forward`` itself hands the mode only itself.
    """
    guards = [name for name in func.__globals__ if name.startswith("has_torch_function")]
    scope = {**func.__globals__, **dict.fromkeys(guards, _has_no_override)}
    copy = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _has_no_override(*args: Any) -> bool:
    return False
