"""Constants that are worth keeping: numbers, and tensors of them.

A tensor that is kept must not be of the moment in which it was first needed. Whoever makes one
names its dtype and device, since both have defaults that a user may change, and makes it here,
outside inference mode and whatever else stands between torch's functions and their results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

P = ParamSpec("P")
T = TypeVar("T")


def constant(function: Callable[P, T]) -> Callable[P, T]:
    """Cache a pure function of constants, and let torch.compile take its result for one.

    What `torch.compiler.assume_constant_result` marks a function with, without its import of the
    whole compiler, which takes a second.
    """
    cached = cache(function)

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    wrapper._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return wrapper


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


@contextlib.contextmanager
def outside_modes() -> Iterator[None]:
    """Make ordinary tensors, even in inference mode and among a tracer's fake ones."""
    # Asked first, since the other imports half a compiler.
    modes = _disable_current_modes() if is_in_torch_dispatch_mode() else contextlib.nullcontext()
    with modes, torch.inference_mode(False):
        yield
