"""A format in any form in which a caller may give it: a name, plain data, a file, an object.

The plain forms, each with a name:

- ``{exponent, mantissa}`` and perhaps ``bias``, ``specials``, ``subnormals``: see `float_format`;
- ``{values}``, finite and ascending, or ``{codes}``, the value of every code in code order; and
  perhaps ``ties``, ``boundaries``, ``beyond``: see `table_format` and `code_format`;
- ``{element, block}`` and perhaps ``rule``, ``scale``, ``square``: see `BlockFormat`.

Numbers are exact: as floats, as ``nan``, ``inf`` and ``-inf``, and, for boundaries, as fractions
such as ``1/3``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, nearest, shown
from altcore.formats.base import Format
from altcore.formats.blocks import AnyFormat, BlockFormat
from altcore.formats.floats import float_format
from altcore.formats.lookup import format_named, is_format
from altcore.formats.tables import LONGEST_FRACTION, code_format, table_format
from altcore.yaml_files import is_yaml_file, read_mapping, source_of, updated

_FRACTION = re.compile(r"-?\d+(/0*[1-9]\d*)?")


def get_format(given: str | os.PathLike[str] | Mapping[str, Any] | AnyFormat) -> AnyFormat:
    """Return the format that is given: by name, as plain data, in a .yaml file, or as itself.

    It is a `Format`, or a `BlockFormat` if blocks of numbers share a scale. Raises `BadInput` for
    a name that nobody or more than one answers to, for an entry that is not a format, and for
    plain data or a file that does not describe one.
    """
    if is_format(given):
        return given
    if isinstance(given, Mapping):
        return from_plain(given)
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    elif not isinstance(given, str):
        raise BadInput(
            f"a format is given by its name, not by {shown(given)}; or by a .yaml file, or in "
            "plain form"
        )
    return _read(given) if is_yaml_file(given) else format_named(given)


def get_scalar_format(given: str | os.PathLike[str] | Mapping[str, Any] | AnyFormat) -> Format:
    """Return the format that is given to those who need one of single numbers.

    Raises `BadInput` as `get_format` does, and for a block format.
    """
    found = get_format(given)
    if not isinstance(found, Format):
        raise BadInput(
            f"format {found.name}: its numbers share scales in blocks, and here a format of "
            "single numbers is needed"
        )
    return found


def is_plain(given: Any) -> bool:
    """Return whether ``given`` is a mapping that describes a format: by its first key."""
    return isinstance(given, Mapping) and any(form.needs[0] in given for form in _FORMS)


def _read(path: str) -> AnyFormat:
    """Read a format's file; the format has the file's name unless it names itself."""
    held = read_mapping(path, "format")
    return from_plain(held if "name" in held else updated(held, {"name": Path(path).stem}))


def from_plain(plain: Mapping[str, Any]) -> AnyFormat:
    """Return the format that `Format.to_plain` or `BlockFormat.to_plain` wrote, or a person.

    Nothing is guessed: an unknown key, a wrong type or an impossible value raises `BadInput`,
    which names the key. A block format's element and scale may be names.

    >>> from_plain({"name": "MINE", "values": [-1, 0, 2]}).max
    1.0
    >>> from_plain({"name": "E4M1", "exponent": 4, "mantissa": 1}).max
    384.0
    """
    keys: dict[str, Any] = as_builtin(dict(plain))
    name = keys.get("name", "")
    try:
        return _make(name, keys)
    except BadInput as error:
        at = error.item if error.item is not None else error.part
        error.fill(source=source_of(plain, at) or source_of(plain))
        if error.key:
            error.part = ": ".join(filter(None, (str(name), error.part)))
        raise


def _make(name: Any, plain: dict[str, Any]) -> AnyFormat:
    """Make a format. The part of an error is the key of ``plain`` that is wrong."""
    if "name" not in plain:
        keys = {key for form in _FORMS for key in form.takes}
        for key in plain:
            if key not in keys and nearest(key, keys) == "name":
                raise _refusal("", f"unknown key {shown(key)}", meant="name", item=key)
        raise _refusal("", "name is missing")
    if not isinstance(name, str):
        raise _refusal("name", f"{shown(name)} is not text")
    hits = [form for form in _FORMS if form.needs[0] in plain]
    if len(hits) != 1:
        found = " and ".join(form.needs[0] for form in hits)
        known = ", ".join(form.needs[0] for form in _FORMS)
        meant = "" if hits else _nearest_of([k for k in plain if k != "name"])
        raise _refusal("", f"one of {known} is needed, not {found or 'none'}", meant)
    form = hits[0]
    for key in plain:
        if key not in form.takes:
            hint = f"beside {form.needs[0]} there can be {', '.join(form.takes[1:])}"
            raise _refusal("", f"unknown key {shown(key)}", nearest(key, form.takes), hint, key)
    for key in form.needs:
        if key not in plain:
            raise _refusal("", f"{key} is missing")
    return form.make(name, {k: v for k, v in plain.items() if k != "name"})


def _refusal(key: str, problem: str, meant: str = "", hint: str = "", item: Any = None) -> BadInput:
    return BadInput(problem, key="format", part=key, meant=meant, hint=hint, item=item)


def _nearest_of(keys: list[Any]) -> str:
    known = {form.needs[0] for form in _FORMS}
    return next(filter(None, (nearest(key, known) for key in keys)), "")


# What each form takes ----------------------------------------------------------------------------


class _Form(NamedTuple):
    """One of the forms of plain data."""

    make: Callable[[str, dict[str, Any]], AnyFormat]
    needs: tuple[str, ...]
    """Its keys beside the name; the first one tells it from the others."""
    may: tuple[str, ...]

    @property
    def takes(self) -> tuple[str, ...]:
        return (self.needs[0], "name", *self.needs[1:], *self.may)


def _float(name: str, plain: dict[str, Any]) -> AnyFormat:
    for key, kind, what in (
        ("exponent", int, "a whole number"),
        ("mantissa", int, "a whole number"),
        ("bias", int, "a whole number"),
        ("specials", str, "text"),
        ("subnormals", bool, "true or false"),
    ):
        if key in plain:
            _check(key, plain[key], kind, what)
    exponent, mantissa, *_ = plain.pop("exponent"), plain.pop("mantissa")
    try:
        return float_format(name, exponent, mantissa, **plain)
    except BadInput as error:
        given = {"exponent": exponent, "mantissa": mantissa, **plain}
        listed = ", ".join(f"{key}: {value}" for key, value in given.items())
        error.problem += f" ({listed})"
        raise


def _values(name: str, plain: dict[str, Any]) -> AnyFormat:
    return _table(name, "values", plain)


def _codes(name: str, plain: dict[str, Any]) -> AnyFormat:
    return _table(name, "codes", plain)


def _table(name: str, key: str, plain: dict[str, Any]) -> AnyFormat:
    table = _list(key, plain.pop(key), _number)
    rules: dict[str, Any] = {
        k: _list(k, plain[k], _point) for k in ("boundaries", "beyond") if k in plain
    }
    if "beyond" in rules and len(rules["beyond"]) != 2:
        raise _refusal("beyond", f"two numbers are needed, not {shown(plain['beyond'])}")
    if "ties" in plain:
        rules["ties"] = _check("ties", plain["ties"], str, "even, up or down")
    try:
        made = table_format(name, table) if key == "values" else None
        return code_format(name, table, **rules) if rules or made is None else made
    except BadInput as error:
        error.problem += f" (given by {', '.join([key, *rules])})"
        error.fill(item=key)
        raise


def _block(name: str, plain: dict[str, Any]) -> AnyFormat:
    _check("block", plain["block"], int, "a whole number")
    if "rule" in plain:
        _check("rule", plain["rule"], str, "text")
    if "square" in plain:
        _check("square", plain["square"], bool, "true or false")
    return BlockFormat(
        name,
        _single("element", plain["element"]),
        plain["block"],
        plain.get("rule", "floor"),
        _single("scale", plain["scale"]) if "scale" in plain else None,
        plain.get("square", False),
    )


_RULES = ("ties", "boundaries", "beyond")
_FORMS = (
    _Form(_values, ("values",), _RULES),
    _Form(_codes, ("codes",), _RULES),
    _Form(_float, ("exponent", "mantissa"), ("bias", "specials", "subnormals")),
    _Form(_block, ("element", "block"), ("rule", "scale", "square")),
)


def _single(key: str, given: Any) -> Format:
    """The format of single numbers that a block format names, or holds."""
    try:
        # A file, or a block within a block, might hold itself.
        if is_yaml_file(given) or (isinstance(given, Mapping) and "element" in given):
            raise BadInput("a format's name is needed, or a format of single numbers in plain form")
        return get_scalar_format(given)
    except BadInput as error:
        raise error.inside("format", key) from error


def _check(key: str, value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise _refusal(key, f"{shown(value)} is not {what}")
    return value


def _list(key: str, given: Any, item: Callable[[Any], Any]) -> Any:
    if not isinstance(given, list | tuple):
        raise _refusal(key, f"a list of numbers is needed, not {shown(given)}")
    made = []
    for i, value in enumerate(given):
        try:
            made.append(item(value))
        except (ValueError, OverflowError) as error:
            refusal = _refusal(key, f"item {i}, {shown(value)}, {error}")
            refusal.fill(source=source_of(given, i))
            raise refusal from error
    return made


def _number(value: Any) -> float:
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if type(value) not in (int, float):
        raise ValueError("is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("is beyond float64") from error


def _point(value: Any) -> Fraction:
    if isinstance(value, str) and len(value) > LONGEST_FRACTION:
        raise ValueError("has too many digits")
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        return Fraction(value)
    if isinstance(value, Fraction):
        return value
    if type(value) not in (int, float) or value != value or value in (float("inf"), -float("inf")):
        raise ValueError("is not a finite number or a fraction such as 1/3")
    return Fraction(value)
