"""The layers of a model as a recipe sees them, and the patterns that mean some of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from attrs import frozen

from altcore.recipes.operands import ATTENTION_OPERANDS, LOOKUP, PRODUCT_OPERANDS

SELECTORS = ("<linear>", "<conv>", "<embedding>", "<other>", "<attention>", "<head>", "<any>")
"""Patterns that match layers by their kind. ``<other>`` is every module with a parameter of two
or more dimensions that is none of the first three: experts, recurrent layers, position tables.
``<any>`` is every layer that has such a parameter."""

SHARES = re.compile(r"<(first|last) ([1-9]\d?|100)%>")
"""``<first N%>`` and ``<last N%>``: so many of the linear and convolutional layers, in the
model's order and without the output head."""


@frozen
class Layer:
    """What a recipe has to know of one layer of a model."""

    name: str
    kind: str
    """``linear``, ``conv``, ``embedding``, ``attention`` (a module without parameters that
    computes attention), ``parametrization`` (it computes a weight for another module), or
    ``other``."""
    is_head: bool = False
    has_attention: bool = False
    """Whether attention's two products are computed in the layer."""

    def matches(self, pattern: str) -> bool:
        """Whether a recipe's pattern or selector means this layer."""
        if pattern == "<any>":
            return self.kind != "attention"
        if pattern == "<head>":
            return self.is_head
        if pattern == "<attention>":
            return self.has_attention
        return pattern == f"<{self.kind}>" or is_meant(self.name, [pattern])

    def takes(self, operand: str) -> bool:
        """Whether the layer can have the operand; a rule for many layers passes the others by."""
        if operand in ATTENTION_OPERANDS:
            return self.has_attention
        if operand in PRODUCT_OPERANDS:
            return self.kind in PRODUCT_KINDS
        if operand == LOOKUP:
            return self.kind in ("embedding", "other", "parametrization")
        return self.kind != "attention"


PRODUCT_KINDS = ("linear", "conv", "other")
"""The kinds of layers that multiply by their weights, or may."""


def is_meant(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches a name, or is that name: a ModuleDict's key may have brackets."""
    return any(pattern == name or fnmatchcase(name, pattern) for pattern in patterns)


def matching(layers: Sequence[Layer], pattern: str) -> list[Layer]:
    """Return the layers that a recipe's pattern or selector means."""
    share = SHARES.fullmatch(pattern)
    if share is None:
        return [layer for layer in layers if layer.matches(pattern)]
    inner = [x for x in layers if x.kind in ("linear", "conv") and not x.is_head]
    count = round(len(inner) * int(share[2]) / 100)
    return inner[:count] if share[1] == "first" else inner[len(inner) - count :]


def is_selector(pattern: str) -> bool:
    """Whether a pattern means layers by their kind or their position, not by name."""
    return pattern in SELECTORS or SHARES.fullmatch(pattern) is not None


def takes_hadamard(kind: str, operand: str) -> bool:
    """Whether an operand's product sums along one axis, which both operands have."""
    return operand in PRODUCT_OPERANDS and kind != "conv"


def some(names: Sequence[str], limit: int = 8) -> str:
    """Return the first few names, as messages list them."""
    shown = ", ".join(names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "") or "none"
