"""L2 norms of tensors: those of 16-bit ones in float32, which neither overflows nor is coarse."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

HALF = frozenset({torch.float16, torch.bfloat16})


def norm_of(x: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Return the L2 norm of a tensor, 0-dim, or those along ``dim``, with dimensions kept."""
    return torch.linalg.vector_norm(x, dim=dim, keepdim=dim is not None, dtype=_dtype([x]))


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norms of tensors, (n,)."""
    return torch.stack(torch._foreach_norm(list(tensors), 2, _dtype(tensors)))


def _dtype(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """Return the type in which norms are taken; None means the tensors' own."""
    types = {t.dtype for t in tensors}
    if types & HALF and not any(t.is_complex for t in types):
        return functools.reduce(torch.promote_types, types, torch.float32)
    return None
