"""Values of settings as their types have them: nothing is converted silently."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from altcore.builtin_types import as_builtin, misfit
from altcore.errors import BadInput, shown
from altcore.formats import AnyFormat, BlockFormat, Format, get_format, get_scalar_format
from altcore.recipes import format_of_run

if TYPE_CHECKING:
    import cattrs


def format_or_none(value: Any) -> AnyFormat | None:
    """Return the format called ``value``; None for None and for ``none``."""
    return None if value is None or value == "none" else format_of_run(value)


def _scalar_or_none(value: Any) -> Format | None:
    return None if value is None or value == "none" else get_scalar_format(value)


def type_name(tp: Any) -> str:
    """Return a setting's type as lists of settings show it."""
    return (
        tp.__name__
        if isinstance(tp, type) and not get_args(tp)
        else str(tp)
        .replace("altcore.formats.base.Format | altcore.formats.blocks.BlockFormat", "Format")
        .replace("altcore.formats.base.", "")
        .replace("typing.", "")
        .replace("collections.abc.", "")
    )


def structured(value: Any, tp: Any, key: str) -> Any:
    """Return a value of a setting as its type has it, strictly. Raises `BadInput` of ``key``."""
    value = as_builtin(value)
    try:
        return _converter().structure(value, tp)
    except BadInput as error:
        error.fill(key=key)
        # What refuses a format in a setting knows it as a format only.
        raise (error if error.key == key else error.inside(key)) from error.__cause__
    # cattrs raises its own groups, and whatever a converter raises.
    except Exception as error:
        from cattrs import StructureHandlerNotFoundError

        if isinstance(error, StructureHandlerNotFoundError):
            raise BadInput(f"no setting can have the type {type_name(tp)}", key=key) from error
        raise BadInput(f"{shown(value)} is not {_expected(tp)}", key=key) from error


_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "names"),
    Format: ("a format", "formats"),
    BlockFormat: ("a format", "formats"),
    type(None): ("null", "null"),
    Any: ("a value", "values"),
}
"""Types as messages call one value, and several."""


def _expected(tp: Any) -> str:
    """Return a setting's type in words.

    >>> _expected(dict[str, str]), _expected(tuple[int, ...] | None)
    ('a mapping of names to text', 'a list of whole numbers or null')
    """
    if tp in _WORDS:
        return _WORDS[tp][0]
    kind, inner = get_origin(tp) or tp, get_args(tp)
    if kind is dict:
        values = "text" if inner[1:] == (str,) else _plural(inner[-1] if inner else Any)
        of = "" if values == "values" else f" of names to {values}"
        return f"a mapping{of}"
    if kind in SEQUENCES:
        return f"a list of {_plural(inner[0])}" if inner else "a list"
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_expected, inner)))
    return type_name(tp)


def _plural(tp: Any) -> str:
    if (get_origin(tp) or tp) is dict:
        return "mappings"
    return _WORDS[tp][1] if tp in _WORDS else _expected(tp)


SEQUENCES: dict[Any, type] = {k: k for k in (list, tuple, set, frozenset)} | {Sequence: tuple}


def _strict(kind: type, *accepted: type) -> Callable[[Any, Any], Any]:
    """Return what takes values of the ``accepted`` types alone as a ``kind``."""

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{shown(value)} is not {kind.__name__}")
        if why := misfit(value, kind):
            raise BadInput(f"{shown(value)} {why}")
        return kind(value)

    return structure


def _name_or_mapping(value: Any, _: Any) -> str | dict[str, Any]:
    if not isinstance(value, str | dict):
        raise TypeError(f"{shown(value)} is neither a name nor a mapping")
    return value


def _is_sequence(tp: Any) -> bool:
    return (get_origin(tp) or tp) in SEQUENCES


def _sequence(value: Any, tp: Any) -> Any:
    kind, items = get_origin(tp) or tp, get_args(tp) or (Any, ...)
    # A text is a sequence of letters, too; nobody means that. A set has another order in each
    # process.
    accepted = (list, tuple, set, frozenset) if kind in (set, frozenset) else (list, tuple)
    if not isinstance(value, accepted):
        raise TypeError(f"{shown(value)} is not a list")
    if kind is not tuple or items[-1] is ...:
        items = (items[0],) * len(value)
    structure = _converter().structure
    return SEQUENCES[kind](structure(v, i) for v, i in zip(value, items, strict=True))


def _is_mapping(tp: Any) -> bool:
    return get_origin(tp) is dict


def _mapping(value: Any, tp: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{shown(value)} is not a mapping")
    names, values = get_args(tp)
    return {_name(k, names): _valued(k, v, values) for k, v in value.items()}


def _name(key: Any, tp: Any) -> Any:
    """Return a mapping's key. Raises `BadInput` for one that YAML does not read as text."""
    if tp is not str or isinstance(key, str):
        return key
    why = ": YAML reads yes and no as true and false" if isinstance(key, bool) else ""
    raise BadInput(f"the name {_yaml(key)} is not text", hint=f"put it in quotes{why}", item=key)


def _valued(name: Any, value: Any, tp: Any) -> Any:
    """Return a mapping's value. Raises `BadInput` that has its name."""
    try:
        return _converter().structure(value, tp)
    except BadInput as error:
        error.part, error.item = error.part and f"{name} {error.part}", name
        raise
    except (TypeError, ValueError) as error:
        problem = f"{_yaml(value)} is not {_expected(tp)}"
        raise BadInput(problem, part=name, item=name) from error


def _yaml(value: Any) -> str:
    """Return a refused value as `shown` does, with YAML's words for null, true and false."""
    is_word = value is None or isinstance(value, bool)
    return json.dumps(value) if is_word else shown(value)


@cache
def _converter() -> cattrs.Converter:
    """A converter that converts nothing silently (plain cattrs makes 3 of 3.7)."""
    import cattrs

    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    converter.register_structure_hook_func(_is_sequence, _sequence)
    converter.register_structure_hook_func(_is_mapping, _mapping)
    converter.register_structure_hook(int, _strict(int, int))
    converter.register_structure_hook(float, _strict(float, int, float))
    converter.register_structure_hook(bool, _strict(bool, bool))
    converter.register_structure_hook(str, _strict(str, str))
    converter.register_structure_hook(Format, lambda v, _: get_scalar_format(v))
    converter.register_structure_hook(Format | None, lambda v, _: _scalar_or_none(v))
    converter.register_structure_hook(AnyFormat, lambda v, _: get_format(v))
    converter.register_structure_hook(AnyFormat | None, lambda v, _: format_or_none(v))
    converter.register_structure_hook(str | dict[str, Any], _name_or_mapping)
    return converter
