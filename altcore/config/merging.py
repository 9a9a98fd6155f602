"""Merging assignments: one value for each key, and where it was given."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import define

from altcore.config.assignments import refuse_twice
from altcore.config.expansion import Expansion
from altcore.config.original_keys import renamed_keys
from altcore.errors import DEFAULT, BadInput, Source, shown
from altcore.yaml_files import source_of, without_sources


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
            if not dot:
                # A recipe is read later, and its errors name the lines.
                merged.keys[path] = leaf if path == "recipe" else without_sources(leaf)
            else:
                own = merged.settings.setdefault(owner, {})
                own.update({rest: without_sources(leaf)} if rest else {})
    return merged


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
    if owner == "settings":
        if not rest and not isinstance(value, Mapping):
            problem = "a mapping of names to settings is needed"
            raise BadInput(problem, key="settings", source=source)
        if not rest:
            for name, own in value.items():
                yield from flatten(f"{name}.", own, source_of(value, name) or source, keys)
            return
        owner, _, rest = rest.partition(".")
    if rest:
        yield f"{owner}.{rest}", value, source
    elif isinstance(value, Mapping) and (key != owner or owner not in keys):
        if not value:
            yield f"{owner}.", None, source
        for name, leaf in value.items():
            yield f"{owner}.{name}", leaf, source_of(value, name) or source
    elif key.endswith("."):
        problem = f"a mapping of settings is needed, not {shown(value)}"
        raise BadInput(problem, key=owner, source=source)
    else:
        yield owner, value, source
