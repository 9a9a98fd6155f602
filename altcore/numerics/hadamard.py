"""The random Hadamard transform along one axis: spreads outliers, and cancels in a product.

Pieces of ``length`` elements are multiplied by ``diag(signs) H / sqrt(length)``, H being
Sylvester's Hadamard matrix and the signs random, but the same for every tensor of a run (as in
arXiv 2509.25149). The matrix is orthogonal, so two operands that are both transformed along the
axis over which their product sums have the product that they had.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.numerics.hashing import random_bits
from altcore.numerics.tracing import constant_tensors


def transform(x: Tensor, length: int, axis: int, seed: int) -> Tensor:
    """Return ``x`` transformed along ``axis`` in pieces of ``length``, in float32 or float64.

    An axis that ``length`` does not divide is padded with zeros, and comes out longer. Raises
    `BadInput` for a ``length`` that is not a power of two.
    """
    if length < 1 or length & (length - 1):
        raise BadInput(f"a Hadamard matrix of {length} rows: a power of two is needed")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.to(dtype).movedim(axis, -1)
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % length))
    matrix = _matrix(length, seed, dtype, x.device)
    with torch.autocast(x.device.type, enabled=False):
        y = x.unflatten(-1, (-1, length)) @ matrix
    return y.flatten(-2).movedim(-1, axis)


@constant_tensors
def _matrix(length: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, length), orthogonal."""
    matrix = torch.ones(1, 1, dtype=dtype, device="cpu")
    while len(matrix) < length:
        top = torch.cat([matrix, matrix], 1)
        matrix = torch.cat([top, torch.cat([matrix, -matrix], 1)])
    bits = random_bits(torch.Size([length]), seed, torch.device("cpu"))
    signs = 1.0 - 2.0 * ((bits >> 31) & 1).to(dtype)
    return (signs[:, None] * matrix / math.sqrt(length)).to(device)
