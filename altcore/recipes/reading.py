"""Reading recipes: from plain data, from files, and the named ones that lie here as .yaml.

In a recipe's text ``FORMAT`` stands for the format that the run names (``--format``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from altcore.errors import BadInput, nearest
from altcore.formats import (
    OVERFLOWS,
    ROUNDINGS,
    AnyFormat,
    BlockFormat,
    Format,
    get_format,
    is_file,
    is_plain,
    saved,
)
from altcore.python_values import as_python
from altcore.recipes.recipe import (
    ATTENTION_OPERANDS,
    LOOKUP,
    OPERANDS,
    PRODUCT_OPERANDS,
    ROLES,
    SCALINGS,
    SELECTORS,
    STORED,
    STRAIGHT_THROUGH,
    Cast,
    Recipe,
    Rule,
    Scaling,
    can,
    default_scaling,
    is_selector,
    operands_of,
)
from altcore.registry import kind_of
from altcore.yaml_files import SUFFIXES as SUFFIXES

PLACEHOLDER = "FORMAT"
_SCALING_TYPES = {
    "power_of_two": bool,
    "margin": (int, float),
    "history": int,
    "block": int,
    "quantile": (int, float),
}
_NO_ROLES = ("name", "skip", "layers")
CAST_KEYS = ("format", "scaling", "rounding", "overflow", "hadamard", "straight_through")


def make_cast(value: Any, where: str) -> Cast | None:
    """Make a cast of what a recipe says for a role: a format's name, ``none``, or a mapping.

    ``where`` names the key in messages.
    """
    if value is None or value == "none":
        return None
    if isinstance(value, Cast):
        return value
    if isinstance(value, str | Format | BlockFormat) or _is_format(value):
        fmt = _format(value, where)
        return Cast(fmt, default_scaling(fmt))
    if not isinstance(value, Mapping):
        raise BadInput(
            f"{where}: {value!r} is neither a format's name, nor none, nor a mapping of "
            + ", ".join(CAST_KEYS)
        )
    _refuse_unknown(value, CAST_KEYS, where)
    if "format" not in value:
        raise BadInput(f"{where}: format is missing")
    if value["format"] in (None, "none"):
        return None
    fmt = _format(value["format"], where)
    overflow = _choice(value.get("overflow", "saturate"), OVERFLOWS, f"{where}.overflow")
    if not can(fmt, overflow):
        why = "clips" if isinstance(fmt, BlockFormat) else f"has no {overflow} code"
        raise BadInput(f"{where}.overflow: format {fmt.name} {why}")
    if value.get("hadamard") and value.get("straight_through") == "clipped":
        raise BadInput(
            f"{where}.straight_through: after a Hadamard transform no element of the tensor is the "
            "one that was clipped"
        )
    return Cast(
        format=fmt,
        scaling=_scaling(value.get("scaling"), fmt, f"{where}.scaling"),
        rounding=_choice(value.get("rounding", "nearest-even"), ROUNDINGS, f"{where}.rounding"),
        overflow=overflow,
        hadamard=_hadamard(value.get("hadamard", 0), f"{where}.hadamard"),
        straight_through=_choice(
            value.get("straight_through", "identity"), STRAIGHT_THROUGH, f"{where}.straight_through"
        ),
    )


def _is_format(value: Any) -> bool:
    """Whether a role's mapping is a format in plain form: a cast has ``format`` instead."""
    if not isinstance(value, Mapping) or "format" in value:
        return False
    return "name" in value or is_plain(value)


def _hadamard(value: Any, where: str) -> int:
    if type(value) is not int or value < 0 or value & (value - 1) or value == 1:
        raise BadInput(f"{where}: {value!r} is not 0 or a power of two from 2 up")
    return value


def _format(value: Any, where: str) -> AnyFormat:
    if value == PLACEHOLDER:
        raise BadInput(f"{where}: FORMAT stands for the run's format, and none is given")
    try:
        return get_format(value)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def _scaling(value: Any, fmt: AnyFormat, where: str) -> Scaling:
    if value is None:
        return default_scaling(fmt)
    scaling = value if isinstance(value, Scaling) else _parse_scaling(value, where)
    if isinstance(fmt, BlockFormat) and scaling != default_scaling(fmt):
        raise BadInput(f"{where}: format {fmt.name} brings its own scaling: leave this out")
    return scaling


def _parse_scaling(value: Any, where: str) -> Scaling:
    if isinstance(value, str):
        if value == "power-of-two":
            return Scaling("tensor", power_of_two=True)
        return Scaling(_choice(value, (*SCALINGS, "power-of-two"), where))
    if not isinstance(value, Mapping):
        raise BadInput(f"{where}: {value!r} is neither {', '.join(SCALINGS)} nor a mapping")
    _refuse_unknown(value, ("kind", *_SCALING_TYPES), where)
    for key, kind in _SCALING_TYPES.items():
        given = value.get(key)
        if key not in value or (key == "quantile" and given is None):
            continue
        if not isinstance(given, kind) or isinstance(given, bool) != (kind is bool):  # type: ignore[arg-type] # a type or a tuple of types: isinstance takes both
            raise BadInput(f"{where}.{key}: {given!r} has the wrong type")
    try:
        return Scaling(**{**value, "kind": _choice(value.get("kind", "tensor"), SCALINGS, where)})
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error


def _choice(value: Any, known: Sequence[str], where: str) -> str:
    if not isinstance(value, str) or value not in known:
        hint = nearest(value, known)
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

    ``{role or operand: format or none or {format, scaling, rounding, ...}; skip: [patterns];
    layers: {pattern: {role: ...}}}``. Top-level roles of products mean every layer that multiplies
    by a parameter of two or more dimensions, those of attention every attention layer,
    stored_weight and optimizer_state every such parameter, weight@lookup (which weight leaves out)
    every lookup. The last match wins, ``skip`` last of all. A ``name`` among the keys goes before
    the one given here; ``source`` (`` in FILE``) is named in messages.
    """
    where, data = f"recipe {name}{source}", as_python(data)
    if not isinstance(data, Mapping):
        raise BadInput(f"{where} is not a mapping of roles to formats")
    name = own_name(data, name)
    where = f"recipe {name}{source}"
    keys = (*ROLES, *(o for o in OPERANDS if "@" in o))
    _refuse_unknown(data, (*keys, *_NO_ROLES), where)
    roles = {k: v for k, v in data.items() if k not in _NO_ROLES}
    casts = _casts(roles, where)
    products = {o: c for o, c in casts.items() if o in (*PRODUCT_OPERANDS, "weight_gradient")}
    rules = [
        Rule("<linear>", products),
        Rule("<conv>", products),
        Rule("<other>", products),
        Rule("<attention>", {o: c for o, c in casts.items() if o in ATTENTION_OPERANDS}),
        Rule("<any>", {o: c for o, c in casts.items() if o in STORED}),
    ]
    if LOOKUP in roles:  # by its own name only: the role weight means products here
        rules.append(Rule("<any>", {LOOKUP: casts[LOOKUP]}))
    layers = data.get("layers") or {}
    if not isinstance(layers, Mapping):
        raise BadInput(f"{where}: layers is a mapping of patterns to roles")
    for pattern, given in layers.items():
        if not isinstance(given, Mapping):
            raise BadInput(f"{where}: layers.{pattern} is a mapping of roles to formats")
        _refuse_unknown(given, keys, f"{where}: layers.{pattern}")
        rules.append(Rule(_pattern(pattern, where), _casts(given, f"{where}: layers.{pattern}")))
    skip = data.get("skip") or []
    if isinstance(skip, str) or not isinstance(skip, Sequence):
        raise BadInput(f"{where}: skip is a list of patterns")
    rules += [Rule(_pattern(p, where), dict.fromkeys(OPERANDS)) for p in skip]
    return Recipe(name, tuple(r for r in rules if r.casts), source)


def own_name(data: Mapping[str, Any], otherwise: str) -> str:
    """Return what a recipe in plain form calls itself; ``otherwise`` where it does not.

    Raises `BadInput` for what cannot be a name.
    """
    name = data.get("name", otherwise)
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise BadInput(f"recipe {otherwise}: name: {name!r} is not a line of text")
    return name


def _pattern(pattern: Any, where: str) -> str:
    if not isinstance(pattern, str):
        raise BadInput(f"{where}: the pattern {pattern!r} is not text")
    if pattern.startswith("<") and not is_selector(pattern):
        raise BadInput(
            f"{where}: unknown selector {pattern!r}{nearest(pattern, SELECTORS)}: "
            f"one of {', '.join(SELECTORS)}, <first N%>, <last N%>"
        )
    return pattern


def _casts(given: Mapping[str, Any], where: str) -> dict[str, Cast | None]:
    # A role first and its operands after it, so that the narrower one wins.
    casts: dict[str, Cast | None] = {}
    for role in sorted(given, key=lambda r: "@" in r):
        at = f"{where}: {role}"
        cast = make_cast(given[role], at)
        if cast is not None:
            _check_role(role, cast, at)
        casts.update(dict.fromkeys(operands_of(role), cast))
    return casts


def _check_role(role: str, cast: Cast, where: str) -> None:
    """Refuse what a role cannot have."""
    if role in STORED and not cast.scaling.suits_storage:
        raise BadInput(
            f"{where}: what is stored has one scale of its own: none, tensor, power-of-two or "
            f"rms, without margin or quantile; {cast.format.name} has {cast.scaling.kind} scaling"
        )
    products = role.partition("@")[0] in ("weight", "activation", "gradient")
    if cast.hadamard and not products:
        raise BadInput(f"{where}.hadamard: only the operands of a layer's products have one")
    if cast.straight_through == "clipped" and role.partition("@")[0] not in (
        "weight",
        "activation",
    ):
        raise BadInput(f"{where}.straight_through: only weight and activation pass a gradient")


NAMED = tuple(
    sorted(
        p.name.removesuffix(".yaml")
        for p in files("altcore.recipes").iterdir()
        if p.name.endswith(".yaml")
    )
)


@cache
def _named_text(name: str) -> Any:
    return yaml.safe_load((files("altcore.recipes") / f"{name}.yaml").read_text())


def needs_format(data: Any) -> bool:
    """Whether a recipe, in its plain form, speaks of the run's format."""
    if isinstance(data, Mapping):
        return any(needs_format(v) for k, v in data.items() if not _is_name(k, v))
    return isinstance(data, str) and data == PLACEHOLDER


def _is_name(key: Any, value: Any) -> bool:
    """Whether this is what a recipe calls itself; a layer may have the name ``name``."""
    return bool(key == "name") and not isinstance(value, Mapping)


def takes_format(name: str) -> bool:
    """Whether the named recipe is one for the run's format, rather than for its own."""
    return needs_format(_named_text(name))


def has_own_formats(recipe: Any) -> bool:
    """Whether a recipe, by name or in plain form, needs no format of the run."""
    return not (takes_format(recipe) if recipe in NAMED else needs_format(recipe))


def with_format(data: Any, fmt: AnyFormat | str | None) -> Any:
    """Return the recipe's plain form with the run's format in its place; None leaves the word.

    Raises `BadInput` for a format that the recipe has no place for.
    """
    if fmt is None:
        return data
    if not needs_format(data):
        raise BadInput(f"format {fmt}: only a recipe that says {PLACEHOLDER} takes one")
    return _filled(data, fmt)


def _filled(data: Any, fmt: AnyFormat | str) -> Any:
    if isinstance(data, Mapping):
        return {k: v if _is_name(k, v) else _filled(v, fmt) for k, v in data.items()}
    return fmt if isinstance(data, str) and data == PLACEHOLDER else data


def named(name: str, fmt: AnyFormat | None = None) -> Recipe:
    """Return a named recipe with the run's format ``fmt``; without one it quantizes nothing.

    What each does is said in its file. ``master``, ``pure`` and ``original`` take any format;
    ``mxfp8`` and ``nvfp4`` have their own, and ``fmt`` must be None.
    """
    if name not in NAMED and kind_of(name) == "format":
        raise BadInput(
            f"recipe: {name} is a format, not a recipe: train takes it by --format {name}"
        )
    if name not in NAMED:
        raise BadInput(
            f"unknown recipe {name!r}{nearest(name, NAMED)}: one of {', '.join(NAMED)}, "
            "or a file that ends in .yaml"
        )
    if fmt is not None and not takes_format(name):
        raise BadInput(f"recipe {name} has formats of its own: leave out the format {fmt.name}")
    return parse(_filled(_named_text(name), "none" if fmt is None else fmt), name)


def self_contained(recipe: Any) -> Any:
    """Return a recipe's plain form with what is in formats' files in the place of their names.

    Anything but a mapping is returned as it is. Raises `BadInput` for a file that holds no format.
    """
    if not isinstance(recipe, Mapping):
        return recipe
    made = _without_files(recipe, "")
    if isinstance(layers := recipe.get("layers"), Mapping):
        made["layers"] = {p: _without_files(r, f"layers.{p}.") for p, r in layers.items()}
    return made


def _without_files(roles: Any, where: str) -> Any:
    if not isinstance(roles, Mapping):
        return roles
    made = dict(roles)
    for role, value in roles.items():
        if is_file(value) and role not in _NO_ROLES:
            made[role] = saved(_format(value, f"recipe: {where}{role}"))
        elif isinstance(value, Mapping) and is_file(value.get("format")):
            fmt = _format(value["format"], f"recipe: {where}{role}.format")
            made[role] = {**value, "format": saved(fmt)}
    return made


def plan_from_plain(data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Cast | None]]:
    """Return the plan that `plan_to_plain` wrote."""
    return {
        name: {o: make_cast(casts.get(o), f"{name}.{o}") for o in OPERANDS}
        for name, casts in data.items()
    }
