"""Merging assignments: one value for each key, and where it was given."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import define

from altcore.config.assignments import named_key, refuse_twice
from altcore.config.expansion import Expansion
from altcore.config.original_keys import renamed_keys
from altcore.errors import DEFAULT, BadInput, Source, item_key, shown
from altcore.yaml_files import SourcedDict, SourcedList, source_of


@define
class Merged:
    """The keys of a run, before they are checked."""

    keys: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    """By the plugin, workload or optimizer that owns them."""
    sources: dict[str, Source | None]
    """Where each key, or ``OWNER.setting``, was given."""
    implied: set[str]
    """Settings that only a preset or compound key gives."""


def merge(expansion: Expansion, default: Mapping[str, str], keys: Collection[str]) -> Merged:
    """Merge what was given; later assignments win.

    Args:
        expansion: the assignments.
        default: the workload and optimizer of a run that names none.
        keys: all keys that there are.

    Raises:
        BadInput: for a key that one source gives twice.
    """
    last = {a.key: a.value for a in expansion.assignments}
    active = {k: str(last.get(k, v)) for k, v in default.items()}
    merged = Merged(dict(default), {}, dict.fromkeys(default, DEFAULT), set())
    explicit: dict[str, Source | None] = {}
    for place, (key, value, source, _) in enumerate(expansion.assignments):
        for path, leaf, at in flatten(full_key(key, default, active), value, source, keys):
            if place in expansion.implied:
                merged.implied.update([path] if "." in path else [])
            else:
                refuse_twice(path, at, explicit)
                merged.implied.discard(path)
            merged.sources[path] = at
            owner, dot, rest = path.partition(".")
            # Mappings and lists keep their sources: a format in one is read later.
            if not dot:
                merged.keys[path] = leaf
                merged.sources.update(_of_items(path, leaf))
            else:
                merged.settings.setdefault(owner, {}).update({rest: leaf} if rest else {})
    return merged


def _of_items(key: str, value: Any) -> dict[str, Source | None]:
    """Return where the items of a key's list, or the keys of its mapping, were given."""
    if isinstance(value, SourcedDict):
        return {item_key(key, name): source_of(value, name) for name in value}
    if isinstance(value, SourcedList):
        return {item_key(key, item): source_of(value, i) for i, item in enumerate(value)}
    return {}


def full_key(key: str, default: Mapping[str, str], active: Mapping[str, str]) -> str:
    """Return the key that ``key`` is short for.

    An original key of the ``default`` workload or optimizer is one of the ``active`` workload or
    optimizer.
    """
    path = {**renamed_keys(), "data": f"{default['workload']}.data"}.get(key)
    if path is None:
        return key
    owner, dot, rest = path.partition(".")
    renamed = {default[kind]: active[kind] for kind in default}
    return f"{renamed.get(owner, owner)}.{rest}" if dot else path


def flatten(
    key: str, value: Any, source: Source | None, keys: Collection[str]
) -> Iterator[tuple[str, Any, Source | None]]:
    """Yield (path, value, source) for each key, or ``OWNER.setting``, that one key gives.

    ``OWNER.`` without a setting stands for an empty mapping of the owner's.
    """
    owner, _, rest = key.partition(".")
    if not owner:
        raise BadInput("a key begins with a name", key=key, source=source)
    if owner == "settings":
        if not rest and not isinstance(value, Mapping):
            problem = "a mapping of names to settings is needed"
            raise BadInput(problem, key="settings", source=source)
        if not rest:
            for name, own in value.items():
                at = source_of(value, name) or source
                yield from _settings(named_key(name, at, "settings"), own, at)
            return
        owner, _, rest = rest.partition(".")
        key = key if rest else f"{owner}."
    if rest:
        yield f"{owner}.{rest}", value, source
    elif key.endswith(".") or (isinstance(value, Mapping) and owner not in keys):
        yield from _settings(owner, value, source)
    else:
        yield owner, value, source


def _settings(
    owner: str, value: Any, source: Source | None
) -> Iterator[tuple[str, Any, Source | None]]:
    """Yield (path, value, source) for each setting of an owner."""
    if not isinstance(value, Mapping):
        problem = f"a mapping of settings is needed, not {shown(value)}"
        raise BadInput(problem, key=owner, source=source)
    if not value:
        yield f"{owner}.", None, source
    for name, leaf in value.items():
        at = source_of(value, name) or source
        yield f"{owner}.{named_key(name, at, owner)}", leaf, at
