"""Random bits without state: a hash of a key and an element's logical index.

The same bits come out eager, compiled, on a GPU and after a resume, whatever the memory layout
and the number of threads. The key is mixed by splitmix64's finalizer (Steele et al. 2014), the
index by a 32-bit multiply-xorshift hash, whose input and middle take half of the mixed key each:
a golden-ratio multiplication and MurmurHash3's finalizer, the last xorshift left out, since its
top bits are the random ones and rounding uses those only. Two multiplications do not suffice:
they leave a correlation of neighbours.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_FACTORS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)


def key_of(*parts: int | str) -> int:
    """Return a 63-bit key for stochastic rounding from whatever identifies the tensor.

    Say seed, step, micro-step, tensor name and operand; the same parts give the same key on
    every machine.

    >>> key_of(0, 1, "w") == key_of(0, 1, "w") != key_of(0, 2, "w")
    True
    """
    text = "\0".join(f"{type(p).__name__}:{p}" for p in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def random_bits(shape: torch.Size, key: int | Tensor, device: torch.device) -> Tensor:
    """Return 32 random bits for each element, int64 in [0, 2**32), of ``shape``.

    ``key`` is an int or a 0-dim int64 tensor on ``device``. An element's bits depend on the key
    and its index in row-major order; the top ones are the good ones.
    """
    if not isinstance(key, Tensor):
        key = torch.full((), _wrap(key), dtype=torch.int64, device=device)
    mixed = _splitmix(key.to(device=device, dtype=torch.int64))
    index = torch.arange(shape.numel(), dtype=torch.int64, device=device).view(shape)
    # Elements past 2**32 take their index's high half into the key's.
    x = _multiply((index & _LOW) ^ (mixed & _LOW), _FACTORS[0])
    x = x ^ (x >> 16) ^ (_shift(mixed, 32) ^ (index >> 32))
    x = _multiply(x, _FACTORS[1])
    return _multiply(x ^ (x >> 13), _FACTORS[2])


def mixed_key(key: int | Tensor) -> int:
    """The key as `random_bits` uses it: mixed, as 64 bits. Reads a tensor's value."""
    mask = 2**64 - 1
    x = (int(key) + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _wrap(value: int) -> int:
    """Two's complement: any int as int64."""
    return (value + 2**63) % 2**64 - 2**63


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right of an int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _multiply(x: Tensor, factor: int) -> Tensor:
    """32-bit multiplication of numbers held in int64."""
    return (x * factor) & _LOW


def _splitmix(x: Tensor) -> Tensor:
    x = x + _wrap(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _wrap(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _wrap(0x94D049BB133111EB)
    return x ^ _shift(x, 31)
