"""Random bits without state: a hash of a key and an element's logical index.

The same bits come out eager, compiled, on a GPU and after a resume, whatever the memory layout
and the number of threads. The key is mixed by splitmix64's finalizer (Steele et al. 2014), the
index by a 32-bit multiply-xorshift hash, whose input and middle take half of the mixed key each:
a golden-ratio multiplication and MurmurHash3's finalizer, the last xorshift left out, since its
top bits are the random ones and rounding uses those only. Two multiplications do not suffice:
they leave a correlation of neighbours.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.numerics.tracing import indices

_LOW = 0xFFFFFFFF


def check_key(key: object) -> None:
    """Raise `BadInput` unless ``key`` is a whole number, or an int64 tensor of no dimension."""
    if type(key) is int:
        return
    if isinstance(key, Tensor):
        fine = key.ndim == 0 and key.dtype == torch.int64 and key.layout == torch.strided
    else:
        fine = isinstance(key, numbers.Integral) and not isinstance(key, bool)
    if not fine:
        raise BadInput(f"key: an int or an int64 tensor of no dimension is needed, not {key!r:.60}")


def random_bits(shape: torch.Size, key: int | Tensor, device: torch.device) -> Tensor:
    """Return 32 random bits for each element, as int32, of ``shape``.

    ``key`` is an int or a 0-dim int64 tensor on ``device``. An element's bits depend on the key
    and its index in row-major order; the top ones are the good ones.
    """
    mixed = _splitmix(key_tensor(key, device))
    count = shape.numel()
    if count < 2**31:
        index = indices(count, torch.int32, device)
        second = _low_half(mixed >> 32)
    else:  # the index's high half goes into that of the key
        wide = indices(count, torch.int64, device)
        index, second = _low_half(wide), _low_half((mixed >> 32) ^ (wide >> 32))
    x = (index.view(shape) + _low_half(mixed)) * _wrap(0x9E3779B1, 32)
    x = x ^ _shift(x, 16) ^ (second if second.ndim == 0 else second.view(shape))
    x = x * _wrap(0x85EBCA6B, 32)
    return (x ^ _shift(x, 13)) * _wrap(0xC2B2AE35, 32)


def key_tensor(key: int | Tensor, device: torch.device) -> Tensor:
    """Return a key as a 0-dim int64 tensor on ``device``."""
    if not isinstance(key, Tensor):
        key = torch.full((), _wrap(int(key), 64), dtype=torch.int64, device=device)
    return key.to(device=device, dtype=torch.int64)


def mixed_key(key: int | Tensor) -> int:
    """The key as `random_bits` uses it: mixed, as 64 bits. Reads a tensor's value."""
    mask = 2**64 - 1
    x = (int(key) + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _splitmix(x: Tensor) -> Tensor:
    x = x + _wrap(0x9E3779B97F4A7C15, 64)
    x = (x ^ _shift(x, 30)) * _wrap(0xBF58476D1CE4E5B9, 64)
    x = (x ^ _shift(x, 27)) * _wrap(0x94D049BB133111EB, 64)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right."""
    width = 32 if x.dtype == torch.int32 else 64
    return (x >> bits) & ((1 << (width - bits)) - 1)


def _low_half(x: Tensor) -> Tensor:
    """The low 32 bits of an int64, as int32."""
    return (((x & _LOW) ^ (1 << 31)) - (1 << 31)).to(torch.int32)


def _wrap(value: int, bits: int) -> int:
    """Two's complement."""
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half
