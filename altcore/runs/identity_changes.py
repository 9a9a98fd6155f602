"""How two identities of a run differ, and whether a run may go on all the same.

`compare` says what changed, and `check_changes` refuses it by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from attrs import asdict, frozen

from altcore.builtin_types import to_json
from altcore.errors import BadInput, nearest, shown
from altcore.recipes import some
from altcore.runs.files_in_settings import by_owner, leaves
from altcore.runs.identity import (
    BUFFERS,
    CHANGES,
    CODE,
    DIGITS,
    HOOKS,
    INITIAL_WEIGHTS,
    KIND,
    MODULES,
    NAME,
    OPTIONS,
    PLACE,
    UNKNOWN,
    VALUES,
)

KINDS = ("configuration", "data", "format", "recipe", "plugin", "world_size")
"""What may not change unless ``--allow-change`` names it."""
NAMES = ("name", "label", "project", "tags", "runs_dir")
"""Keys of the configuration that say what a run is called, and nothing of its numbers."""
LENGTH = ("max_steps", "epochs", "steps_per_epoch")
"""How long it trains, which may grow."""
ELSEWHERE = (
    *("workload", "optimizer", "plugins", "no_plugins", "format", "format_digests"),
    *("format_origins", "recipe", "device", "original", "strict", "changes"),
    *("check_observers", "hook_timeout", "rank_timeout"),
)
"""Keys that other parts of the identity have, and those that are there for the record."""
KEPT = (
    *("checkpoint_interval", "max_checkpoints", "keep_best"),
    *("check_observers", "hook_timeout", "rank_timeout"),
)
"""Keys of what is kept and watched: a change is recorded, and changes no number."""

DECIDES, BITS, NOTED = "decides numbers", "may change bits", "changes no number"
"""Severities of a change: it is refused unless it is allowed by name; it is told, and refused by
``--strict``; it is recorded."""
LONGEST = 240
"""Letters of a text in a message."""
MOST_TOLD = 4
"""Changes that a message tells."""


@frozen
class Change:
    """One difference between two identities."""

    kind: str
    """One of `KINDS`, ``platform``, or ``initial_weights``."""
    what: str
    """The key of the configuration, the plugin, or the kind itself."""
    before: Any
    now: Any
    severity: str = DECIDES

    def __str__(self) -> str:
        return f"{self.what} was {self.text_before} and is {self.text_now}"

    @property
    def text_before(self) -> str:
        """The value before, for a message."""
        return _text(self.before)

    @property
    def text_now(self) -> str:
        """The value now, for a message."""
        return _text(self.now)

    @property
    def is_decisive(self) -> bool:
        """Whether it needs to be allowed by name."""
        return self.severity == DECIDES

    def is_among(self, allowed: Iterable[str]) -> bool:
        """Whether it is allowed by its name or its kind; dashes are as good as underscores."""
        return not {*map(_spelled, (self.kind, self.what))}.isdisjoint(map(_spelled, allowed))

    def to_plain(self) -> dict[str, Any]:
        """Return it as events and the configuration hold it."""
        plain: dict[str, Any] = to_json(asdict(self))
        return plain


def _spelled(name: str) -> str:
    plain = name.replace("-", "_")
    return "plugin" if plain in ("plugins", "no_plugins") else plain  # what these keys change


# Comparing ---------------------------------------------------------------------------------------


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return what differs between two identities, in the order of `KINDS`.

    An identity that lacks a part, as a damaged or handmade manifest does, differs in it.
    """
    old, new = ({kind: _part(one, kind) for kind in _COMPARED} for one in (before, now))
    return [change for kind, differ in _COMPARED.items() for change in differ(old[kind], new[kind])]


def _part(identity: Mapping[str, Any], kind: str) -> Any:
    if kind == "recipe":
        return _get(identity.get("configuration"), kind)
    part = identity.get(kind)
    if kind == "plugin" and isinstance(part, Mapping):
        # The list has the order; the keys of a JSON object have none that a digest covers.
        return {**part, _ORDER: _get(identity.get("configuration"), "plugins")}
    if kind != "configuration" or not isinstance(part, Mapping):
        return part
    left_out = (*NAMES, *LENGTH, *ELSEWHERE, "settings")
    keys = {k: v for k, v in part.items() if k not in left_out}
    settings = part.get("settings")
    return {**keys, **by_owner(settings), _PATHS: identity.get("paths"), _OWNERS: settings}


_PATHS, _OWNERS, _ORDER = object(), object(), object()
"""Keys under which `_part` hands on which settings are paths, the settings by owner, and the names
of the plugins in their order."""


def _configuration(before: Any, now: Any) -> list[Change]:
    paths = set(_get(before, _PATHS) or ()) & set(_get(now, _PATHS) or ())
    # Of a plugin that only one of them has, the settings are not told one by one.
    others = {*(_get(before, _OWNERS) or ())} ^ {*(_get(now, _OWNERS) or ())}
    return [
        Change("configuration", key, old, new, _severity(key, old, new, paths))
        for key, old, new in _differences(before, now)
        if isinstance(key, str) and key.partition(".")[0] not in others
    ]


def _severity(key: str, before: Any, now: Any, paths: Container[str]) -> str:
    """Return that of another value: files elsewhere are known by what they hold."""
    old, new = dict(leaves(key, before)), dict(leaves(key, now))
    differ = {place for place, *_ in _differences(old, new)}
    is_moved = bool(differ) and all(place in paths for place in differ)
    return NOTED if is_moved or key in KEPT else DECIDES


def _data(before: Any, now: Any) -> list[Change]:
    return [
        Change("data", "data" if key == "sha256" else key, old, new)
        for key, old, new in _differences(before, now)
        if key not in ("of", UNKNOWN)
    ]


def _formats(before: Any, now: Any) -> list[Change]:
    differ = [d for d in _differences(before, now) if _get(d[1], "sha256") != _get(d[2], "sha256")]
    old = [_described_format(name, fmt) for name, fmt, _ in differ if fmt is not None]
    new = [_described_format(name, fmt) for name, _, fmt in differ if fmt is not None]
    return [Change("format", "format", ", ".join(old), ", ".join(new))] if differ else []


def _recipe(before: Any, now: Any) -> list[Change]:
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [Change("recipe", "recipe", before, now)]
    return [Change("recipe", f"recipe.{k}", old, new) for k, old, new in _differences(before, now)]


def _plugin(before: Any, now: Any) -> list[Change]:
    changes = []
    for key, old, new in _differences(before, now):
        if key is _ORDER:
            continue
        if _is_given(old) and _is_given(new) and old.get(NAME) == new.get(NAME):
            changes += _given(key, old, new)
            continue
        same = [_get(old, k) == _get(new, k) and _get(old, k) for k in (NAME, "sha256")]
        known = [k for k in (KIND, PLACE) if _get(old, k) and _get(new, k)]
        moved = [k for k in known if old[k] != new[k]]
        severity = NOTED if all(same) and not moved else DECIDES
        texts = _described(old, moved), _described(new, moved)
        if texts[0] != texts[1]:  # it was an earlier altcore that did not record the place
            changes.append(Change("plugin", key, *texts, severity))
    old, new = _get(before, _ORDER), _get(now, _ORDER)
    if not changes and old != new:
        changes.append(Change("plugin", "the order of plugins", old, new))
    return changes


def _is_given(plugin: Any) -> bool:
    """Whether it came from Python: no distribution brings it."""
    return isinstance(plugin, Mapping) and "distribution" not in plugin


def _given(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return how what was given differs from that of the same name.

    A part of it that one of them has no record of, as of an earlier altcore, does not differ.
    """
    modules = changed_modules(before.get(MODULES), now.get(MODULES))
    told = [(f"{old} as {name}", f"{new} as {name}") for name, old, new in modules]
    told += _others(before, now, (HOOKS,) if modules else (OPTIONS, HOOKS))
    codes = before.get(CODE) or {}, now.get(CODE) or {}
    told += [
        (f"code {_text(old)}", f"code {_text(new)}")
        for version, old, new in _differences(*codes)
        if version in codes[0] and version in codes[1]
    ]
    told += _others(before, now, (VALUES, BUFFERS))
    if not told:
        return []
    texts = (f"{now.get(NAME)}, with {some(parts, 2)}" for parts in zip(*told, strict=True))
    return [Change("plugin", key, *texts)]


def _others(
    before: Mapping[str, Any], now: Mapping[str, Any], parts: Iterable[str]
) -> list[tuple[str, str]]:
    return [
        (f"{name}={_text(old)}", f"{name}={_text(new)}")
        for part in parts
        if part in before and part in now
        for name, old, new in _differences(before[part], now[part])
        if CHANGES not in (old, new)
    ]


def changed_modules(before: Any, now: Any) -> list[tuple[str, str, str]]:
    """Return each module of which the kind is another, by name, and both kinds.

    None differs if one of the two models has no record of them, as of an earlier altcore.
    """
    if not (before and now):
        return []
    return [
        (name or "the model", str(old or "none"), str(new or "none"))
        for name, old, new in _differences(before, now)
    ]


def _world_size(before: Any, now: Any) -> list[Change]:
    return [] if before == now else [Change("world_size", "world_size", before, now)]


def _platform(before: Any, now: Any) -> list[Change]:
    return [Change("platform", key, old, new, BITS) for key, old, new in _differences(before, now)]


_COMPARED: dict[str, Callable[[Any, Any], list[Change]]] = {
    "configuration": _configuration,
    "data": _data,
    "format": _formats,
    "recipe": _recipe,
    "plugin": _plugin,
    "world_size": _world_size,
    "platform": _platform,
}


def _differences(before: Any, now: Any) -> Iterable[tuple[Any, Any, Any]]:
    """Yield each key with another value, and both values; None for one that is not there."""
    old, new = (x if isinstance(x, Mapping) else {} for x in (before, now))
    for key in [*old, *(k for k in new if k not in old)]:
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _get(part: Any, key: Any) -> Any:
    return part.get(key) if isinstance(part, Mapping) else None


def _described(plugin: Any, also: Iterable[str] = ()) -> str | None:
    if not isinstance(plugin, Mapping):
        return None
    if "distribution" not in plugin:
        return str(plugin.get("name"))
    files = str(plugin.get("sha256") or "")[:DIGITS]
    origin = f"{plugin['distribution']} {plugin.get('version')}"
    parts = [origin, *([f"files {files}"] if files else ()), *(str(plugin[k]) for k in also)]
    return f"{plugin.get('name')} ({', '.join(parts)})"


def _described_format(name: Any, fmt: Any) -> str:
    origin = f" of {_get(fmt, 'from')}" if _get(fmt, "from") else ""
    return f"{name}{origin} ({str(_get(fmt, 'sha256'))[:DIGITS]})"


def _text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:DIGITS]
    return value if isinstance(value, str) and len(value) <= LONGEST else shown(value)


# Judging -----------------------------------------------------------------------------------------


class ChangedRun(BadInput):
    """A run that is to go on is not the run that it was; the hint is that of `altcore train`."""


def check_changes(
    changes: Sequence[Change],
    run: str,
    *,
    allowed: Sequence[str] = (),
    strict: bool = False,
    is_edited: Callable[[Sequence[Change]], bool] = lambda _: False,
) -> None:
    """Raise `ChangedRun` for changes that are neither harmless nor allowed by name.

    And `BadInput` for a name that is allowed of which nothing changed.

    Args:
        changes: as `compare` returns them.
        run: the run's name.
        allowed: names of kinds, keys or plugins.
        strict: whether another platform is refused, too.
        is_edited: whether it is config.yaml that has one of these changes.
    """
    known = {*KINDS, "platform", *(c.what for c in changes)}
    for name in allowed:
        if _spelled(name) not in map(_spelled, known):
            raise BadInput(
                f"{shown(name)} did not change",
                key="--allow-change",
                meant=nearest(name, known),
                hint=f"it takes {', '.join(KINDS)}, or a key that changed",
            )
    grave = (DECIDES, BITS) if strict else (DECIDES,)
    refused = [c for c in changes if c.severity in grave and not c.is_among(allowed)]
    if refused:
        told = "; ".join(map(str, refused[:MOST_TOLD]))
        more = f"; and {len(refused) - MOST_TOLD} more" if len(refused) > MOST_TOLD else ""
        names = dict.fromkeys([*allowed, *(c.kind for c in refused)])
        hint = f"{' '.join(f'--allow-change {n}' for n in names)} goes on all the same"
        if any(c.what == INITIAL_WEIGHTS for c in refused):
            hint = f"the seed alone does not give them: train anew under another --name, or {hint}"
        if is_edited(refused):
            hint += f", and altcore runs restore {run} brings its config.yaml back"
        problem = f"it is not the run that it was: {told}{more}"
        raise ChangedRun(problem, key=f"--resume {run}", hint=hint)


def about_platform(changes: Iterable[Change]) -> list[str]:
    """Return the line that tells that the bits may differ, if they may."""
    told = "; ".join(str(c) for c in changes if c.severity == BITS)
    return [f"the bits may differ from those of an uninterrupted run: {told}"] if told else []
