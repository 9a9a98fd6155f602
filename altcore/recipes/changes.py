"""Changes of a resolved recipe while a run goes: other formats, scalings and roundings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

from altcore.errors import BadInput
from altcore.formats import BlockFormat
from altcore.recipes.cast import Cast, default_scaling, has_overflow
from altcore.recipes.layers import is_meant, some
from altcore.recipes.operands import OPERANDS, operands_of
from altcore.recipes.recipe import ResolvedRecipe


def change(
    resolved: ResolvedRecipe,
    layers: Sequence[str],
    roles: Sequence[str],
    **parts: Any,
) -> dict[str, dict[str, Cast | None]]:
    """Return the recipe with ``parts`` (format, scaling, rounding) changed.

    ``layers`` are patterns; empty ``roles`` mean every operand that is quantized now. A format
    of None leaves the operand alone from now on. Raises `BadInput` when no layer matches.
    """
    operands = {o for role in roles for o in operands_of(role)} or set(OPERANDS)
    changed = {name: dict(casts) for name, casts in resolved.items()}
    hits = [n for n in resolved if is_meant(n, layers)]
    if not hits:
        raise BadInput(f"a change of recipe for {some(list(layers))} matches no layer")
    for name in hits:
        for operand in operands:
            before = resolved[name][operand]
            if before is None and not roles:
                continue
            changed[name][operand] = _changed_cast(before, parts)
    return changed


def _changed_cast(before: Cast | None, parts: Mapping[str, Any]) -> Cast | None:
    if "format" in parts and parts["format"] is None:
        return None
    if before is None:
        if "format" not in parts:
            return None
        fmt = parts["format"]
        before = Cast(fmt, default_scaling(fmt))
    elif "format" in parts and "scaling" not in parts:
        # A shift to or from a format with a scaling of its own takes that format's.
        old, own = default_scaling(before.format), default_scaling(parts["format"])
        if before.scaling.kind == old.kind != own.kind or own.kind == "block":
            parts = {**parts, "scaling": own}
    changed = evolve(before, **parts)
    if isinstance(changed.format, BlockFormat) and changed.scaling != default_scaling(
        changed.format
    ):
        raise BadInput(f"a change of scaling: format {changed.format.name} brings its own")
    # The new format may lack the code that the old one gave to an overflow.
    return (
        evolve(changed, overflow="saturate")
        if not has_overflow(changed.format, changed.overflow)
        else changed
    )
