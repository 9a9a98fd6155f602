"""The identity of a run: what decides its numbers, as plain data, and how two of them differ.

A manifest holds it. `compare` says what changed, and `check_changes` refuses it by name.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from attrs import asdict, frozen

from altcore.builtin_types import to_json
from altcore.config import TrainConfig
from altcore.errors import BadInput, nearest, shown
from altcore.formats import AnyFormat, format_digest
from altcore.hooks import formats_within, to_plain, values_of
from altcore.registry import HOOK_KINDS, find
from altcore.runs.digests import contents, named_path, source_digest

KINDS = ("configuration", "data", "format", "recipe", "plugin", "world_size")
"""What may not change unless ``--allow-change`` names it."""
NAMES = ("name", "label", "project", "tags", "runs_dir")
"""Keys of the configuration that say what a run is called, and nothing of its numbers."""
LENGTH = ("max_steps", "epochs", "steps_per_epoch")
"""How long it trains, which may grow."""
ELSEWHERE = (
    *("workload", "optimizer", "plugins", "no_plugins", "format", "format_digests"),
    *("format_origins", "recipe", "device", "original", "strict", "changes"),
    "check_observers",
    "hook_timeout",
)
"""Keys that other parts of the identity have, and those that are there for the record."""
KEPT = (
    *("checkpoint_interval", "max_checkpoints", "keep_best"),
    *("check_observers", "hook_timeout"),
)
"""Keys of what is kept and watched: a change is recorded, and changes no number."""

DECIDES, BITS, NOTED = "decides numbers", "may change bits", "changes no number"
"""Severities of a change: it is refused unless it is allowed by name; it is told, and refused by
``--strict``; it is recorded."""
DIGITS = 12
"""Of a digest in a message."""
MOST_TOLD = 4
"""Changes that a message tells."""


@frozen
class Change:
    """One difference between two identities."""

    kind: str
    """One of `KINDS`, or ``platform``."""
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

    def to_plain(self) -> dict[str, Any]:
        """Return it as events and the configuration hold it."""
        plain: dict[str, Any] = to_json(asdict(self))
        return plain


def identity_of(
    config: TrainConfig,
    *,
    owners: Mapping[str, Any],
    formats: Iterable[AnyFormat],
    data: Mapping[str, Any],
    where: Mapping[str, Any],
    given: Mapping[str, str] = MappingProxyType({}),
    world_size: int = 1,
) -> dict[str, Any]:
    """Return the identity of a run, as a manifest holds it.

    Args:
        config: the configuration, resolved.
        owners: workload, optimizer and plugins, built of their settings, by name.
        formats: those of the recipe, as the model has it.
        data: what the data are known by: ``sha256``, ``of``, and what the caller gave.
        where: threads and device.
        given: what came from Python in the place of the workload's own, by ``model`` and ``data``.
        world_size: the number of processes that train together.
    """
    used = [*formats, *formats_within([config.format, list(map(values_of, owners.values()))])]
    settings = {
        name: to_plain({**values_of(owner), **config.settings.get(name, {})})
        for name, owner in owners.items()
    }
    # A digest of its data that the workload gives is one of the files, too.
    asked = {k: v for k, v in settings.items() if k != config.workload or data["of"] != "workload"}
    paths = {key: value for key, value in _flat(settings).items() if is_path(key, value)}
    found = {
        "configuration": {**config.to_plain(), "settings": settings},
        "data": {**data, **_digests({k: v for k, v in paths.items() if k in _flat(asked)})},
        "paths": sorted(paths),
        "format": {
            f.name: {"sha256": format_digest(f), "from": config.format_origins.get(f.name)}
            for f in used
        },
        "plugin": {**_plugins(config), **{k: {"name": v} for k, v in given.items()}},
        "world_size": world_size,
        "platform": {
            "altcore": _version("altcore", "altcore"),
            "torch": _version("torch"),
            "python": platform.python_version(),
            **where,
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(to_json(found), default=_stand_in))
    return plain


def _stand_in(value: Any) -> Any:
    """Return what stands for a setting's value that JSON cannot hold: members, or the class."""
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return f"{type(value).__module__}.{type(value).__qualname__}"


def is_path(key: str, value: Any) -> bool:
    """Whether a setting, as ``gpt.data``, names a file or folder; a bare word does so as data."""
    if not isinstance(value, str) or not ({"/", "."} & {*value} or key.endswith(".data")):
        return False
    return named_path(value) is not None


def _digests(paths: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, text in paths.items():
        path = named_path(text)
        try:
            found |= {key: contents(path)} if path else {}
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}", key=key) from error
    return found


def _plugins(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return name, distribution and digest of the source of all that is no part of altcore."""
    entries = {kind: find(getattr(config, kind), (kind,)) for kind in ("workload", "optimizer")}
    entries |= {name: find(name, HOOK_KINDS) for name in config.plugins}
    return {
        key: {
            "name": e.name,
            "distribution": e.distribution,
            "version": e.version,
            "sha256": source_digest(e.value, e.distribution),
        }
        for key, e in entries.items()
    }


def _version(distribution: str, module: str | None = None) -> str:
    from importlib.metadata import version

    files = f", files {(source_digest(module) or '')[:DIGITS]}" if module else ""
    return f"{version(distribution)}{files}"


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
    if kind != "configuration" or not isinstance(part, Mapping):
        return part
    left_out = (*NAMES, *LENGTH, *ELSEWHERE, "settings")
    keys = {k: v for k, v in part.items() if k not in left_out}
    settings = part.get("settings")
    return {**keys, **_flat(settings), _PATHS: identity.get("paths"), _OWNERS: settings}


_PATHS, _OWNERS = object(), object()
"""Keys under which `_part` hands on which settings are paths, and the settings by owner."""


def _configuration(before: Any, now: Any) -> list[Change]:
    paths = set(_get(before, _PATHS) or ()) & set(_get(now, _PATHS) or ())
    severities = {**dict.fromkeys(paths, NOTED), **dict.fromkeys(KEPT, NOTED)}
    # Of a plugin that only one of them has, the settings are not told one by one.
    others = {*(_get(before, _OWNERS) or ())} ^ {*(_get(now, _OWNERS) or ())}
    return [
        Change("configuration", key, old, new, severities.get(key, DECIDES))
        for key, old, new in _differences(before, now)
        if isinstance(key, str) and key.partition(".")[0] not in others
    ]


def _data(before: Any, now: Any) -> list[Change]:
    return [
        Change("data", "data" if key == "sha256" else key, old, new)
        for key, old, new in _differences(before, now)
        if key != "of"
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
        same = [_get(old, k) == _get(new, k) and _get(old, k) for k in ("name", "sha256")]
        severity = NOTED if all(same) else DECIDES
        changes.append(Change("plugin", key, _described(old), _described(new), severity))
    old, new = (list(x) if isinstance(x, Mapping) else [] for x in (before, now))
    if not changes and old != new:
        changes.append(Change("plugin", "the order of plugins", old, new))
    return changes


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


def _flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Return ``{"gpt": {"size": "tiny"}}`` as ``{"gpt.size": "tiny"}``, one level deep."""
    if not isinstance(nested, Mapping):
        return {}
    return {
        f"{owner}.{key}": value
        for owner, own in nested.items()
        if isinstance(own, Mapping)
        for key, value in own.items()
    }


def _described(plugin: Any) -> str | None:
    if not isinstance(plugin, Mapping):
        return None
    if "distribution" not in plugin:
        return str(plugin.get("name"))
    files = str(plugin.get("sha256") or "")[:DIGITS]
    origin = f"{plugin['distribution']} {plugin.get('version')}"
    return f"{plugin.get('name')} ({origin}{f', files {files}' if files else ''})"


def _described_format(name: Any, fmt: Any) -> str:
    origin = f" of {_get(fmt, 'from')}" if _get(fmt, "from") else ""
    return f"{name}{origin} ({str(_get(fmt, 'sha256'))[:DIGITS]})"


def _text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:DIGITS]
    return value if isinstance(value, str) and len(value) <= 80 else shown(value)


# Judging -----------------------------------------------------------------------------------------


def check_changes(
    changes: Sequence[Change],
    run: str,
    *,
    allowed: Sequence[str] = (),
    strict: bool = False,
    is_edited: Callable[[Sequence[Change]], bool] = lambda _: False,
) -> None:
    """Raise `BadInput` for changes that are neither harmless nor allowed by name.

    Args:
        changes: as `compare` returns them.
        run: the run's name.
        allowed: names of kinds, keys or plugins.
        strict: whether another platform is refused, too.
        is_edited: whether it is config.yaml that has one of these changes.
    """
    known = {*KINDS, "platform", *(c.what for c in changes)}
    for name in allowed:
        if name not in known:
            raise BadInput(
                f"{shown(name)} did not change",
                key="--allow-change",
                meant=nearest(name, known),
                hint=f"it takes {', '.join(KINDS)}, or a key that changed",
            )
    grave = (DECIDES, BITS) if strict else (DECIDES,)
    refused = [c for c in changes if c.severity in grave and not {c.kind, c.what} & {*allowed}]
    if refused:
        told = "; ".join(map(str, refused[:MOST_TOLD]))
        more = f"; and {len(refused) - MOST_TOLD} more" if len(refused) > MOST_TOLD else ""
        names = dict.fromkeys(c.kind for c in refused)
        hint = f"{' '.join(f'--allow-change {n}' for n in names)} goes on all the same"
        if is_edited(refused):
            hint += f", and altcore runs restore {run} brings its config.yaml back"
        problem = f"it is not the run that it was: {told}{more}"
        raise BadInput(problem, key=f"--resume {run}", hint=hint)


def about_platform(changes: Iterable[Change]) -> list[str]:
    """Return the line that tells that the bits may differ, if they may."""
    told = "; ".join(str(c) for c in changes if c.severity == BITS)
    return [f"the bits may differ from those of an uninterrupted run: {told}"] if told else []
