"""Which tensors the C code can read and write, and how many threads they are worth."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.numerics.kernels.build import library, switched_on
from altcore.numerics.tracing import ORDINARY, is_plain

DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes that the kernels read and write."""

_ALONE = 32768  # elements that one thread rounds before a second is worth waking
_MOST_THREADS = 256  # MOST_THREADS of kernels.c


def reads(x: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> bool:
    """Whether the kernels are there, and can read the memory of ``x``."""
    if not is_plain(x) or x.dtype not in dtypes or not has_numbers(x):
        return False
    return switched_on() and library() is not None


def has_numbers(x: Tensor) -> bool:
    """Whether the numbers of a tensor on the CPU are in memory as they are, and C may read them.

    A view may mean the negative of its memory, zeros and a storage that was given back have no
    memory, and a buffer may begin anywhere.
    """
    address = x.data_ptr()
    is_there = address != 0 or x.numel() == 0
    return is_there and address % x.element_size() == 0 and not x.is_neg()


def fits(given: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels can write to ``given``'s memory, or read it, as one array.

    If nobody traces, as `reads` has found out.
    """
    is_array = given.dtype is dtype and given.is_cpu and given.is_contiguous()
    return is_array and type(given) in ORDINARY and has_numbers(given)


def threads_for(count: int) -> int:
    """Return how many threads ``count`` elements are worth."""
    return min(torch.get_num_threads(), _MOST_THREADS) if count > _ALONE else 1
