"""A format, a scale, a rule or a key as users write it, resolved to what functions work on."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput
from altcore.formats import (
    OVERFLOWS,
    ROUNDINGS,
    AnyFormat,
    BlockFormat,
    Format,
    Stochastic,
    full_rounding,
    get_format,
    to_single,
)
from altcore.numerics.checks import (
    check_block_rule,
    check_choice,
    check_floating,
    check_rule,
    check_spread,
    check_stochastic,
)
from altcore.numerics.rounding_constants import (
    FLOAT32,
    LAYOUTS,
    compute_dtype,
    to_double,
)
from altcore.numerics.rules import Rule, draws
from altcore.numerics.scaling import scalar
from altcore.numerics.tracing import constant, is_plain, is_untraced, tell_compiler, untraced

Scale = float | Tensor | None


def resolve_format(fmt: AnyFormat | str) -> AnyFormat:
    """Return ``fmt`` itself, or the installed format of that name; `BadInput` if unknown."""
    if torch.compiler.is_compiling():
        tell_compiler()
    if isinstance(fmt, (Format, BlockFormat)):  # torch 2.8 compiles no union of types
        return fmt
    if not isinstance(fmt, str):
        raise BadInput(f"a format or its name is needed, not {type(fmt).__name__}")
    if torch.compiler.is_compiling() and (attribute := _keep(fmt)):
        kept: AnyFormat = getattr(_Kept, attribute)
        return kept
    return get_format(fmt)


class _Kept:
    """Formats as attributes, which torch.compile reads while it traces.

    It cannot trace how names are looked up, and guards no object but one that it has read.
    """


@untraced
def _keep(name: str) -> str:
    """The attribute of `_Kept` that has the format of this name; empty if there is no such format.

    torch.compile would hide an error of it in one of its own.
    """
    attribute = f"named_{name.encode().hex()}"  # without a dot
    try:
        setattr(_Kept, attribute, get_format(name))
    except BadInput:
        return ""
    return attribute


def find_coded(fmt: AnyFormat | str) -> Format:
    """Return a format that has a code for each number; `BadInput` for a block format, too."""
    found = resolve_format(fmt)
    if isinstance(found, BlockFormat):
        raise BadInput(
            f"format {found.name}: a block format's codes cannot be decoded without their scales: "
            "use altcore.pack and altcore.unpack"
        )
    return found


def find_grid(fmt: AnyFormat | str) -> Format:
    """Return a format that has one grid; `BadInput` for a block format, too."""
    found = resolve_format(fmt)
    if isinstance(found, BlockFormat):
        raise BadInput(
            f"format {found.name} has another grid in each block: use its element format, "
            f"{found.element.name}, with a scale"
        )
    return found


def scale_pair(scale: Scale, x: Tensor, fmt: Format) -> tuple[Tensor | None, Tensor | None]:
    """Return the given scale as tensors ``s`` and ``r = fl(1 / s)`` in ``x``'s compute dtype.

    Raises `BadInput` for one that is not positive, or does not broadcast to ``x``.
    """
    if scale is None:
        return None, None
    scale, dtype = as_builtin(scale), compute_dtype(x.dtype, fmt)
    if isinstance(scale, Tensor):
        check_floating(scale, "scale")
        s = scale.detach().to(dtype)
        # Looked at if that costs no transfer; both ends are NaN if any is.
        ends = map(float, torch.aminmax(s)) if is_plain(s) and s.numel() else ()
        number = next((end for end in ends if not 0 < end < math.inf), 1.0)
        s = s.to(x.device)
    elif isinstance(scale, (int, float)) and not isinstance(scale, bool):
        number = to_double(scale)
        if dtype == torch.float32 and not torch.compiler.is_compiling():
            number = to_single(number)  # compiled, it may be one that changes: a symbol
        if dtype == torch.float32 and 0 < number < math.inf and is_untraced(x):
            pair = _pair_of(number)
            # Filled with a number, as a copy would wait for the device.
            return pair if x.is_cpu else (_like(pair[0], x), _like(pair[1], x))
        s = torch.full((), number, dtype=dtype, device=x.device)
    else:
        raise BadInput(f"scale: a scale is a number or a tensor, not {scale!r}")
    if not 0 < number < math.inf:
        raise BadInput(f"scale: a scale is a positive number in {dtype}, not {number}")
    if isinstance(scale, Tensor):
        check_spread(scale, x.shape)
    # Clamped as in scale_of, for scales whose inverse passes the largest number.
    largest = torch.full_like(s, LAYOUTS[dtype].largest)
    return s, torch.minimum(torch.ones_like(s) / s, largest)


@functools.lru_cache(maxsize=256)
def _pair_of(number: float) -> tuple[Tensor, Tensor]:
    """`scale_pair` of one float32 on the CPU, kept: making tensors takes longer than rounding.

    In float64 and rounded once more, a quotient of two float32s is rounded once.
    """
    return scalar(number), scalar(min(to_single(1 / number), FLOAT32.largest))


def _like(number: Tensor, x: Tensor) -> Tensor:
    return torch.full((), float(number), dtype=number.dtype, device=x.device)


_RULES = {(rounding, o): Rule(rounding, o) for rounding in ROUNDINGS for o in OVERFLOWS}


def rule_for(rounding: str | Stochastic, overflow: str) -> Rule:
    """Return the rule of these names; `BadInput` if one is unknown."""
    if isinstance(rounding, Stochastic):
        check_stochastic(rounding)
        return rule_for("stochastic", overflow)._replace(stochastic=rounding)
    try:
        return _RULES[full_rounding(rounding), overflow]
    except (KeyError, TypeError):  # TypeError: unhashable
        check_choice("rounding", rounding, ROUNDINGS)
        check_choice("overflow", overflow, OVERFLOWS)
        raise


def block_rule_for(fmt: BlockFormat, rounding: str | Stochastic, overflow: str) -> Rule:
    """Return the rule of these names; `BadInput` if one is unknown, or if blocks cannot do it."""
    rule = rule_for(rounding, overflow)
    check_block_rule(fmt, rule)
    return rule


def rule_by_amax(fmt: Format, rule: Rule) -> Rule:
    """Return the rule for numbers that their own largest magnitude scales: they saturate.

    Nothing overflows there, but ``x * r`` is rounded and may pass the largest value by a unit in
    the last place, which rounding up, down or at random takes for an overflow. A format without
    negative values keeps the rule: theirs do overflow. `BadInput` if both would.
    """
    if rule.overflow == "saturate":
        return rule
    check_rule(fmt, rule)
    if _is_signed(fmt):
        return rule._replace(overflow="saturate")
    if rule.rounding in ("up", "stochastic"):
        raise BadInput(
            f"format {fmt.name}: under a scale by the largest magnitude, rounding "
            f"{rule.rounding} may pass the largest value, which is no overflow, while a negative "
            "number is one: overflow must be saturate, or the scale a number"
        )
    return rule


@constant  # torch.compile cannot trace the lock of a cached property
def _is_signed(fmt: Format) -> bool:
    return fmt.signed


def key_for(x: Tensor, rule: Rule, key: int | Tensor | None) -> int | Tensor | None:
    """Return ``key``, or one that torch draws if stochastic rounding has none.

    The default generator of ``x``'s device draws it, so that `torch.manual_seed` decides.
    """
    if key is not None or not draws(rule):
        return key
    check_floating(x)
    try:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=x.device)
    except RuntimeError as error:
        raise BadInput(
            "key: one is drawn under vmap if its randomness is 'same' or 'different': "
            "say so, or give one"
        ) from error
