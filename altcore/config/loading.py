"""Loading: defaults, a file and the command line become one checked `TrainConfig`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from attrs import fields_dict

from altcore.builtin_types import as_builtin, nested_too_deeply
from altcore.config.assignments import Assignment, named_key
from altcore.config.expansion import expand
from altcore.config.merging import Merged, flatten, full_key, merge
from altcore.config.original_keys import compound_keys, renamed_keys
from altcore.config.train_config import TrainConfig, defaults, owners
from altcore.errors import BadInput, Source, item_key, located, nearest, shown
from altcore.formats import ChangedFormat
from altcore.registry import HOOK_KINDS, entries
from altcore.yaml_files import read_mapping, source_of

Override: TypeAlias = tuple[str, Any, Source | None]
"""A key, dotted if it is a setting; its value; and where it was given, None from Python."""


def load_config(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
    plugins: Sequence[str] = (),
    without: Iterable[str] = (),
) -> TrainConfig:
    """Return the checked configuration: defaults, then ``file``, then ``overrides``.

    Args:
        file: a YAML file of keys, original flat keys included.
        overrides: keys that win over the file's, as ``{"preset": "format-experiment"}``.
        plugins: plugins to append to those of the file.
        without: plugins and observers to leave out.

    Raises:
        BadInput: with the key, where it was given, and what would be right.
    """
    return load_with_sources(file, overrides, plugins, without)[0]


def load_with_sources(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
    plugins: Sequence[str] = (),
    without: Iterable[str] = (),
) -> tuple[TrainConfig, dict[str, Source | None]]:
    """Return what `load_config` does, and where each key was given.

    Whoever builds something of the configuration says so in errors, by `altcore.errors.located`.
    """
    plain, sources = merge_sources(file, overrides, plugins, without)
    try:
        return TrainConfig.from_plain(plain, sources), sources
    except ChangedFormat as error:
        error.hint += ", or remove the name from format_digests for a run with today's values"
        raise


def merge_sources(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
    plugins: Sequence[str] = (),
    without: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, Source | None]]:
    """Return the keys that `load_config` is given, unchecked, and where each was given."""
    expansion = expand(_given(file, overrides))
    merged = merge(expansion, _first(), fields_dict(TrainConfig).keys())
    keys, sources = merged.keys, merged.sources
    if expansion.original:
        keys["original"] = {**keys.get("original", {}), **expansion.original}
    if plugins:
        sources.setdefault("plugins", Source(flag="--plugin"))
        sources |= {item_key("plugins", p): Source(flag="--plugin") for p in plugins}
    if without:
        sources["no_plugins"] = Source(flag="--no-plugin")
        sources |= {item_key("no_plugins", p): Source(flag="--no-plugin") for p in without}
    with located(sources):
        left_out = [*_names("no_plugins", keys.get("no_plugins", ())), *without]
        listed = _names("plugins", keys.get("plugins", ()))
        added = [p for p in expansion.plugins if p not in {*listed, *plugins}]
        keys["plugins"] = _with_observers([*listed, *added, *plugins], left_out)
    _drop_implied(merged)
    keys |= {"no_plugins": left_out, "settings": merged.settings}
    _refuse_unknown(merged)
    return keys, sources


def _given(
    file: str | Path | None, overrides: Mapping[str, Any] | Sequence[Override]
) -> list[Assignment]:
    given: list[Assignment] = []
    if isinstance(file, Mapping):
        raise BadInput("keys stand where a file is expected", hint="give them as overrides={...}")
    if file is not None:
        held = read_mapping(file, "config")
        at = {k: source_of(held, k) or Source(str(file)) for k in held}
        given += [Assignment(named_key(k, at[k]), v, at[k], 0) for k, v in held.items()]
    if isinstance(overrides, Mapping):
        overrides = [(key, value, None) for key, value in overrides.items()]
    return given + [Assignment(named_key(k, at), _plain(k, v, at), at) for k, v, at in overrides]


def _first() -> dict[str, str]:
    """Return the workload and optimizer of a run that names none."""
    return {key: str(defaults()[key]) for key in ("workload", "optimizer")}


def in_full(overrides: Iterable[Override]) -> Iterator[Override]:
    """Yield overrides, not checked, with a dotted key for each setting that a mapping gives."""
    for key, value, at in overrides:
        for path, leaf, source in flatten(named_key(key, at), value, at, fields_dict(TrainConfig)):
            yield path, {} if path.endswith(".") else leaf, source


def active_of(file: str | Path | None, overrides: Sequence[Override]) -> dict[str, str]:
    """Return the workload and the optimizer that a file and keys above it name, or the default."""
    last = {a.key: a.value for a in expand(_given(file, overrides)).assignments}
    return {key: str(last.get(key, default)) for key, default in _first().items()}


def full_name(key: str, active: Mapping[str, str]) -> str:
    """Return the key that a key such as ``batch_size`` is short for, with such an `active_of`."""
    return full_key(key, _first(), active)


def _plain(key: str, value: Any, at: Source | None) -> Any:
    if problem := nested_too_deeply(value):
        raise BadInput(f"its value {problem}", key=named_key(key, at), source=at)
    return as_builtin(value)


def _drop_implied(merged: Merged) -> None:
    """Drop implied settings of what is not active; the record has their original keys."""
    keys = merged.keys
    active = {str(keys["workload"]), str(keys["optimizer"]), *keys["plugins"]}
    for owner, setting in (path.split(".", 1) for path in merged.implied):
        if owner not in active:
            del merged.settings[owner][setting], merged.sources[f"{owner}.{setting}"]
            if not merged.settings[owner]:
                del merged.settings[owner]


def _refuse_unknown(merged: Merged) -> None:
    known = fields_dict(TrainConfig)
    for key in (k for k in merged.keys if k not in known):
        source = merged.sources[key]
        if key in owners():
            raise BadInput("a mapping of settings is needed", key=key, source=source)
        raise BadInput(
            f"unknown key {shown(key)}",
            meant=nearest(key, [*known, *renamed_keys(), *compound_keys()]),
            source=source,
        )


def _names(key: str, given: Any) -> list[str]:
    """Return the value of a key that lists names."""
    if not isinstance(given, list | tuple) or not all(isinstance(g, str) for g in given):
        raise BadInput(f"a list of names is needed, not {shown(given)}", key=key)
    return list(given)


def _with_observers(wanted: list[str], without: list[str]) -> list[str]:
    installed = {e.name for e in entries() if e.kind in HOOK_KINDS}
    observers = [o for o in defaults()["observers"] if o in installed]
    for name in without:
        if name not in {*wanted, *defaults()["observers"]}:
            active = list(dict.fromkeys([*wanted, *observers]))
            raise BadInput(
                f"{shown(name)} is not active",
                key="no_plugins",
                meant=nearest(name, active),
                hint=f"active are {', '.join(active) or 'none'}",
                item=name,
            )
        if without.count(name) > 1:
            raise BadInput(f"{shown(name)} is given twice", key="no_plugins", item=name)
    wanted += [o for o in observers if o not in wanted]
    return [w for w in wanted if w not in without]


def missing_observers() -> list[str]:
    """Return the default observers that are not installed: each is left out with one line."""
    installed = {e.name for e in entries()}
    return [o for o in defaults()["observers"] if o not in installed]
