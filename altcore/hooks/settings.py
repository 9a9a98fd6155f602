"""Settings: the init fields of an attrs class, each with its help in the field's metadata."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import lru_cache
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints

import attrs
from attrs.converters import pipe
from attrs.validators import and_

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, described, keyed, nearest, text_of
from altcore.formats import AnyFormat, BlockFormat, Format, saved
from altcore.hooks.structuring import SEQUENCES, structured, type_name
from altcore.signals import is_from_signal
from altcore.yaml_files import without_sources

if TYPE_CHECKING:
    Attribute: TypeAlias = attrs.Attribute[Any]


def setting(
    default: Any = attrs.NOTHING,
    help: str = "",
    *,
    validator: Any = None,
    factory: Callable[[], Any] | None = None,
    converter: Callable[[Any], Any] | None = None,
    counts_steps: bool = False,
) -> Any:
    """Declare a plugin's setting: an ``attrs.field`` that carries its help.

    Write a default of type ``Format`` as the format's name: it is looked up before the first step.
    A value that ``validator`` refuses, a `ValueError`, is `BadInput` with the setting's name. Users
    may give a plugin's setting that ``counts_steps`` in epochs, as ``2 epochs``, like ``interval``.

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
        default=default,
        validator=None if validator is None else _naming(validator),
        converter=converter,
        metadata={"help": help, "counts_steps": counts_steps},
    )


def step_settings(cls: type) -> list[str]:
    """Return the settings of a plugin's class that users may give in epochs."""
    fields = [a for a in attrs.fields(cls) if a.init]
    return [a.name for a in fields if a.name == "interval" or a.metadata.get("counts_steps")]


def _naming(validator: Any) -> Callable[[Any, Attribute, Any], None]:
    """Return the validator, raising `BadInput` that has the setting's name as its key."""
    check = and_(*validator) if isinstance(validator, list | tuple) else validator

    def validate(instance: Any, attribute: Attribute, value: Any) -> None:
        try:
            with keyed(attribute.name):
                check(instance, attribute, value)
        except BadInput:
            raise
        except (TypeError, ValueError) as error:
            # attrs puts the name, quoted, before its message; the key says it already.
            problem = _message(error).removeprefix(f"'{attribute.name}' ")
            raise BadInput(problem, key=attribute.name) from error

    return validate


def _message(error: Exception) -> str:
    """Return an error's text without the attribute that attrs' validators add."""
    return text_of(error.args[0] if error.args else error)


def build(cls: type, given: Mapping[str, Any], owner: str = "") -> Any:
    """Make an object of ``cls`` from plain settings, checked strictly.

    Args:
        cls: an attrs class.
        given: settings by name. An integer becomes a float, a format's name the format, a number
            of numpy's one of Python's, and a path text; nothing else is converted.
        owner: the plugin, workload or optimizer whose settings they are; its name comes before
            the setting's in the errors' keys.

    Raises:
        BadInput: for an unknown setting (with the nearest known one), a wrong type, and a value
            that the class refuses.
    """
    fields = init_fields(cls, owner)
    keys = {name: f"{owner}.{name}" if owner else name for name in fields}
    for name in given:
        if name not in fields:
            raise BadInput(
                "there is no such setting",
                key=f"{owner}.{name}" if owner else str(name),
                meant=nearest(name, fields),
                hint=f"settings of {owner or 'a run'} are {', '.join(fields) or 'none'}",
            )
    values = {}
    for name, a in fields.items():
        if name in given:
            made = structured(given[name], a.type, keys[name])
            # A configuration's own keys are read further, with their lines; a plugin's are read.
            values[name] = without_sources(made) if owner else made
        elif a.default is attrs.NOTHING:
            raise BadInput("a value is required", key=keys[name])
        elif not getattr(a.default, "takes_self", False):
            made = _fresh_default(a)
            # A factory may make the very object.
            is_plain = not _is_factory(a.default) or isinstance(
                made, (str, Mapping, *SEQUENCES.values())
            )
            values[name] = structured(made, a.type, keys[name]) if is_plain else made
    try:
        return cls(**values)
    except BadInput as error:
        error.key = keys.get(error.key, error.key) or owner
        raise
    except (TypeError, ValueError) as error:
        raise BadInput(_message(error), key=owner) from error
    # A plugin's class may raise anything, or try to leave.
    except BaseException as error:
        if is_from_signal(error):
            raise
        problem = f"it cannot be made: {described(error)}"
        raise BadInput(problem, key=owner) from error


def init_fields(cls: type, owner: str = "") -> dict[str, Attribute]:
    """Return the settings of an attrs class, by name, with their types resolved.

    State (``init=False``) may have types that exist for the type checker only.
    """
    try:
        return dict(_init_fields(cls))
    except (attrs.exceptions.NotAnAttrsClassError, NameError, TypeError) as error:
        raise BadInput(
            "an attrs class (@define(eq=False)) with resolvable types is needed",
            key=owner or cls.__name__,
            hint=text_of(error),
        ) from error


@lru_cache(maxsize=256)
def _init_fields(cls: type) -> dict[str, Attribute]:
    return {a.name: a.evolve(type=_resolved(cls, a)) for a in attrs.fields(cls) if a.init}


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
            "type": type_name(a.type),
            "default": _default(a),
            "help": a.metadata.get("help", ""),
        }
        for a in init_fields(cls).values()
    ]


def _default(a: Attribute) -> Any:
    return "required" if a.default is attrs.NOTHING else to_plain(_fresh_default(a))


def _fresh_default(a: Attribute) -> Any:
    """Return a default that no other instance shares."""
    made: Any = a.default
    if _is_factory(made):
        return made.factory()
    return deepcopy(made) if type(made).__hash__ is None else made


def format_settings(instance: Any) -> dict[str, Any]:
    """Return those of an instance's settings that hold formats, by name."""
    return {name: v for name, v in values_of(instance).items() if any(formats_within(v))}


def values_of(instance: Any) -> dict[str, Any]:
    """Return the values of an instance's settings, by name."""
    return {name: getattr(instance, name, None) for name in init_fields(type(instance))}


def formats_within(value: Any) -> Iterator[AnyFormat]:
    """Yield the formats that a value is, or holds in lists and mappings."""
    if isinstance(value, Format | BlockFormat):
        yield value
    elif isinstance(value, Mapping):
        yield from formats_within(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from formats_within(part)


def builtin_fields(_: type, fields: list[Attribute]) -> list[Attribute]:
    """Convert every field of an attrs class by `as_builtin`: a ``field_transformer``."""
    return [
        f.evolve(converter=pipe(as_builtin, f.converter) if f.converter else as_builtin)
        for f in fields
    ]


def to_plain(value: Any) -> Any:
    """Return ``value`` as YAML and JSON can write it; a format as `saved` has it."""
    value = as_builtin(value)
    if isinstance(value, Format | BlockFormat):
        return saved(value)
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # YAML writes no subclass
    return value


def _is_factory(default: Any) -> bool:
    return isinstance(default, attrs.Factory)  # type: ignore[arg-type] # attrs types the class as a function
