"""Settings: the init fields of an attrs class, each with its help in the field's metadata."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_origin, get_type_hints

import attrs
from attrs.converters import pipe

from altcore.errors import BadInput, nearest
from altcore.formats import AnyFormat, BlockFormat, Format, get_format, get_scalar_format, saved
from altcore.python_values import as_python

if TYPE_CHECKING:
    import cattrs

    Attribute: TypeAlias = attrs.Attribute[Any]


def setting(
    default: Any = attrs.NOTHING,
    help: str = "",
    *,
    validator: Any = None,
    factory: Callable[[], Any] | None = None,
    converter: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a plugin's setting: an ``attrs.field`` that carries its help.

    A default of a setting typed ``Format`` is written as the format's name; it is resolved with
    the others, before the first step.

    >>> from attrs import define
    >>> @define(eq=False)
    ... class Clip:
    ...     limit: float = setting(1.0, help="largest norm", validator=attrs.validators.gt(0))
    >>> Clip().limit
    1.0
    """
    if factory is not None:
        default = attrs.Factory(factory)
    return attrs.field(
        default=default, validator=validator, converter=converter, metadata={"help": help}
    )


def build(cls: type, given: Mapping[str, Any], where: str) -> Any:
    """Make ``cls`` of plain settings, checked strictly.

    ``where`` names the plugin or file in messages. Raises `BadInput` for an unknown key (the
    nearest is offered), a wrong type (nothing is converted but an integer to a float, a format's
    name to the format, numpy's numbers to Python's and a path to text), or a value that the class
    refuses.
    """
    fields = init_fields(cls, where)
    for key in given:
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise BadInput(
                f"{where}.{key}: there is no such setting{nearest(str(key), fields)}: "
                f"settings of {where} are {known}"
            )
    values = {}
    for key, a in fields.items():
        if key in given:
            values[key] = _structure(given[key], a.type, f"{where}.{key}")
        elif a.default is attrs.NOTHING:
            raise BadInput(f"{where}.{key} is required")
        elif not _is_factory(a.default):
            values[key] = _structure(a.default, a.type, f"{where}.{key}")
    try:
        return cls(**values)
    except BadInput as error:
        raise BadInput(str(error) if where in str(error) else f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        # attrs' own validators pass the attribute and the value behind their message, which
        # begins with the attribute's name in quotes.
        message = str(error.args[0] if error.args else error)
        about = re.match(r"'(\w+)' (.*)", message, re.DOTALL)
        text = f"{where}.{about[1]}: {about[2]}" if about else f"{where}: {message}"
        raise BadInput(text) from error


def init_fields(cls: type, where: str = "") -> dict[str, Attribute]:
    """Return the settings of an attrs class, by name, with their types resolved.

    State (``init=False``) may have types that exist for the type checker only.
    """
    try:
        return {a.name: a.evolve(type=_resolved(cls, a)) for a in attrs.fields(cls) if a.init}
    except (attrs.exceptions.NotAnAttrsClassError, NameError, TypeError) as error:
        raise BadInput(
            f"{where or cls}: an attrs class (@define(eq=False)) with resolvable types is "
            f"needed: {error}"
        ) from error


def _resolved(cls: type, a: Attribute) -> Any:
    if not isinstance(a.type, str):
        return Any if a.type is None else a.type
    home = next(c for c in cls.__mro__ if a.name in get_annotations(c))
    only = type("Only", (), {"__annotations__": {a.name: a.type}})
    return get_type_hints(only, globalns=vars(sys.modules[home.__module__]))[a.name]


def describe_settings(cls: type) -> list[dict[str, Any]]:
    """Return name, type, default and help of each setting, as plain data."""
    return [
        {
            "name": a.name,
            "type": _type_name(a.type),
            "default": _default(a),
            "help": a.metadata.get("help", ""),
        }
        for a in init_fields(cls).values()
    ]


def _default(a: Attribute) -> Any:
    if a.default is attrs.NOTHING:
        return "required"
    made: Any = a.default
    return to_plain(made.factory() if _is_factory(made) else made)


def plain_settings(instance: Any) -> dict[str, Any]:
    """Return an instance's settings as plain data, as a configuration file writes them."""
    return {name: to_plain(getattr(instance, name)) for name in init_fields(type(instance))}


def format_settings(instance: Any) -> dict[str, Any]:
    """Return those of an instance's settings that hold formats, by name."""
    values = {name: getattr(instance, name, None) for name in init_fields(type(instance))}
    return {name: value for name, value in values.items() if any(formats_within(value))}


def formats_within(value: Any) -> Iterator[AnyFormat]:
    """Yield the formats that a value is, or holds in lists and mappings."""
    if isinstance(value, Format | BlockFormat):
        yield value
    elif isinstance(value, Mapping):
        yield from formats_within(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from formats_within(part)


def python_fields(_: type, fields: list[Attribute]) -> list[Attribute]:
    """Let every field of an attrs class take what `as_python` does: a ``field_transformer``."""
    return [
        f.evolve(converter=pipe(as_python, f.converter) if f.converter else as_python)
        for f in fields
    ]


def to_plain(value: Any) -> Any:
    """Return ``value`` as YAML and JSON can write it; a format as `saved` has it."""
    value = as_python(value)
    if isinstance(value, Format | BlockFormat):
        return saved(value)
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return value


def format_or_none(value: Any) -> AnyFormat | None:
    """Return the format called ``value``; None for None and for ``none``."""
    return None if value is None or value == "none" else get_format(value)


def _scalar_or_none(value: Any) -> Format | None:
    return None if value is None or value == "none" else get_scalar_format(value)


def _is_factory(default: Any) -> bool:
    return isinstance(default, attrs.Factory)  # type: ignore[arg-type] # attrs types the class as a function


def _type_name(tp: Any) -> str:
    return (
        tp.__name__
        if isinstance(tp, type) and not get_args(tp)
        else str(tp)
        .replace("altcore.formats.base.Format | altcore.formats.blocks.BlockFormat", "Format")
        .replace("altcore.formats.base.", "")
        .replace("typing.", "")
        .replace("collections.abc.", "")
    )


def _structure(value: Any, tp: Any, where: str) -> Any:
    value = as_python(value)
    try:
        return _converter().structure(value, tp)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    # cattrs raises its own groups, and whatever a converter raises.
    except Exception as error:
        from cattrs import StructureHandlerNotFoundError

        if isinstance(error, StructureHandlerNotFoundError):
            raise BadInput(f"{where}: no setting can have the type {_type_name(tp)}") from error
        raise BadInput(f"{where}: {value!r} is not {_expected(tp)}") from error


def _expected(tp: Any) -> str:
    name = _type_name(tp)
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "Format": "a format",
        "None": "null",
        "str | dict[str, Any]": "a name or a mapping",
        "tuple[str, ...]": "a list of names",
        "list[str]": "a list of names",
        "dict[str, Any]": "a mapping",
        "dict[str, dict[str, Any]]": "a mapping of names to mappings",
    }
    if name in words or "[" in name:
        return words.get(name, name)
    return " or ".join(words.get(part, part) for part in name.split(" | "))


_SEQUENCES: dict[Any, type] = {k: k for k in (list, tuple, set, frozenset)} | {Sequence: tuple}


@cache
def _converter() -> cattrs.Converter:
    """A converter that converts nothing silently (plain cattrs makes 3 of 3.7)."""
    import cattrs

    def strict(kind: type, accepts: tuple[type, ...]) -> Callable[[Any, Any], Any]:
        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, accepts) or (isinstance(value, bool) and kind is not bool):
                raise TypeError(f"{value!r} is not {kind.__name__}")
            return kind(value)

        return structure

    def name_or_mapping(value: Any, _: Any) -> str | dict[str, Any]:
        if not isinstance(value, str | dict):
            raise TypeError(f"{value!r} is neither a name nor a mapping")
        return value

    def is_sequence(tp: Any) -> bool:
        return (get_origin(tp) or tp) in _SEQUENCES

    def sequence(value: Any, tp: Any) -> Any:
        # A text is a sequence of letters, which is never what was meant.
        if not isinstance(value, list | tuple | set | frozenset):
            raise TypeError(f"{value!r} is not a list")
        kind, items = get_origin(tp) or tp, get_args(tp) or (Any, ...)
        if kind is not tuple or items[-1] is ...:
            items = (items[0],) * len(value)
        made = (converter.structure(v, i) for v, i in zip(value, items, strict=True))
        return _SEQUENCES[kind](made)

    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    converter.register_structure_hook_func(is_sequence, sequence)
    accepted: dict[type, tuple[type, ...]] = {
        int: (int,),
        float: (int, float),
        bool: (bool,),
        str: (str,),
    }
    for kind, accepts in accepted.items():
        converter.register_structure_hook(kind, strict(kind, accepts))
    converter.register_structure_hook(Format, lambda v, _: get_scalar_format(v))
    converter.register_structure_hook(Format | None, lambda v, _: _scalar_or_none(v))
    converter.register_structure_hook(AnyFormat, lambda v, _: get_format(v))
    converter.register_structure_hook(AnyFormat | None, lambda v, _: format_or_none(v))
    converter.register_structure_hook(str | dict[str, Any], name_or_mapping)
    return converter
