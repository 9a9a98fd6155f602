"""Rounding on a GPU: the torch operations, compiled by torch.compile if the bits stay the same.

A compiler may fuse a multiplication with an addition, keep more bits than a dtype has, or treat
subnormal numbers as zero. So each new kind of call is first computed in both ways, of numbers of
every size if its tensors are contiguous. Unless all bits agree the torch operations stay, as they
do where compiling fails; for everything if the compiler cannot even add, as without Triton. A
warning says so.

Each kind of call has a function of its own, because torch compiles one only so many times: for
dtypes, layouts, autocast. If it gives up on one, the torch operations take its place.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from altcore.errors import described
from altcore.formats import Format
from altcore.log import warn
from altcore.numerics.hashing import key_tensor
from altcore.numerics.kernels import switched_on
from altcore.numerics.rules import Rule
from altcore.numerics.torch_arithmetic import Key, Measured, TorchRounder, rounded
from altcore.numerics.torch_rounding import goes_by_bits
from altcore.numerics.tracing import by_identity, is_untraced, tell_compiler

LONG_TABLE = 2**12
"""The most values of a table that are compiled: torch.compile traces each, for minutes if it has
65,536. A search in a longer one takes torch's own operations."""

_compiles = True
"""False once this process has found that nothing can be compiled."""


def can_compile(x: Tensor, fmt: Format, rule: Rule) -> bool:
    """Whether ``x`` is on a GPU and may go through torch.compile to be rounded to ``fmt``.

    Overflows that raise are read from the device, and a CUDA graph that is being captured has no
    room for a compiler.
    """
    return (
        x.is_cuda
        and _compiles
        and rule.overflow != "raise"
        and is_untraced(x)
        and switched_on()
        and not torch.cuda.is_current_stream_capturing()
        and not has_long_table(fmt, rule)
    )


def has_long_table(fmt: Format, rule: Rule) -> bool:
    """Whether rounding searches more values than are compiled."""
    return not goes_by_bits(fmt, rule) and len(fmt.values) > LONG_TABLE


@by_identity
def compiled_rounder(fmt: Format, rule: Rule) -> CompiledRounder:
    """Return what rounds to ``fmt`` by ``rule`` on a GPU, and keeps its compiled code."""
    return CompiledRounder(fmt, rule)


@define(eq=False, slots=False)
class CompiledRounder(TorchRounder):
    """Rounds by compiled code, on any device for which torch.compile has a compiler."""

    codes: dict[tuple[Any, ...], Any] = field(init=False, factory=dict)
    """Compiled code by the kind of call; None for torch operations."""

    def _new_code(self) -> Any:
        tell_compiler()

        def work(*arguments: Any) -> Measured:
            return rounded(self.fmt, self.rule, *arguments)

        # torch counts recompilations by code object, and gives up on one that has too many.
        own = types.FunctionType(
            work.__code__.replace(), work.__globals__, "work", None, work.__closure__
        )
        return torch.compile(own, fullgraph=True, dynamic=True)

    def compute(
        self,
        x: Tensor,
        r: Tensor | None,
        s: Tensor | None,
        key: Key,
        dtype: torch.dtype | None,
        weight: Tensor | None,
        *,
        fake: bool,
        counts: bool,
        errors: bool,
    ) -> Measured:
        """Round and measure, by compiled code if it gives the same bits."""
        key = None if key is None else key_tensor(key, x.device)
        tensors = (x, r, s, weight)
        is_flat = x.is_contiguous() and all(_is_one_or_like(t, x) for t in tensors[1:])
        flat = _unviewed(x, is_flat)
        r, s, weight = (None if t is None else _unviewed(t, is_flat) for t in tensors[1:])
        given = (flat, r, s, key, dtype, weight, fake, counts, errors)
        others = [None if t is None else (t.dtype, t.ndim) for t in (r, s, key, weight)]
        layouts = [] if is_flat else [_layout(t) for t in tensors if t is not None]
        kind = (x.dtype, x.device, flat.ndim, dtype, fake, counts, errors, *others, *layouts)
        q, over, found, sums = self._rounded(kind, given, is_flat)
        return q.view(x.shape), over, found, sums

    def _rounded(self, kind: tuple[Any, ...], given: tuple[Any, ...], is_flat: bool) -> Measured:
        """`rounded`, by the code for calls of this kind."""
        code = self._code(kind, given, is_flat)
        if code is None:
            return rounded(self.fmt, self.rule, *given)
        try:
            return code(*given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # it was to be compiled again
            self.codes[kind] = None
            _warn(f"torch.compile failed for {self.fmt.name} ({described(error):.200})")
            return rounded(self.fmt, self.rule, *given)

    def _code(self, kind: tuple[Any, ...], given: tuple[Any, ...], is_flat: bool) -> Any:
        """Return compiled code for calls of this kind; None if the torch operations compute them.

        New code is compared with them first.
        """
        global _compiles
        if kind in self.codes or not _compiles or given[0].numel() == 0:
            return self.codes.get(kind)
        sample, code = _sample(*given) if is_flat else given, self._new_code()
        try:
            found = code(*sample)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.codes[kind] = None
            _compiles = _can_add(given[0].device)
            what = f" for {self.fmt.name} ({self.rule.rounding})" if _compiles else ""
            _warn(f"torch.compile failed{what} ({described(error):.200})")
            return None
        agrees = _same(found, rounded(self.fmt, self.rule, *sample))
        self.codes[kind] = code if agrees else None
        if not agrees:
            _warn(f"torch.compile rounds otherwise to {self.fmt.name} ({self.rule.rounding})")
        return self.codes[kind]


def _can_add(device: torch.device) -> bool:
    """Whether a sum can be compiled for a device: if not, nothing can."""

    def double(x: Tensor) -> Tensor:
        return x + x

    try:
        torch.compile(double, fullgraph=True)(torch.ones(2, dtype=torch.float32, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    return True


def _warn(problem: str) -> None:
    warn(
        f"{problem}: rounding on this device uses torch operations, with the same results as on "
        "a CPU but slower",
        stacklevel=2,
    )


def _is_one_or_like(t: Tensor | None, x: Tensor) -> bool:
    """Whether a scale is a single one, or has one contiguous element for each of ``x``."""
    return t is None or t.ndim == 0 or (t.shape == x.shape and t.is_contiguous())


def _unviewed(t: Tensor, is_flat: bool) -> Tensor:
    """Return the same elements in no view, which torch compiles anew for each shape of its base.

    In one dimension if ``is_flat``, for one kind of all shapes.
    """
    return (t.view(-1) if is_flat and t.ndim else t).data


def _layout(t: Tensor) -> tuple[int, ...]:
    """Return what torch compiles anew for: which sizes and strides are 0 or 1, and which not."""
    return tuple(min(n, 2) for n in (*t.shape, *t.stride()))


def _sample(x: Tensor, *given: Any) -> tuple[Any, ...]:
    """Return the arguments of a call that rounds numbers of all sizes by these scales in turn.

    Code is laid out for the size of its first tensor, which here is neither small nor chance.
    """
    numbers = _numbers(x)
    n, turns = len(numbers), -(-len(numbers) // x.numel())
    return numbers, *(
        t[:n].repeat(turns)[:n].data if isinstance(t, Tensor) and t.ndim == 1 else t for t in given
    )


def _numbers(like: Tensor) -> Tensor:
    """Numbers of all sizes in ``like``'s dtype, on its device: all that have 16 bits, and ties."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=like.device)
    if like.element_size() == 2:
        return bits.view(like.dtype)
    upper = bits.to(torch.int32)
    lower = (upper * 40503) & 0xFFFF  # without a pattern
    return torch.cat([upper << 16, (upper << 16) | lower]).view(torch.float32).to(like.dtype)


def _same(found: Measured, wanted: Measured) -> bool:
    """Whether results agree, bit for bit but for the payloads of NaN, and counts do.

    Errors are sums of floats, whose order may differ.
    """
    (q, _, counts, _), (own, _, own_counts, _) = found, wanted
    if q.dtype != own.dtype or q.shape != own.shape:
        return False
    if counts is not None and own_counts is not None and not torch.equal(counts, own_counts):
        return False
    missing = own.isnan()
    alike = (q == own) & (q.signbit() == own.signbit())
    return bool(torch.where(missing, q.isnan(), alike).all())
