"""Reductions: inner products, moments, how many elements are small, and a histogram."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.numerics import kernels

_PART = 1 << 16
"""Elements that stay in a CPU's cache together with their copies."""
_PART_ELSEWHERE = 1 << 22
"""Elements whose copies in float64 are small beside a model."""


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Return the sums of ``x * x``, ``y * y``, ``x * y`` and ``(x - y) ** 2``: float64 (4,).

    The tensors are of one shape; all is computed in float64.
    """
    if x.shape != y.shape:
        raise ValueError(f"two shapes: {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.detach().contiguous(), y.detach().contiguous()
    if kernels.reads(x) and kernels.reads(y):
        return kernels.inner_products(x, y)
    total = torch.zeros(4, dtype=torch.float64, device=x.device)
    for parts in zip(_parts(x), _parts(y), strict=True):
        a, b = (part.double() for part in parts)
        d = a - b
        total += torch.stack([a.dot(a), b.dot(b), a.dot(b), d.dot(d)])
    return total


def moments(x: Tensor) -> Tensor:
    """Return number, mean and sum of squared deviations of the elements: float64 (3,)."""
    x = x.detach()
    if x.is_contiguous() and x.numel() and kernels.reads(x):
        return kernels.moments(x)
    parts = [part.sum(dtype=torch.float64) for part in _parts(x)]
    mean = torch.stack(parts).sum() / x.numel()
    apart = (part.double() - mean for part in _parts(x))
    squares = torch.stack([part.dot(part) for part in apart]).sum()
    return torch.stack([torch.full_like(mean, x.numel()), mean, squares])


def count_small(x: Tensor, least: float, r: Tensor | None = None) -> Tensor:
    """Return how many elements other than 0 have ``|x * r| < least``, 0-dim int64.

    ``r``: None for 1, or one element of the dtype that is computed in: float64 for float64, else
    float32, to which ``x`` is cast first.
    """
    x = x.detach()
    dtype = torch.promote_types(x.dtype, torch.float32)
    readable = x.is_contiguous() and kernels.reads(x)
    if readable and (r is None or (r.numel() == 1 and kernels.fits(r, torch.float32))):
        return kernels.count_small(x, least, r)
    number = torch.zeros((), dtype=torch.int64, device=x.device)
    for part in _parts(x):
        y = part.to(dtype)
        size = y.abs() if r is None else (y * r.to(dtype)).abs_()
        number += torch.count_nonzero((size < least).logical_and_(part != 0))
    return number


def count_magnitudes(x: Tensor, r: Tensor | None = None) -> Tensor:
    """Return how many elements have which magnitude, as float32: int64 (512,).

    Entry 0 counts zeros. Entry ``2 * (e + 127)`` counts magnitudes from ``2 ** e`` to below
    ``1.5 * 2 ** e``, and the next one those up to ``2 ** (e + 1)``. Entry 1 counts what is smaller
    than all of these, the last two count what is not finite. ``r``: a factor of one element; None
    for 1.
    """
    x = x.detach()
    found = torch.zeros(512, dtype=torch.int64, device=x.device)
    one = torch.ones((), dtype=torch.int64, device=x.device)
    for part in _parts(x):
        y = part.float() if r is None else part.float() * r.float()
        bits = y.abs().view(torch.int32)
        entry = (bits >> 22).clamp_(min=1).masked_fill_(bits == 0, 0).to(torch.int64)
        found.scatter_add_(0, entry, one.expand_as(entry))
    return found


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.flatten().split(_PART if x.is_cpu else _PART_ELSEWHERE)
