"""The class of a plugin with hooks: checked when it is loaded, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any

import attrs

from altcore.errors import BadInput, nearest
from altcore.hooks.settings import build
from altcore.hooks.specs import HOOKS, HOOKSPECS, NEEDS, OBSERVING, OBSERVING_ARGUMENTS
from altcore.registry import HOOK_KINDS, Entry, entries

REFUSED_MARKS = ("wrapper", "hookwrapper", "tryfirst", "trylast", "specname")
"""Options of ``hookimpl`` by which a plugin would choose its own place in the order."""
BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def check_class(cls: Any, entry: Entry) -> type:
    """Return the plugin's class.

    Raises:
        BadInput: naming the plugin and what is wrong, if it cannot be one.
    """
    who = f"{entry.kind} {entry.name} ({entry.origin})"
    if not (isinstance(cls, type) and attrs.has(cls)):
        raise BadInput(f"{cls!r} is not an attrs class", key=who, hint="use @define(eq=False)")
    if cls.__eq__ is not object.__eq__:
        raise BadInput("use @define(eq=False): equal instances cannot be told apart", key=who)
    for name, member in inspect.getmembers(cls, callable):
        _check_method(who, name, getattr(member, "altcore_impl", None))
    for need in _names(cls, "needs", who):
        if need not in NEEDS:
            raise BadInput(
                f"there is no need {need!r}",
                key=who,
                meant=nearest(need, NEEDS),
                hint=", ".join(NEEDS),
            )
    for required in _names(cls, "requires", who):
        _check_required(required, entry, who)
    _check_arguments(cls, who)
    if entry.kind == "intervention":
        _check_looks_only_where_it_may(cls, who)
    _check_state(cls, who)
    return cls


def hooks_of(cls: type) -> list[str]:
    """Return the hooks that a plugin's class implements, in the order of the step."""
    return [h for h in HOOKS if getattr(getattr(cls, h, None), "altcore_impl", None) is not None]


def make_plugin(cls: type, settings: Mapping[str, Any], name: str) -> Any:
    """Return an instance of a plugin's class, checked as `build` does, that knows its own name.

    A field ``name`` that is not a setting (``init=False``) holds the name of the entry point.
    """
    instance = build(cls, settings, name)
    if any(a.name == "name" and not a.init for a in attrs.fields(cls)):
        object.__setattr__(instance, "name", name)  # the class may be frozen
    return instance


def circle_of(name: str, requires: Mapping[str, Sequence[str]]) -> str:
    """Return in words how a plugin requires itself, perhaps by way of others; "" if it does not."""
    chains, seen = [[name]], {name}
    for chain in chains:
        for other in requires.get(chain[-1], ()):
            if other == name:
                *firsts, last = chain
                if not firsts:
                    return f"plugin {name} requires itself"
                return f"plugins {', '.join(firsts)} and {last} require each other"
            if other not in seen:
                seen.add(other)
                chains.append([*chain, other])
    return ""


def _names(cls: type, attribute: str, who: str) -> Sequence[str]:
    """Return the names that the class lists in ``needs`` or ``requires``."""
    hint = f'write {attribute}: ClassVar = ("...",)'
    if any(a.name == attribute for a in attrs.fields(cls)):
        raise BadInput(f"{attribute} is a field, and so a setting", key=who, hint=hint)
    names = getattr(cls, attribute, ())
    if not (isinstance(names, tuple | list) and all(isinstance(n, str) for n in names)):
        what = "plugins' names" if attribute == "requires" else "names"
        raise BadInput(f"{attribute}: {names!r} is not a tuple of {what}", key=who, hint=hint)
    return names


def _check_required(name: str, entry: Entry, who: str) -> None:
    """Refuse to require what can never be in a run."""
    kinds = [e.kind for e in entries() if e.name == name]
    if name == entry.name:
        raise BadInput("it requires itself", key=who)
    if kinds and not set(kinds) & set(HOOK_KINDS):
        raise BadInput(f"it requires {name}, which is no plugin with hooks: {kinds[0]}", key=who)
    if not kinds:
        known = [e.name for e in entries() if e.kind in HOOK_KINDS and e.name != entry.name]
        problem = f"it requires the plugin {name}, which is not installed"
        raise BadInput(problem, key=who, meant=nearest(name, known))


def _check_method(who: str, name: str, marks: Mapping[str, Any] | None) -> None:
    """Refuse a hook that is not marked, a mark on another method, and pluggy's own orders."""
    if marks is None:
        if name in HOOKS:
            raise BadInput(f"{name} is a hook's name but not marked with @hookimpl", key=who)
        return
    if name not in HOOKS:
        raise BadInput(
            f"there is no hook {name!r}", key=who, meant=nearest(name, HOOKS), hint=", ".join(HOOKS)
        )
    for mark in REFUSED_MARKS:
        if marks.get(mark):
            raise BadInput(f"{name}: {mark} is refused: the user's list is the order", key=who)


def _check_arguments(cls: type, who: str) -> None:
    """Refuse a hook that the engine could not call: it passes arguments by their place."""
    for name in hooks_of(cls):
        known = inspect.signature(getattr(HOOKSPECS, name)).parameters
        first, *others = inspect.signature(getattr(cls, name)).parameters.values() or (None,)
        if first is None or first.name in known:
            raise BadInput(f"{name} is not a method with self as its first argument", key=who)
        for parameter in others:
            if parameter.name not in known:
                raise BadInput(
                    f"{name} has no argument {parameter.name!r}",
                    key=who,
                    meant=nearest(parameter.name, known),
                    hint=f"it may take {', '.join(known)}",
                )
            if parameter.default is not parameter.empty:
                problem = f"{name}: {parameter.name} has a default, and would never be passed"
                raise BadInput(problem, key=who)
            if parameter.kind not in BY_PLACE:
                raise BadInput(f"{name}: {parameter.name} cannot be passed by its place", key=who)


def _check_looks_only_where_it_may(cls: type, who: str) -> None:
    """Refuse an intervention the hooks and arguments of those who only look."""
    for name in hooks_of(cls):
        if name in OBSERVING:
            raise BadInput(f"{name} is a hook of diagnostics and reporters", key=who)
        for argument in inspect.signature(getattr(cls, name)).parameters:
            if argument in OBSERVING_ARGUMENTS:
                raise BadInput(
                    f"{name} may not take {argument!r}: what an intervention does must not depend "
                    "on the clock",
                    key=who,
                )


def _check_state(cls: type, who: str) -> None:
    """Refuse a state that would be saved and never come back, or be shared by several runs."""
    pair = ("state_dict", "load_state_dict")
    lacking = [name for name in pair if not callable(getattr(cls, name, None))]
    if len(lacking) == 1:
        (other,) = set(pair).difference(lacking)
        raise BadInput(f"it has {other} but no {lacking[0]}: a resumed run would differ", key=who)
    for a in attrs.fields(cls):
        if not a.init and type(a.default).__hash__ is None:
            kind = type(a.default).__name__
            problem = f"the default of {a.name} is one {kind} that all runs would share"
            raise BadInput(problem, key=who, hint=f"use field(init=False, factory={kind})")
