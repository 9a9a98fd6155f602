"""Recipes: which format, scaling and rounding each tensor role has, by layer. Data, no torch.

A `Recipe` is what the user writes, with patterns; `resolve` turns it into a `Plan`, one `Cast`
for every operand of every layer of one model. The six operands of a layer's three products are
those of a forward, an input-gradient and a weight-gradient product; a role's name alone means
all of its operands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from attrs import evolve, field, frozen
from attrs.validators import ge, gt, in_

from altcore.errors import BadInput, nearest
from altcore.formats import Format
from altcore.reference import OVERFLOWS, ROUNDINGS
from altcore.registry import get_format

ROLES = (
    "weight",
    "activation",
    "gradient",
    "weight_gradient",
    "stored_weight",
    "optimizer_state",
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
)
PRODUCT_OPERANDS = OPERANDS[:6]
STORED = ("stored_weight", "optimizer_state")
SELECTORS = ("<linear>", "<embedding>", "<head>", "<any>")
"""Patterns that match layers by what they are; ``<any>`` is every layer that has a parameter of
two or more dimensions."""

SCALINGS = ("none", "tensor", "delayed")


def operands_of(role: str) -> tuple[str, ...]:
    """Return the operands that a role or operand name means; `BadInput` if unknown.

    >>> operands_of("weight")
    ('weight@fwd', 'weight@dgrad')
    """
    found = tuple(o for o in OPERANDS if role in (o, o.partition("@")[0]))
    if not found:
        known = (*ROLES, *PRODUCT_OPERANDS)
        raise BadInput(f"unknown role {role!r}{nearest(role, known)}: one of {', '.join(known)}")
    return found


@frozen
class Scaling:
    """How a tensor's scale comes about.

    ``tensor``: its largest magnitude meets the format's largest value. ``delayed``: the largest
    of the last ``history`` amax. ``none``: scale 1. ``margin`` multiplies amax; with
    ``power_of_two`` the scale is the smallest power of two that holds it.
    """

    kind: str = field(default="tensor", validator=in_(SCALINGS))
    power_of_two: bool = False
    margin: float = field(default=1.0, validator=gt(0))
    history: int = field(default=16, validator=ge(1))

    @property
    def uses_amax(self) -> bool:
        """Whether no value of the tensor can overflow, by construction."""
        return self.kind == "tensor" and self.margin >= 1

    def to_plain(self) -> dict[str, Any]:
        """Return the scaling as a recipe file writes it."""
        return {
            "kind": self.kind,
            "power_of_two": self.power_of_two,
            "margin": self.margin,
            "history": self.history,
        }


@frozen
class Cast:
    """What happens to one operand: its format, scaling, rounding and overflow rule."""

    format: Format
    scaling: Scaling
    rounding: str = "nearest-even"
    overflow: str = "saturate"

    def to_plain(self) -> dict[str, Any]:
        """Return the cast as a recipe file writes it."""
        return {
            "format": self.format.name,
            "scaling": self.scaling.to_plain(),
            "rounding": self.rounding,
            "overflow": self.overflow,
        }


Casts: TypeAlias = Mapping[str, Cast | None]
Plan: TypeAlias = Mapping[str, Casts]
"""Layer name -> operand -> Cast, None where the operand is left alone."""


@frozen
class Layer:
    """What a recipe has to know of one layer of a model."""

    name: str
    kind: str
    """``linear``, ``embedding`` or ``other``."""
    is_head: bool = False

    def matches(self, pattern: str) -> bool:
        """Whether a recipe's pattern or selector means this layer."""
        if pattern in SELECTORS:
            return (
                pattern == "<any>"
                or pattern == f"<{self.kind}>"
                or (pattern == "<head>" and self.is_head)
            )
        return fnmatchcase(self.name, pattern)


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
            hits = [layer for layer in layers if layer.matches(rule.pattern)]
            if not hits and rule.pattern not in SELECTORS:
                names = [layer.name for layer in layers]
                raise BadInput(
                    f"recipe {self.name}{self.source}: pattern {rule.pattern!r} matches no layer"
                    f"{nearest(rule.pattern, names)}: layers are {_some(names)}"
                )
            for layer in hits:
                plan[layer.name].update(rule.casts)
        return plan


def _some(names: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(names[:limit])
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "") or "none"


def default_scaling(fmt: Format) -> Scaling:
    """Return the scaling of a format where the recipe names none: exact amax, per tensor.

    A format with the range of float32 (BF16) needs no scale and gets none: an exact amax scale
    would only move its grid off the powers of two.
    """
    return Scaling("none") if fmt.max >= 2.0**126 else Scaling("tensor")


def make_cast(value: Any, where: str) -> Cast | None:
    """Make a cast of what a recipe says for a role: a format's name, ``none``, or a mapping.

    ``where`` names the key in messages.
    """
    if value is None or value == "none":
        return None
    if isinstance(value, Cast):
        return value
    if isinstance(value, str | Format):
        fmt = _format(value, where)
        return Cast(fmt, default_scaling(fmt))
    if not isinstance(value, Mapping):
        raise BadInput(
            f"{where}: {value!r} is neither a format's name, nor none, nor "
            "{format, scaling, rounding, overflow}"
        )
    known = ("format", "scaling", "rounding", "overflow")
    _refuse_unknown(value, known, where)
    if "format" not in value:
        raise BadInput(f"{where}: format is missing")
    if value["format"] in (None, "none"):
        return None
    fmt = _format(value["format"], where)
    rounding = _choice(value.get("rounding", "nearest-even"), ROUNDINGS, f"{where}.rounding")
    overflow = _choice(value.get("overflow", "saturate"), OVERFLOWS, f"{where}.overflow")
    codes = {"inf": fmt.inf_codes, "nan": fmt.nan_codes}
    if overflow in codes and not codes[overflow]:
        raise BadInput(f"{where}.overflow: format {fmt.name} has no {overflow} code")
    return Cast(fmt, _scaling(value.get("scaling"), fmt, where), rounding, overflow)


def _format(value: Any, where: str) -> Format:
    try:
        return get_format(value)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def _scaling(value: Any, fmt: Format, where: str) -> Scaling:
    where = f"{where}.scaling"
    if value is None:
        return default_scaling(fmt)
    if isinstance(value, Scaling):
        return value
    if isinstance(value, str):
        if value == "power-of-two":
            return Scaling("tensor", power_of_two=True)
        return Scaling(_choice(value, (*SCALINGS, "power-of-two"), where))
    if not isinstance(value, Mapping):
        raise BadInput(f"{where}: {value!r} is neither {', '.join(SCALINGS)} nor a mapping")
    _refuse_unknown(value, ("kind", "power_of_two", "margin", "history"), where)
    kinds = {"power_of_two": bool, "margin": (int, float), "history": int}
    for key, kind in kinds.items():
        given = value.get(key)
        boolean = isinstance(given, bool)
        if given is not None and (not isinstance(given, kind) or boolean != (kind is bool)):  # type: ignore[arg-type] # a type or a tuple of types: isinstance takes both
            raise BadInput(f"{where}.{key}: {given!r} has the wrong type")
    try:
        return Scaling(**{**value, "kind": _choice(value.get("kind", "tensor"), SCALINGS, where)})
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error


def _choice(value: Any, known: Sequence[str], where: str) -> str:
    if not isinstance(value, str) or value not in known:
        hint = nearest(value, known) if isinstance(value, str) else ""
        raise BadInput(f"{where}: {value!r} is unknown{hint}: one of {', '.join(known)}")
    return value


def _refuse_unknown(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise BadInput(
                f"{where}: unknown key {key!r}{nearest(str(key), known)}: one of {', '.join(known)}"
            )


def parse(data: Any, name: str, source: str = "") -> Recipe:
    """Make a recipe of its plain form.

    ``{role or operand: FORMAT or none or {format, scaling, rounding, overflow}; skip: [patterns];
    layers: {pattern: {role: ...}}}``. Top-level roles of products mean every linear layer,
    stored_weight and optimizer_state every parameter of two or more dimensions. The last match
    wins, ``skip`` last of all. ``source`` (`` in FILE``) is named in messages.
    """
    where = f"recipe {name}{source}"
    if not isinstance(data, Mapping):
        raise BadInput(f"{where} is not a mapping of roles to formats")
    top = (*ROLES, *PRODUCT_OPERANDS, "skip", "layers")
    _refuse_unknown(data, top, where)
    roles = {k: v for k, v in data.items() if k not in ("skip", "layers")}
    casts = _casts(roles, where)
    rules = [
        Rule("<linear>", {o: c for o, c in casts.items() if o not in STORED}),
        Rule("<any>", {o: c for o, c in casts.items() if o in STORED}),
    ]
    layers = data.get("layers") or {}
    if not isinstance(layers, Mapping):
        raise BadInput(f"{where}: layers is a mapping of patterns to roles")
    for pattern, given in layers.items():
        if not isinstance(given, Mapping):
            raise BadInput(f"{where}: layers.{pattern} is a mapping of roles to formats")
        _refuse_unknown(given, (*ROLES, *PRODUCT_OPERANDS), f"{where}: layers.{pattern}")
        rules.append(Rule(_pattern(pattern, where), _casts(given, f"{where}: layers.{pattern}")))
    skip = data.get("skip") or []
    if isinstance(skip, str) or not isinstance(skip, Sequence):
        raise BadInput(f"{where}: skip is a list of patterns")
    rules += [Rule(_pattern(p, where), dict.fromkeys(OPERANDS)) for p in skip]
    return Recipe(name, tuple(r for r in rules if r.casts), source)


def _pattern(pattern: Any, where: str) -> str:
    if not isinstance(pattern, str):
        raise BadInput(f"{where}: the pattern {pattern!r} is not text")
    if pattern.startswith("<") and pattern not in SELECTORS:
        raise BadInput(
            f"{where}: unknown selector {pattern!r}{nearest(pattern, SELECTORS)}: "
            f"one of {', '.join(SELECTORS)}"
        )
    return pattern


def _casts(given: Mapping[str, Any], where: str) -> dict[str, Cast | None]:
    # A role first and its operands after it, so that the narrower one wins.
    casts: dict[str, Cast | None] = {}
    for role in sorted(given, key=lambda r: "@" in r):
        cast = make_cast(given[role], f"{where}: {role}")
        if role in STORED and cast and (cast.scaling.kind == "delayed" or cast.scaling.margin != 1):
            raise BadInput(
                f"{where}: {role}.scaling: what is stored has a scale of its own: none, tensor or "
                "power-of-two, without margin"
            )
        casts.update(dict.fromkeys(operands_of(role), cast))
    return casts


NAMED = ("master", "pure", "original")


def named(name: str, fmt: Format | None) -> Recipe:
    """Return a named recipe with the format ``fmt``; with None nothing is quantized.

    master
        weight, activation and gradient of every Linear but the output head, over float32
        master weights.
    pure
        also all parameters of two or more dimensions *stored* on the format's grid.
    original
        what the original experiments did: weights of two or more dimensions in the forward
        pass, with the largest of the last 16 amax times 1.01, and weight gradients with their
        own amax times 1.01.
    """
    if name not in NAMED:
        raise BadInput(
            f"unknown recipe {name!r}{nearest(name, NAMED)}: one of {', '.join(NAMED)}, "
            "or a file that ends in .yaml"
        )
    if fmt is None:
        return parse({}, name)
    if name == "original":
        delayed = {"kind": "delayed", "history": 16, "margin": 1.01}
        current = {"kind": "tensor", "margin": 1.01}
        return parse(
            {
                "layers": {
                    "<any>": {
                        "weight@fwd": {"format": fmt, "scaling": delayed},
                        "weight@dgrad": {"format": fmt, "scaling": delayed},
                        "weight_gradient": {"format": fmt, "scaling": current},
                    }
                }
            },
            name,
        )
    kept = dict.fromkeys(("weight", "activation", "gradient"), "none")
    data: dict[str, Any] = dict.fromkeys(kept, fmt)
    data["layers"] = {"<head>": kept}
    if name == "pure":
        data["stored_weight"] = fmt
    return parse(data, name)


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
        raise BadInput(f"a change of recipe for {_some(list(layers))} matches no layer")
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
        # A shift to or from a format with float32's range takes that format's own scaling.
        old, own = default_scaling(before.format), default_scaling(parts["format"])
        if before.scaling.kind == old.kind != own.kind:
            parts = {**parts, "scaling": own}
    changed = evolve(before, **parts)
    # The new format may have no code for what the old one made of an overflow.
    codes = {"inf": changed.format.inf_codes, "nan": changed.format.nan_codes}
    return evolve(changed, overflow="saturate") if codes.get(changed.overflow) == () else changed


def plan_to_plain(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return a plan as plain data, for checkpoints and records."""
    return {
        name: {o: c.to_plain() for o, c in casts.items() if c is not None}
        for name, casts in plan.items()
    }


def plan_from_plain(
    data: Mapping[str, Mapping[str, Any]], formats: Mapping[str, Format] | None = None
) -> dict[str, dict[str, Cast | None]]:
    """Return the plan that `plan_to_plain` wrote; ``formats`` go before the installed ones."""

    def cast(plain: Any, where: str) -> Cast | None:
        if plain is None:
            return None
        name = plain["format"]
        return make_cast({**plain, "format": (formats or {}).get(name, name)}, where)

    return {
        name: {o: cast(casts.get(o), f"{name}.{o}") for o in OPERANDS}
        for name, casts in data.items()
    }
