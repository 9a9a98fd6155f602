"""Reading a recipe in any form in which it may be given.

A recipe is a name, a file, a mapping, a format, or a `Recipe`. In its text ``FORMAT`` stands for
the run's format (``--format``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from attrs import evolve

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, Source, keyed, nearest, shown
from altcore.formats import AnyFormat, check_names, get_format, is_plain, saved
from altcore.recipes.cast import Cast
from altcore.recipes.cast_reading import Place, check_role, read_cast, read_format, refuse_unknown
from altcore.recipes.layers import SELECTORS, is_selector
from altcore.recipes.named import NAMED, name_of, takes_format, text_of
from altcore.recipes.operands import (
    ATTENTION_OPERANDS,
    LOOKUP,
    OPERANDS,
    PRODUCT_OPERANDS,
    ROLES,
    STORED,
    operands_of,
)
from altcore.recipes.recipe import LayerRule, Recipe
from altcore.registry import kind_of
from altcore.yaml_files import SourcedDict, is_yaml_file, read_mapping, source_of, updated

RecipeLike: TypeAlias = str | Path | AnyFormat | Recipe | Mapping[str, Any]

_NO_ROLES = ("name", "skip", "layers")
_ROLE_KEYS = (*ROLES, *(o for o in OPERANDS if "@" in o))


def read_recipe(recipe: RecipeLike, format: AnyFormat | str | None = None) -> Recipe:
    """Return the recipe that is given in one of its forms.

    Args:
        recipe: the name of a recipe, the path of a file, a mapping, or a `Recipe`. Without
            ``format`` also a format or its name, which is the recipe ``master`` in it.
        format: stands for FORMAT; ``none`` makes a named recipe leave the operands alone that
            FORMAT is said for.

    Raises:
        BadInput: for an unknown name, for a mistake in the recipe, and for a format that is
            missing, does not go with the recipe, or has the name of another one.
    """
    run = format
    if format is not None and format != "none":
        with keyed("format"):
            run = format_of_run(format)
            check_names([run])
    given: Any = _contents(recipe)
    if isinstance(given, str) and given in NAMED:
        return _named(given, run)
    if isinstance(given, Mapping) and not (run is None and is_plain(given)):
        made = parse(given, format=None if run == "none" else run)
        # A mistake elsewhere may be the reason: a misspelt FORMAT.
        if run not in (None, "none") and not takes_format(given):
            raise _no_place(run)
        return made
    if isinstance(given, str) and run is not None:
        raise _unknown(given)
    if run not in (None, "none"):
        raise _no_place(run)
    return given if isinstance(given, Recipe) else _named("master", _as_format(given))


def format_of_run(given: Any) -> AnyFormat:
    """Return the format that a run is given, as `get_format` does; a recipe's name is none."""
    try:
        return get_format(given)
    except BadInput as error:
        if given not in NAMED:
            raise
        raise BadInput(
            f"{given} is a recipe, not a format", hint=f"train takes it by --recipe {given}"
        ) from error


def self_contained(recipe: Any) -> Any:
    """Return a recipe with the contents of files, its own and its formats', for their names.

    The element and the scale of an inline block format are whole, too: digests are recorded of
    a recipe's own names only. A name of something else is returned as it is. Raises `BadInput` for
    a file that cannot be read, or for one or an inline block format that is no format.
    """
    recipe = _contents(recipe)
    if not isinstance(recipe, Mapping):
        return recipe
    place = Place(name_of(recipe), source=source_of(recipe))
    made = _with_whole_formats(recipe, place)
    if isinstance(layers := recipe.get("layers"), Mapping):
        at = place.below(recipe, "layers")
        inner = {p: _with_whole_formats(roles, at.below(layers, p)) for p, roles in layers.items()}
        made = updated(made, {"layers": updated(layers, inner)})
    return made


def _with_whole_formats(roles: Any, place: Place) -> Any:
    if not isinstance(roles, Mapping):
        return roles
    made = {}
    for role in roles.keys() - set(_NO_ROLES):
        value, at = roles[role], place.below(roles, role, before=": ")
        if _refers_to_others(value):
            made[role] = saved(read_format(value, at))
        elif isinstance(value, Mapping) and _refers_to_others(value.get("format")):
            fmt = read_format(value["format"], at.below(value, "format"))
            made[role] = updated(value, {"format": saved(fmt)})
    return updated(roles, made)


def _refers_to_others(fmt: Any) -> bool:
    """Whether a format is a file, or an inline block format, whose parts may be names."""
    return is_yaml_file(fmt) or (isinstance(fmt, Mapping) and "element" in fmt)


def _contents(recipe: Any) -> Any:
    """Read a recipe's file; it is called by the file's name unless it names itself."""
    if not (isinstance(recipe, Path) or is_yaml_file(recipe)):
        return recipe
    path = str(recipe)
    held = read_mapping(path, "recipe")
    name = _own_name(held, Place(Path(path).name, source=Source(path)))
    sources = {key: source for key in held if (source := source_of(held, key))}
    return SourcedDict({"name": name, **held}, Source(path), sources)


def _named(name: str, run: AnyFormat | str | None) -> Recipe:
    if run is None and takes_format(name):
        raise BadInput(
            "it needs a format", key="recipe", part=name, hint="give one, as format='E4M3'"
        )
    if run not in (None, "none") and not takes_format(name):
        fmt = get_format(run)
        raise BadInput(
            f"recipe {name} has formats of its own",
            key="format",
            part=fmt.name,
            hint=f"leave out the format {fmt.name}",
        )
    return evolve(parse(text_of(name), name, format=run), is_named=True)


def _no_place(run: AnyFormat | str) -> BadInput:
    return BadInput(
        "only a recipe that says FORMAT takes one", key="format", part=get_format(run).name
    )


def _unknown(name: str) -> BadInput:
    """Return the error of a name that is not a recipe's."""
    if kind_of(name) == "format":
        return BadInput(
            f"{name} is a format, not a recipe",
            key="recipe",
            hint=f"train takes it by --format {name}",
        )
    return BadInput(
        f"unknown recipe {shown(name)}",
        key="recipe",
        meant=nearest(name, NAMED),
        hint=f"one of {', '.join(NAMED)}, or a file that ends in .yaml",
    )


def _as_format(name: Any) -> AnyFormat:
    """Return the format that is given for a recipe."""
    try:
        return get_format(name)
    except BadInput as error:
        if not isinstance(name, str) or not nearest(name, NAMED):
            raise
        unknown = _unknown(name)
        unknown.hint += f", or a format ({error})"
        raise unknown from error


def parse(
    data: Any,
    name: str = "given",
    source: Source | None = None,
    format: AnyFormat | str | None = None,
) -> Recipe:
    """Make a recipe of its plain form.

    Args:
        data: ``{role or operand: cast; skip: [patterns]; layers: {pattern: {role: cast}}}``.
            Top-level roles of products mean every layer that multiplies by a parameter of two or
            more dimensions, those of attention every attention layer, stored_weight and
            optimizer_state every such parameter, weight@lookup (which weight leaves out) every
            lookup. The last match wins, ``skip`` last of all.
        name: the recipe's name, unless the key ``name`` gives one.
        source: where the recipe was given, for keys that do not know.
        format: stands for FORMAT.
    """
    source = source or source_of(data)
    place, data = Place(name, source=source, run_format=format), as_builtin(data)
    if not isinstance(data, Mapping):
        raise place.refusal("it is not a mapping of roles to formats")
    place = evolve(place, recipe=_own_name(data, place))
    refuse_unknown(data, (*_ROLE_KEYS, *_NO_ROLES), place)
    roles = [k for k in data if k not in _NO_ROLES]
    casts, sources = _casts(data, roles, place), _sources(data, roles)
    rules = [
        evolve(rule, sources=sources)
        for rule in _top_level_rules(casts, is_lookup_given=LOOKUP in data)
    ]
    layers, at = _given(data, "layers", {}), place.below(data, "layers")
    if not isinstance(layers, Mapping):
        raise at.refusal("a mapping of patterns to roles is needed")
    for pattern, given in layers.items():
        here = at.below(layers, pattern)
        if not isinstance(given, Mapping):
            raise here.refusal("a mapping of roles to formats is needed")
        refuse_unknown(given, _ROLE_KEYS, here)
        casts, sources = _casts(given, given, here), _sources(given, given)
        rules.append(LayerRule(_pattern(pattern, here), casts, here.source, sources))
    skip, at = _given(data, "skip", []), place.below(data, "skip")
    if isinstance(skip, str) or not isinstance(skip, Sequence):
        raise at.refusal("a list of patterns is needed")
    for i, pattern in enumerate(skip):
        item = evolve(at, source=source_of(skip, i) or at.source)
        rules.append(LayerRule(_pattern(pattern, item), dict.fromkeys(OPERANDS), item.source))
    try:
        check_names(c.format for rule in rules for c in rule.casts.values() if c)
    except BadInput as error:
        raise error.inside("recipe", place.recipe, source) from error
    return Recipe(place.recipe, tuple(r for r in rules if r.casts), source)


def _top_level_rules(casts: Mapping[str, Cast | None], is_lookup_given: bool) -> list[LayerRule]:
    products = {o: c for o, c in casts.items() if o in (*PRODUCT_OPERANDS, "weight_gradient")}
    rules = [
        LayerRule("<linear>", products),
        LayerRule("<conv>", products),
        LayerRule("<other>", products),
        LayerRule("<attention>", {o: c for o, c in casts.items() if o in ATTENTION_OPERANDS}),
        LayerRule("<any>", {o: c for o, c in casts.items() if o in STORED}),
    ]
    if is_lookup_given:  # by its own name only: the role weight means products here
        rules.append(LayerRule("<any>", {LOOKUP: casts[LOOKUP]}))
    return rules


def _own_name(data: Mapping[str, Any], place: Place) -> str:
    name = data.get("name", place.recipe)
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise place.below(data, "name").refusal(f"{shown(name)} is not a line of text")
    return name


def _given(data: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return a key's value; a key without one (null) has the default, unlike 0 and false."""
    value = data.get(key)
    return default if value is None else value


def _pattern(pattern: Any, place: Place) -> str:
    if not isinstance(pattern, str):
        raise place.refusal(f"the pattern {shown(pattern)} is not text")
    if pattern.startswith("<") and not is_selector(pattern):
        raise place.refusal(
            f"unknown selector {shown(pattern)}",
            meant=nearest(pattern, SELECTORS),
            hint=f"one of {', '.join(SELECTORS)}, <first N%>, <last N%>",
        )
    return pattern


def _casts(given: Mapping[str, Any], roles: Iterable[str], place: Place) -> dict[str, Cast | None]:
    # A role first and its operands after it, so that the narrower one wins.
    casts: dict[str, Cast | None] = {}
    for role in sorted(roles, key=lambda r: "@" in r):
        here = place.below(given, role, before=": ")
        cast = read_cast(given[role], here)
        if cast is not None:
            check_role(role, cast, given[role], here)
        casts.update(dict.fromkeys(operands_of(role), cast))
    return casts


def _sources(given: Mapping[str, Any], roles: Iterable[str]) -> dict[str, Source | None]:
    """Return where the cast of each operand was given."""
    narrower_last = sorted(roles, key=lambda r: "@" in r)
    return {o: source_of(given, role) for role in narrower_last for o in operands_of(role)}


def resolved_from_plain(
    data: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Cast | None]]:
    """Return the resolved recipe that `resolved_to_plain` wrote."""
    return {
        name: {o: read_cast(casts.get(o), Place(path=f"{name}.{o}")) for o in OPERANDS}
        for name, casts in data.items()
    }
