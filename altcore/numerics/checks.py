"""Refusing what cannot be rounded, in words for whoever gave it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, nearest
from altcore.formats import (
    ALL_BITS,
    FEW_BITS,
    OVERFLOWS,
    ROUNDINGS,
    BlockFormat,
    Format,
    Stochastic,
    has_code,
    no_code,
)
from altcore.numerics.rules import COUNTS, ERRORS, Meters, Rule
from altcore.numerics.tracing import constant, is_plain

_has_code = constant(has_code)  # torch.compile cannot trace the lock of a cached property


def check_rule(fmt: Format, rule: Rule) -> None:
    """Raise `BadInput` for an unknown rounding or overflow, or one that ``fmt`` cannot do."""
    check_choice("rounding", rule.rounding, ROUNDINGS)
    check_choice("overflow", rule.overflow, OVERFLOWS)
    check_stochastic(rule.stochastic)
    if rule.overflow in ("inf", "nan") and not _has_code(fmt, rule.overflow):
        raise no_code(fmt, rule.overflow)


def check_stochastic(settings: Stochastic) -> None:
    """Raise `BadInput` for a number of random bits that there is not, or an unknown rule."""
    bits = settings.random_bits
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= ALL_BITS:
        raise BadInput(
            f"random_bits: a whole number from 1 to {ALL_BITS} is needed, not {bits!r:.60}"
        )
    check_choice("few_bits", settings.few_bits, FEW_BITS)


def check_floating(x: Tensor, name: str = "x") -> None:
    """Raise `BadInput` unless ``x`` is a dense float16, bfloat16, float32 or float64 tensor.

    ``name`` is the argument, for the message.
    """
    check_dense(x, name)
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        right = f"torch.view_as_real({name})" if x.is_complex() else f"{name}.float()"
        raise BadInput(
            f"{name}: float16, bfloat16, float32 or float64 is needed, not {x.dtype}: give {right}"
        )


_INSTEAD = {
    "DTensor": "a distributed one: give {0}.to_local() or {0}.full_tensor()",
    "MaskedTensor": "a masked one: give {0}.to_tensor(0.0)",
    "UninitializedParameter": "a lazy one: run its module once, which gives {0} its shape",
    "UninitializedBuffer": "a lazy one: run its module once, which gives {0} its shape",
}
"""By class: tensors whose values are elsewhere, and what to give instead."""


def check_dense(x: Tensor, name: str) -> None:
    """Raise `BadInput` unless ``x`` is a tensor that holds each of its values by itself.

    And under `torch.jit.trace`, which would record the torch operations only.
    """
    if not isinstance(x, Tensor):
        raise BadInput(f"{name}: a tensor is needed, not {type(x).__name__}")
    if instead := _INSTEAD.get(type(x).__name__):
        raise BadInput(f"{name}: an ordinary tensor is needed, not {instead.format(name)}")
    if not torch.compiler.is_compiling() and torch._C._is_tracing():
        raise BadInput(
            f"{name}: torch.jit.trace cannot record how a tensor is rounded: use torch.export or "
            "torch.compile, or trace the model unquantized"
        )
    if x.is_nested:
        raise BadInput(f"{name}: a dense tensor is needed, not a nested one: give its parts")
    if x.layout != torch.strided:
        kind = str(x.layout).removeprefix("torch.")
        raise BadInput(f"{name}: a dense tensor is needed, not {kind}: give {name}.to_dense()")
    if x.is_quantized:
        raise BadInput(f"{name}: torch has quantized it to {x.dtype}: give {name}.dequantize()")
    if x.is_meta:
        raise BadInput(f"{name}: a meta tensor has no values: give one on a CPU or GPU")
    if is_plain(x) and x.numel() and not x.data_ptr() and not x._is_zerotensor():
        raise BadInput(f"{name}: its storage was given back: there are no values to read")


def check_meters(x: Tensor, meters: Meters) -> None:
    """Raise `BadInput` unless ``meters`` can be added to, on the device of ``x``."""
    for name, sums, of, dtype in (
        ("counts", meters.counts, COUNTS, torch.int64),
        ("errors", meters.errors, ERRORS, torch.float64),
    ):
        if sums is None:
            continue
        if sums.dtype != dtype or sums.shape != (len(of),) or sums.device != x.device:
            raise BadInput(
                f"{name}: {len(of)} numbers are needed, {dtype} on {x.device}, not "
                f"{list(sums.shape)}, {sums.dtype} on {sums.device}"
            )


def check_spread(scale: Tensor, shape: Sequence[int]) -> None:
    """Raise `BadInput` unless ``scale`` broadcasts to a tensor of ``shape``."""
    missing = len(shape) - scale.ndim
    if missing < 0 or any(
        n not in (1, m) for n, m in zip(scale.shape, shape[missing:], strict=True)
    ):
        raise BadInput(
            f"scale: shape {list(scale.shape)} does not broadcast to {list(shape)}, that of the "
            "tensor: a scale for all of it has no dimension, one for each slice has size 1 along "
            "the other axes"
        )


def check_axis(x: Tensor, axis: int | None) -> int:
    """Return ``axis`` as an int, the last one for None; `BadInput` unless ``x`` has it."""
    axis = -1 if axis is None else as_builtin(axis)
    if not isinstance(axis, int) or isinstance(axis, bool) or not -x.ndim <= axis < x.ndim:
        raise BadInput(f"axis: a tensor of {x.ndim} dimension(s) has no axis {axis!r}")
    return axis


def refuse(why: str, **arguments: object) -> None:
    """Raise `BadInput` for the first of these ``arguments`` that is given, that is not None."""
    for name, given in arguments.items():
        if given is not None:
            raise BadInput(f"{name}: {why}, and takes no {name}; leave out {name}={given!r:.60}")


def check_choice(what: str, value: str, known: Collection[str]) -> None:
    """Raise `BadInput` unless ``value`` is one of the known ones; the nearest is offered."""
    if value not in known:
        raise BadInput(
            f"unknown {what} {value!r:.60}",
            meant=nearest(value, known),
            hint=f"one of {', '.join(known)}",
        )


def check_block_rule(fmt: BlockFormat, rule: Rule) -> None:
    """Raise `BadInput` for a rounding that is unknown, or an overflow that blocks do not take."""
    if rule.overflow != "saturate":
        raise BadInput(f"format {fmt.name} saturates within its blocks: overflow must be saturate")
    check_rule(fmt.element, rule)


def check_blocks(x: Tensor, fmt: BlockFormat, axis: int) -> None:
    """Raise `BadInput` unless ``x`` can be divided into blocks along ``axis``."""
    if not -x.ndim <= axis < x.ndim:
        raise BadInput(f"format {fmt.name}: a tensor of {x.ndim} axes has no axis {axis}")
    if fmt.is_square and x.ndim < 2:
        raise BadInput(f"format {fmt.name}: square blocks need a tensor of two axes at least")
