"""Rounding CPU tensors to a format's grid by the kernels, bit for bit as torch operations do."""

from __future__ import annotations

import math

import torch
from attrs import define
from torch import Tensor

from altcore.formats import Format, to_single
from altcore.numerics.checks import check_rule
from altcore.numerics.hashing import check_key, mixed_key
from altcore.numerics.kernels.build import kernels
from altcore.numerics.kernels.jobs import Prepared, prepare_constants
from altcore.numerics.kernels.structs import CALL
from altcore.numerics.kernels.tensors import DTYPES, fits, threads_for
from altcore.numerics.rounding_constants import is_wide
from altcore.numerics.rules import UNMETERED, Meters, Rule, full_rule
from altcore.numerics.scaling import empty_scalar
from altcore.numerics.torch_arithmetic import Key, TorchRounder, times_scale
from altcore.numerics.tracing import by_identity, is_plain


@by_identity
def kernel_rounder(fmt: Format, rule: Rule) -> KernelRounder | None:
    """Return what rounds to ``fmt`` by ``rule``; None if only torch operations do.

    Raises `BadInput` for a rule that is unknown, or that the format cannot do.
    """
    rule = full_rule(rule)
    check_rule(fmt, rule)
    if rule.overflow == "raise" or is_wide(fmt):
        return None
    prepared = prepare_constants(fmt, rule)
    return None if prepared is None else KernelRounder(fmt, rule, prepared)


@define(eq=False, slots=False)
class KernelRounder(TorchRounder):
    """Rounds tensors that `tensors.reads` takes, of float16, too.

    A key, scales or meters that the kernels cannot read are left to torch operations.
    """

    prepared: Prepared

    def round(
        self,
        x: Tensor,
        r: Tensor | None,
        meters: Meters,
        key: Key,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return grid values, as `TorchRounder.round` does."""
        if x.dtype is torch.float16:  # float32 has the same numbers, and kernels for them
            x = x.detach().float()
        result = self._run(x, r, None, meters, key, dtype or torch.float32, fake=False)
        return super().round(x, r, meters, key, dtype, weight) if result is None else result

    def fake(
        self, x: Tensor, r: Tensor | None, s: Tensor | None, meters: Meters, key: Key
    ) -> Tensor:
        """Round there and back, as `TorchRounder.fake` does."""
        if x.dtype is torch.float16:
            return times_scale(self.round(x, r, meters, key), s, x.dtype)
        result = self._run(x, r, s, meters, key, x.dtype, fake=True)
        return super().fake(x, r, s, meters, key) if result is None else result

    def _run(
        self,
        x: Tensor,
        r: Tensor | None,
        s: Tensor | None,
        meters: Meters,
        key: Key,
        dtype: torch.dtype,
        *,
        fake: bool,
    ) -> Tensor | None:
        """The result in ``dtype``; None if the kernels cannot read or write an argument."""
        mixed, row = mixed_for(self.rule, key), _row_of(x, r, s)
        if mixed is None or row == 0 or dtype not in DTYPES or not can_add(meters):
            return None
        if not x.is_contiguous():
            x = x.detach().contiguous()
        result = torch.empty_like(x, dtype=dtype)
        call = call_of(x, result, meters, mixed, r, s, row, fake=fake)
        kernels().altcore_round(self.prepared.address, call)
        return result

    def round_by_amax(
        self,
        x: Tensor,
        power_of_two: bool,
        margin: float,
        meets: float | None,
        meters: Meters,
        key: Key,
        *,
        fake: bool,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result and both scales, as `TorchRounder.round_by_amax` does."""
        mixed, wanted = mixed_for(self.rule, key), x.dtype if fake else dtype or torch.float32
        readable = mixed is not None and x.dtype in DTYPES and can_add(meters)
        if mixed is None or not readable or wanted not in DTYPES or not 0 < margin < math.inf:
            given = (x, power_of_two, margin, meets, meters, key)
            return super().round_by_amax(*given, fake=fake, dtype=dtype)
        if not x.is_contiguous():
            x = x.detach().contiguous()
        result = torch.empty_like(x, dtype=wanted)
        s, r = empty_scalar(), empty_scalar()
        call = call_of(
            x,
            result,
            meters,
            mixed,
            r,
            s,
            x.numel() or 1,
            fake=fake,
            scaling=2 if power_of_two else 1,
            margin=margin if margin == 1.0 else to_single(margin),
            meets=self.prepared.largest if meets is None else to_single(meets),
        )
        kernels().altcore_round(self.prepared.address, call)
        return result, s, r


def call_of(
    x: Tensor,
    result: Tensor,
    meters: Meters,
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
    """Return the tensors and settings of one call, as `CALL` lays them out."""
    count, counts, errors = x.numel(), meters.counts, meters.errors
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


def can_add(meters: Meters) -> bool:
    """Whether the kernels can add to these."""
    if meters is UNMETERED:
        return True
    counts, errors = meters.counts, meters.errors
    return (counts is None or (counts.shape == (4,) and fits(counts, torch.int64))) and (
        errors is None or (errors.shape == (2,) and fits(errors, torch.float64))
    )


def mixed_for(rule: Rule, key: Key) -> int | None:
    """Return `mixed_key` of a key, 0 if the rule needs none; None if it cannot be read here.

    Raises `BadInput` unless it is a key.
    """
    draws = rule.rounding == "stochastic"  # its property takes longer to call
    if key is None:
        return None if draws else 0
    check_key(key)
    if not draws:
        return 0
    return None if isinstance(key, Tensor) and not is_plain(key) else mixed_key(key)


def _row_of(x: Tensor, r: Tensor | None, s: Tensor | None) -> int:
    """How many consecutive elements of ``x`` share a scale; 0 if they do not so share."""
    whole, found = x.numel() or 1, 0
    for scale in (r, s):
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
