"""What torch's tracers must not see: cached constants, and whether somebody traces a call.

A cached tensor must not depend on the moment in which it was first needed. Create cached tensors
here, with explicit dtype and device, outside inference mode and all torch modes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

from altcore.formats import FloatFormat, TableFormat

P = ParamSpec("P")
T = TypeVar("T")

ORDINARY = (Tensor, torch.nn.Parameter)
"""Classes whose tensors hold their values in memory, as they are."""

_MOST_KEPT = 256  # results found by identity


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """Let torch.compile call a pure function of constants, and take its result for one.

    `torch.compiler.assume_constant_result` marks a function in the same way, but imports the whole
    compiler, which takes a second.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    wrapper._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return wrapper


def constant(function: Callable[P, T]) -> Callable[P, T]:
    """Cache an `untraced` function."""
    return untraced(cache(function))


@constant
def tell_compiler() -> None:
    """Tell torch that formats never change: before 2.13 it compiles nothing that has others.

    Only where something is compiled: with it torch.func cannot take `jvp` of `jvp` of a rounding.
    """
    if torch.__version__ < "2.13" and hasattr(_pytree, "register_constant"):
        for kind in (FloatFormat, TableFormat):
            _pytree.register_constant(kind)


def constant_tensors(function: Callable[P, T]) -> Callable[P, T]:
    """Cache a function of constants that makes tensors, unless those would be traced ones."""

    @cache
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        with outside_modes():
            return function(*args, **kwargs)

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return function(*args, **kwargs)  # not real ones, perhaps
        return kept(*args, **kwargs)  # type: ignore[arg-type]

    return wrapper


def by_identity(function: Callable[P, T]) -> Callable[P, T]:
    """Cache a function by its first argument's identity, a format's, and by the others' values.

    Hashing a format would take a tenth of the time of rounding a small tensor. The format is kept
    with the result, so that no other one gets its identity.
    """
    kept: dict[tuple[int, Any], tuple[Any, T]] = {}

    @wraps(function)
    def wrapper(fmt: Any, *rest: Any) -> T:
        found = kept.get((id(fmt), rest))
        if found is None:
            found = fmt, function(fmt, *rest)  # type: ignore[call-arg]
            if len(kept) >= _MOST_KEPT:
                kept.clear()
            kept[id(fmt), rest] = found
        return found[1]

    return wrapper  # type: ignore[return-value]


@contextlib.contextmanager
def outside_modes() -> Iterator[None]:
    """Make ordinary tensors, even in inference mode and among a tracer's fake ones."""
    # Asked first, since the other imports half a compiler.
    modes = _disable_current_modes() if is_in_torch_dispatch_mode() else contextlib.nullcontext()
    with modes, torch.inference_mode(False):
        yield


def indices(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the integers below ``count``, as numbers that torch.compile computes with.

    It takes those of `torch.arange` for the index of a loop. Compiled for a CPU by torch 2.13, a
    product with one may overflow, which C++ leaves undefined, and the loop for a quotient ends
    early. Its arithmetic of indices has no bitwise operations.
    """
    found = torch.arange(count, dtype=dtype, device=device)
    return found & torch.iinfo(dtype).max if torch.compiler.is_compiling() else found


def is_untraced(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary dense tensor, and nobody traces what is done with it.

    Under a transform of torch.func no tensor is: it may meet one that stands for many.
    """
    if torch.compiler.is_compiling() or type(x) not in ORDINARY:
        return False
    if x.layout is not torch.strided or x.is_nested:
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return not (transformed or torch._C._is_tracing() or is_in_torch_dispatch_mode())


def is_plain(x: Tensor) -> bool:
    """`is_untraced`, and on the CPU, where looking at values costs no transfer."""
    # Python calls cost too much here for one function to call the other.
    if torch.compiler.is_compiling() or type(x) not in ORDINARY:
        return False
    if not x.is_cpu or x.layout is not torch.strided or x.is_nested:
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return not (transformed or torch._C._is_tracing() or is_in_torch_dispatch_mode())
