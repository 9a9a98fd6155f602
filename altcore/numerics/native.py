"""Handing CPU tensors to the compiled kernels: `kernels.c` by way of ctypes.

What concerns blocks is in `altcore.numerics.native_blocks`, what a format's rules come to in
`altcore.numerics.native_formats`.

Every function returns None where the kernels do not apply, and the caller goes on with torch
operations, which give the same bits.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from altcore.formats import Format
from altcore.numerics.build import library, switched_on
from altcore.numerics.constants import outside_modes
from altcore.numerics.hashing import check_key, mixed_key
from altcore.numerics.native_formats import CALL, Prepared, prepare
from altcore.numerics.plan import check_rules, is_wide, to_single

_ALONE = 32768  # elements that one thread rounds before a second is worth waking
_MOST_THREADS = 256  # MOST_THREADS of kernels.c
_MOST_KEPT = 256  # formats found by identity
DTYPES = (torch.float32, torch.bfloat16)
"""What the kernels read and write."""


# By identity, and the format with it, so that it stays the one of this identity: hashing a format
# would take a tenth of the time of rounding a small tensor.
_BY_IDENTITY: dict[tuple[int, str, str], tuple[Format, Prepared | None]] = {}
with outside_modes():  # altcore may be used, and so imported, in one first
    _NUMBER = torch.zeros((), dtype=torch.float32, device="cpu")  # new ones are made like it
_ORDINARY = (Tensor, torch.nn.Parameter)


def round_native(
    x: Tensor,
    fmt: Format,
    rounding: str,
    overflow: str,
    r: Tensor | None,
    s: Tensor | None,
    counts: Tensor | None,
    errors: Tensor | None,
    key: int | Tensor | None,
    *,
    fake: bool,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Round as `altcore.numerics.grids` does; None where the kernels do not apply.

    ``fake``: multiply by ``s`` and round to ``x``'s dtype; otherwise the grid values, in
    ``dtype`` (None: float32).
    """
    handle = handle_for(x)
    prepared = None if handle is None else _prepared(fmt, rounding, overflow)
    if handle is None or prepared is None:
        return None
    mixed, row = mixed_for(prepared, key), _row_of(x, r, s)
    if mixed is None or row == 0 or not can_add(counts, errors):
        return None
    if not x.is_contiguous():
        x = x.detach().contiguous()
    wanted = x.dtype if fake else dtype or torch.float32
    if wanted not in DTYPES:
        return None
    result = torch.empty_like(x, dtype=wanted)
    call = call_of(x, result, counts, errors, mixed, r, s, row, fake=fake)
    handle.altcore_round(prepared.address, call)
    return result


def round_scaled_native(
    x: Tensor,
    fmt: Format,
    rounding: str,
    overflow: str,
    counts: Tensor | None,
    errors: Tensor | None,
    key: int | Tensor | None,
    scaling: tuple[bool, float, float | None],
    *,
    fake: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Round as `round_native` does, by the scale of the tensor's own largest magnitude.

    ``scaling``: the ``power_of_two``, ``margin`` and ``meets`` of `altcore.numerics.scale_of`.
    Returns the result and both scales; None where the kernels do not apply.
    """
    handle = handle_for(x)
    prepared = None if handle is None else _prepared(fmt, rounding, overflow)
    if handle is None or prepared is None:
        return None
    by_power, margin, meets = scaling
    mixed, wanted = mixed_for(prepared, key), x.dtype if fake else dtype or torch.float32
    if mixed is None or not (0 < margin < math.inf and can_add(counts, errors)):
        return None
    if wanted not in DTYPES:
        return None
    if not x.is_contiguous():
        x = x.detach().contiguous()
    result = torch.empty_like(x, dtype=wanted)
    s, r = torch.empty_like(_NUMBER), torch.empty_like(_NUMBER)
    call = call_of(
        x,
        result,
        counts,
        errors,
        mixed,
        r,
        s,
        x.numel() or 1,
        fake=fake,
        scaling=2 if by_power else 1,
        margin=margin if margin == 1.0 else to_single(margin),
        meets=prepared.largest if meets is None else to_single(meets),
    )
    handle.altcore_round(prepared.address, call)
    return result, s, r


def call_of(
    x: Tensor,
    result: Tensor,
    counts: Tensor | None,
    errors: Tensor | None,
    mixed: int,
    r: Tensor | None = None,
    s: Tensor | None = None,
    row: int = 1,
    *,
    fake: bool,
    scaling: int = 0,
    margin: float = 1.0,
    meets: float = 1.0,
) -> bytes:
    """What the kernels have to know of one call, as `CALL` lays it out."""
    count = x.numel()
    return CALL.pack(
        x.data_ptr(),
        result.data_ptr(),
        count,
        0 if r is None else r.data_ptr(),
        0 if s is None else s.data_ptr(),
        row,
        0 if counts is None else counts.data_ptr(),
        0 if errors is None else errors.data_ptr(),
        mixed,
        x.dtype is torch.bfloat16,
        result.dtype is torch.bfloat16,
        fake,
        threads_for(count),
        scaling,
        margin,
        meets,
    )


def threads_for(count: int) -> int:
    """How many threads so many elements are worth."""
    return min(torch.get_num_threads(), _MOST_THREADS) if count > _ALONE else 1


def number(value: float) -> Tensor:
    """A 0-dim float32 tensor on the CPU, in half the time that `torch.tensor` takes."""
    result = torch.empty_like(_NUMBER)
    ctypes.c_float.from_address(result.data_ptr()).value = value
    return result


def amax_native(x: Tensor) -> Tensor | None:
    """The largest magnitude in ``x``, 0-dim float32; None where the kernels do not apply."""
    handle = handle_for(x)
    if handle is None:
        return None
    if not x.is_contiguous():
        x = x.detach()
        x = x.mT if x.ndim >= 2 and x.mT.is_contiguous() else x.contiguous()
    count, result = x.numel(), torch.empty_like(_NUMBER)
    half = x.dtype is torch.bfloat16
    handle.altcore_amax(x.data_ptr(), count, half, threads_for(count), result.data_ptr())
    return result


def plain(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary CPU tensor, and nobody traces what is done with it.

    Under a transform of torch.func no tensor is: it may meet one that stands for many.
    """
    if torch.compiler.is_compiling() or type(x) not in _ORDINARY:
        return False
    if not x.is_cpu or x.layout is not torch.strided or x.is_nested:
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return not (transformed or torch._C._is_tracing() or is_in_torch_dispatch_mode())


def handle_for(x: Tensor) -> ctypes.CDLL | None:
    """The library, if it can work on ``x``'s memory."""
    if not plain(x) or x.dtype not in DTYPES or not has_numbers(x):
        return None
    return library() if switched_on() else None


def has_numbers(x: Tensor) -> bool:
    """Whether the numbers of a tensor on the CPU are in memory as they are, and C may read them.

    A view may mean the negative of what is there, zeros and a storage that was given back have no
    memory, and a buffer may begin anywhere.
    """
    address = x.data_ptr()
    is_there = address != 0 or x.numel() == 0
    return is_there and address % x.element_size() == 0 and not x.is_neg()


def fits(given: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels can write to ``given``'s memory, or read it, as one array.

    Where nobody traces, as `handle_for` has found out.
    """
    is_array = given.dtype is dtype and given.is_cpu and given.is_contiguous()
    return is_array and type(given) in _ORDINARY and has_numbers(given)


def can_add(counts: Tensor | None, errors: Tensor | None) -> bool:
    """Whether the kernels can add to these."""
    return (counts is None or (counts.shape == (4,) and fits(counts, torch.int64))) and (
        errors is None or (errors.shape == (2,) and fits(errors, torch.float64))
    )


def mixed_for(prepared: Prepared, key: int | Tensor | None) -> int | None:
    """`mixed_key` of a key, 0 where rounding needs none; None where it cannot be read here.

    Raises `BadInput` for what is no key.
    """
    if key is None:
        return None if prepared.draws else 0
    check_key(key)
    if not prepared.draws:
        return 0
    return None if isinstance(key, Tensor) and not plain(key) else mixed_key(key)


def _row_of(x: Tensor, *scales: Tensor | None) -> int:
    """How many consecutive elements of ``x`` share a scale; 0 where they do not so share."""
    whole, found = x.numel() or 1, 0
    for scale in scales:
        if scale is None:
            continue
        if not fits(scale, torch.float32) or scale.ndim > x.ndim:
            return 0
        row = whole if scale.numel() == 1 else _row_length(x, scale)
        if row == 0 or found not in (0, row):
            return 0
        found = row
    return found or whole


def _row_length(x: Tensor, scale: Tensor) -> int:
    shape = (1,) * (x.ndim - scale.ndim) + tuple(scale.shape)
    outer = 0
    while outer < x.ndim and shape[outer] == x.shape[outer]:
        outer += 1
    return 0 if any(size != 1 for size in shape[outer:]) else math.prod(x.shape[outer:])


def single_max(fmt: Format) -> float | None:
    """The format's largest value as a float32; None where it computes in float64."""
    prepared = _prepared(fmt, "nearest-even", "saturate")
    return None if prepared is None else prepared.largest


def _prepared(fmt: Format, rounding: str, overflow: str) -> Prepared | None:
    """`prepare`; None for what is not the kernels' business. `BadInput` for rules unknown."""
    kept = _BY_IDENTITY.get((id(fmt), rounding, overflow))
    if kept is None:
        check_rules(fmt, rounding, overflow)
        usable = overflow != "raise" and not is_wide(fmt)
        kept = fmt, prepare(fmt, rounding, overflow) if usable else None
        if len(_BY_IDENTITY) >= _MOST_KEPT:
            _BY_IDENTITY.clear()
        _BY_IDENTITY[id(fmt), rounding, overflow] = kept
    return kept[1]
