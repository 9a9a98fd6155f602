"""Recipes: which format, scaling and rounding each tensor role has, by layer. Data, no torch.

A `Recipe` is what the user writes, with patterns; `resolve` turns it into a `Plan`, one `Cast`
for every operand of every layer of one model. The six operands of a layer's three products are
those of a forward, an input-gradient and a weight-gradient product; a role's name alone means
all of its operands. `altcore.recipes` reads recipes from files.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any, TypeAlias

from attrs import evolve, field, frozen
from attrs.validators import and_, ge, gt, in_, le, lt, optional

from altcore.errors import BadInput, nearest
from altcore.formats import AnyFormat, BlockFormat, Format, ScaleRule, saved

ROLES = (
    "weight",
    "activation",
    "gradient",
    "weight_gradient",
    "stored_weight",
    "optimizer_state",
    "attention",
)
OPERANDS = (
    "weight@fwd",
    "activation@fwd",
    "gradient@dgrad",
    "weight@dgrad",
    "gradient@wgrad",
    "activation@wgrad",
    "weight_gradient",
    "stored_weight",
    "optimizer_state",
    "attention@query",
    "attention@key",
    "attention@probability",
    "attention@value",
    "weight@lookup",
)
PRODUCT_OPERANDS = OPERANDS[:6]
PRODUCTS = (
    ("activation@fwd", "weight@fwd"),
    ("gradient@dgrad", "weight@dgrad"),
    ("gradient@wgrad", "activation@wgrad"),
)
"""The two operands of each of a layer's products."""
ATTENTION_OPERANDS = OPERANDS[9:13]
"""Those of attention's two products: query by key, and probability by value."""
LOOKUP = "weight@lookup"
"""A weight used outside a product: looked up in an embedding, or added as a position table."""
STORED = ("stored_weight", "optimizer_state")
SELECTORS = ("<linear>", "<conv>", "<embedding>", "<other>", "<attention>", "<head>", "<any>")
"""Patterns that match layers by what they are. ``<other>`` is every module with a parameter of two
or more dimensions that is none of the first three: experts, recurrent layers, position tables.
``<any>`` is every layer that has such a parameter."""

SHARES = re.compile(r"<(first|last) ([1-9]\d?|100)%>")
"""``<first N%>`` and ``<last N%>``: so many of the linear and convolutional layers, in the
model's order and without the output head."""

SCALINGS = ("none", "tensor", "channel", "block", "delayed", "rms")
STRAIGHT_THROUGH = ("identity", "clipped")


def operands_of(role: str) -> tuple[str, ...]:
    """Return the operands that a role or operand name means; `BadInput` if unknown.

    >>> operands_of("weight")
    ('weight@fwd', 'weight@dgrad', 'weight@lookup')
    """
    found = tuple(o for o in OPERANDS if role in (o, o.partition("@")[0]))
    if not found:
        known = (*ROLES, *PRODUCT_OPERANDS)
        raise BadInput(f"unknown role {role!r}{nearest(role, known)}: one of {', '.join(known)}")
    return found


@frozen
class Scaling:
    """How a tensor's scale comes about.

    ``tensor``: its largest magnitude (amax) meets the format's largest value. ``channel``: so for
    each slice along the product's reduction axis. ``block``: so for each ``block`` elements along
    it. ``delayed``: the largest of the last ``history`` amax of the tensor. ``rms``: the tensor's
    root mean square meets 1, where tapered formats are finest. ``none``: scale 1.

    ``quantile`` takes the magnitude that this share of the elements does not pass instead of
    amax. ``margin`` multiplies amax; with ``power_of_two`` the scale is the smallest power of two
    that holds it.
    """

    kind: str = field(default="tensor", validator=in_(SCALINGS))
    power_of_two: bool = False
    margin: float = field(default=1.0, validator=[gt(0), lt(math.inf)])
    history: int = field(default=16, validator=ge(1))
    block: int = field(default=32, validator=ge(1))
    quantile: float | None = field(default=None, validator=optional(and_(gt(0), le(1))))

    def __attrs_post_init__(self) -> None:
        if self.kind == "block" and (self.margin != 1 or self.quantile is not None):
            raise ValueError("blocks are scaled by their amax: no margin and no quantile")
        if self.kind in ("none", "rms") and self.quantile is not None:
            raise ValueError(f"the scaling {self.kind} has no amax for a quantile to stand for")

    @property
    def uses_amax(self) -> bool:
        """Whether no value of the tensor can overflow, by construction."""
        by_amax = self.kind in ("tensor", "channel", "block") and self.quantile in (None, 1)
        return by_amax and self.margin >= 1

    @property
    def suits_storage(self) -> bool:
        """Whether what is stored, which has one scale of its own, can have it."""
        by_size = self.kind in ("none", "tensor", "rms")
        return by_size and self.margin == 1 and self.quantile is None

    def to_plain(self) -> dict[str, Any]:
        """Return the scaling as a recipe file writes it."""
        return {
            "kind": self.kind,
            "power_of_two": self.power_of_two,
            "margin": self.margin,
            "history": self.history,
            "block": self.block,
            "quantile": self.quantile,
        }


@frozen(slots=False)
class Cast:
    """What happens to one operand: its format, scaling, rounding and overflow rule.

    ``hadamard``: 0, or the length of the pieces that are multiplied by a random Hadamard matrix
    before, along the product's reduction axis; both operands of a product have the same.
    ``straight_through``: the gradient passes the rounding as it is (``identity``), or only where
    the operand did not pass the format's range (``clipped``).
    """

    format: AnyFormat
    scaling: Scaling
    rounding: str = "nearest-even"
    overflow: str = "saturate"
    hadamard: int = 0
    straight_through: str = "identity"

    @property
    def element(self) -> Format:
        """The format of single values: that of a block format's elements, or the format."""
        return self.format.element if isinstance(self.format, BlockFormat) else self.format

    @cached_property
    def blocks(self) -> BlockFormat | None:
        """The block format, where blocks have scales of their own."""
        if isinstance(self.format, BlockFormat):
            return self.format
        if self.scaling.kind != "block":
            return None
        rule: ScaleRule = "power-of-two" if self.scaling.power_of_two else "amax"
        length = self.scaling.block
        return BlockFormat(f"{self.format.name} in blocks of {length}", self.format, length, rule)

    @property
    def has_axis(self) -> bool:
        """Whether the result depends on the axis along which a product sums."""
        if self.blocks is not None and not self.blocks.is_square:
            return True
        return self.hadamard > 0 or self.scaling.kind == "channel"

    @property
    def uses_amax(self) -> bool:
        """Whether no value can overflow, by construction; a block format's rule may clip."""
        return self.scaling.uses_amax and not isinstance(self.format, BlockFormat)

    def to_plain(self) -> dict[str, Any]:
        """Return the cast as a recipe file writes it."""
        return {
            "format": saved(self.format),
            "scaling": self.scaling.to_plain(),
            "rounding": self.rounding,
            "overflow": self.overflow,
            "hadamard": self.hadamard,
            "straight_through": self.straight_through,
        }


Casts: TypeAlias = Mapping[str, Cast | None]
Plan: TypeAlias = Mapping[str, Casts]
"""Layer name -> operand -> Cast, None where the operand is left alone."""


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
        return pattern == f"<{self.kind}>" or fnmatchcase(self.name, pattern)

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


def matching(layers: Sequence[Layer], pattern: str) -> list[Layer]:
    """Return the layers that a recipe's pattern or selector means."""
    share = SHARES.fullmatch(pattern)
    if share is None:
        return [layer for layer in layers if layer.matches(pattern)]
    inner = [x for x in layers if x.kind in ("linear", "conv") and not x.is_head]
    count = round(len(inner) * int(share[2]) / 100)
    return inner[:count] if share[1] == "first" else inner[len(inner) - count :]


def is_selector(pattern: str) -> bool:
    """Whether a pattern means layers by what they are or where they lie, not by name."""
    return pattern in SELECTORS or SHARES.fullmatch(pattern) is not None


@frozen
class Rule:
    """Casts for the layers that a pattern matches."""

    pattern: str
    casts: Mapping[str, Cast | None]


@frozen
class Recipe:
    """Rules, the last match winning. The first rules are the defaults of the recipe's top level."""

    name: str
    rules: tuple[Rule, ...]
    source: str = ""

    def resolve(self, layers: Sequence[Layer]) -> dict[str, dict[str, Cast | None]]:
        """Return the `Plan` for a model's layers.

        Raises `BadInput` for a pattern that matches no layer: it is always a typo.
        """
        plan: dict[str, dict[str, Cast | None]] = {
            layer.name: dict.fromkeys(OPERANDS) for layer in layers
        }
        for rule in self.rules:
            hits = matching(layers, rule.pattern)
            if not hits and not is_selector(rule.pattern):
                names = [layer.name for layer in layers]
                raise BadInput(
                    f"recipe {self.name}{self.source}: pattern {rule.pattern!r} matches no layer"
                    f"{nearest(rule.pattern, names)}: layers are {some(names)}"
                )
            self._check_reach(rule, hits)
            for layer in hits:
                taken = {o: c for o, c in rule.casts.items() if layer.takes(o)}
                plan[layer.name].update(
                    _fitting(layer, taken) if is_selector(rule.pattern) else taken
                )
        return plan

    def _check_reach(self, rule: Rule, hits: Sequence[Layer]) -> None:
        """Raise `BadInput` where a rule casts what none of the layers it matches can have.

        Of a role, some layer has to take one operand: embeddings have weight@lookup alone.
        """
        taken = {
            (o.partition("@")[0], id(c))
            for o, c in rule.casts.items()
            if any(layer.takes(o) for layer in hits)
        }
        for operand, cast in rule.casts.items():
            role = operand.partition("@")[0]
            if cast is not None and hits and (role, id(cast)) not in taken:
                raise BadInput(
                    f"recipe {self.name}{self.source}: pattern {rule.pattern!r} says {operand}, "
                    f"which none of its layers has: {some([layer.name for layer in hits])}"
                )


def _fitting(layer: Layer, casts: Mapping[str, Cast | None]) -> dict[str, Cast | None]:
    """Leave out a rule's Hadamard transforms where a layer, of the many it means, has none."""
    return {
        o: evolve(c, hadamard=0) if c and c.hadamard and not takes_hadamard(layer.kind, o) else c
        for o, c in casts.items()
    }


def takes_hadamard(kind: str, operand: str) -> bool:
    """Whether an operand's product sums along one axis, which both operands have."""
    return operand in PRODUCT_OPERANDS and kind != "conv"


def some(names: Sequence[str], limit: int = 8) -> str:
    """Return the first few names, as messages list them."""
    shown = ", ".join(names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "") or "none"


def default_scaling(fmt: AnyFormat) -> Scaling:
    """Return the scaling of a format where the recipe names none: exact amax, per tensor.

    A format with the range of float32 (BF16) needs no scale and gets none: an exact amax scale
    would only move its grid off the powers of two. In a tapered one (a posit) the largest values
    are the coarsest, and one with a single magnitude has nothing below it: there the root mean
    square is brought to 1. A block format brings its own.
    """
    if isinstance(fmt, BlockFormat):
        return Scaling("block", block=fmt.block)
    if fmt.max >= 2.0**126:
        return Scaling("none")
    return Scaling("rms") if is_tapered(fmt) else Scaling("tensor")


@cache
def is_tapered(fmt: Format) -> bool:
    """Whether values are finest for their size at 1, and much coarser at the largest."""
    positive = [v for v in fmt.values if v > 0]
    if len(positive) < 2:
        return positive == [1.0]
    steps = {a: b / a - 1 for a, b in itertools.pairwise(positive)}
    at_one = steps.get(1.0, math.inf)
    *_, last = steps.values()
    # Within a binade steps shrink by half, for the size of the values.
    return last > 4 * at_one and at_one <= 2 * min(steps.values())


def change(
    plan: Plan,
    layers: Sequence[str],
    roles: Sequence[str],
    **parts: Any,
) -> dict[str, dict[str, Cast | None]]:
    """Return the plan with ``parts`` (format, scaling, rounding) changed.

    ``layers`` are patterns; empty ``roles`` mean every operand that is quantized now. A format
    of None leaves the operand alone from now on. Raises `BadInput` when no layer matches.
    """
    operands = {o for role in roles for o in operands_of(role)} or set(OPERANDS)
    changed = {name: dict(casts) for name, casts in plan.items()}
    hits = [n for n in plan if any(fnmatchcase(n, p) for p in layers)]
    if not hits:
        raise BadInput(f"a change of recipe for {some(list(layers))} matches no layer")
    for name in hits:
        for operand in operands:
            before = plan[name][operand]
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
    # The new format may have no code for what the old one made of an overflow.
    return (
        evolve(changed, overflow="saturate")
        if not can(changed.format, changed.overflow)
        else changed
    )


def can(fmt: AnyFormat, overflow: str) -> bool:
    """Whether a format has the code that an overflow rule asks for."""
    if isinstance(fmt, BlockFormat):
        return overflow == "saturate"
    codes = {"inf": fmt.inf_codes, "nan": fmt.nan_codes}
    return codes.get(overflow) != ()


def formats_in(plan: Plan) -> list[AnyFormat]:
    """Return the formats of a plan's casts, each once."""
    return list(dict.fromkeys(c.format for casts in plan.values() for c in casts.values() if c))


def plan_to_plain(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return a plan as plain data, for checkpoints and records."""
    return {
        name: {o: c.to_plain() for o, c in casts.items() if c is not None}
        for name, casts in plan.items()
    }
