"""The choice of a backend, once in each call: by device, dtype, format and rule.

A backend is an object that rounds to one format by one rule; its methods are those of
`TorchRounder`, which the others override. There are three: torch operations
(`torch_arithmetic`) take everything; C kernels (`kernels`) take dense float32, bfloat16 and float16
tensors in a CPU's memory; and on a GPU the torch operations are compiled (`compiled_rounder`).
All give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.formats import BlockFormat, Format
from altcore.numerics import kernels
from altcore.numerics.checks import check_block_rule, check_floating, check_rule
from altcore.numerics.compiled_rounder import can_compile, compiled_rounder
from altcore.numerics.kernels import kernel_block_rounder, kernel_rounder, reads
from altcore.numerics.rules import Rule, full_rule
from altcore.numerics.torch_arithmetic import TorchBlockRounder, TorchRounder
from altcore.numerics.tracing import tell_compiler

_READ = (*kernels.DTYPES, torch.float16)  # float16 is widened


def rounder_for(x: Tensor, fmt: Format, rule: Rule) -> TorchRounder:
    """Return the fastest backend that rounds tensors like ``x`` to ``fmt`` by ``rule``.

    Raises `BadInput` for a rule that ``fmt`` cannot do, and for an ``x`` that nobody can round.
    """
    if reads(x, _READ) and (found := kernel_rounder(fmt, rule)) is not None:
        return found
    if torch.compiler.is_compiling():
        tell_compiler()
    rule = full_rule(rule)
    check_rule(fmt, rule)
    check_floating(x)
    return compiled_rounder(fmt, rule) if can_compile(x, fmt, rule) else TorchRounder(fmt, rule)


def block_rounder_for(x: Tensor, fmt: BlockFormat, rule: Rule) -> TorchBlockRounder:
    """Return the fastest backend that rounds tensors like ``x`` to ``fmt`` by ``rule``.

    Raises `BadInput` as `rounder_for` does.
    """
    if reads(x, _READ) and (found := kernel_block_rounder(fmt, rule)) is not None:
        return found
    if torch.compiler.is_compiling():
        tell_compiler()
    rule = full_rule(rule)
    check_block_rule(fmt, rule)
    check_floating(x)
    element = fmt.element
    compiles = can_compile(x, element, rule)
    rounder = compiled_rounder(element, rule) if compiles else TorchRounder(element, rule)
    return TorchBlockRounder(fmt, rounder)
