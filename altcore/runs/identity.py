"""The identity of a run: what decides its numbers, as plain data. A manifest holds it."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from altcore.builtin_types import to_json
from altcore.config import TrainConfig
from altcore.errors import keyed
from altcore.formats import AnyFormat, digest, format_digest
from altcore.hooks import formats_within, to_plain, values_of
from altcore.registry import HOOK_KINDS, Entry, find
from altcore.runs.files_in_settings import file_digests, members, named_files, paths_among
from altcore.runs.source import source_digest

KIND, PLACE = "kind", "place"
"""Of a plugin: what it is, and its module and class, as its entry point has them."""
NAME, MODULES, OPTIONS = "name", "modules", "options"
"""What a model that was given is known by: the name of its class, the kind of each module, and the
options that a kind does not tell."""
CODE, VALUES = "code", "values"
"""What a function that was given is known by, besides: the digest of its code by the version of
Python's bytecode, and the values of its variables by name."""
BUFFERS = "buffers"
"""What a model that was given is known by, besides: the digests of buffers that no state has."""
HOOKS = "hooks"
"""What a model that was given is known by, besides: the names of hooks by kind and place, with
functions in the place of methods; their code is under `CODE`."""
CHANGES = "changes as the run trains"
"""Stands for the value of such a variable or buffer, which is then not compared."""
INITIAL_WEIGHTS = "initial_weights"
"""The key of `environment.json` with the digest of the weights with which such a model came."""
UNKNOWN = "unknown"
"""Of the data: the parts of the first batch that have no digest."""
DIGITS = 12
"""Of a digest in a message."""


def identity_of(
    config: TrainConfig,
    *,
    owners: Mapping[str, Any],
    formats: Iterable[AnyFormat],
    data: Mapping[str, Any],
    where: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    world_size: int = 1,
) -> dict[str, Any]:
    """Return the identity of a run, as a manifest holds it.

    Args:
        config: the configuration, resolved.
        owners: workload, optimizer and plugins, built of their settings, by name.
        formats: those of the recipe, as the model has it.
        data: what the data are known by: ``sha256``, ``of``, and what the caller gave.
        where: the platform, as `platform_of` returns it.
        given: what came from Python in the place of the workload's own, by ``model``, ``data`` and
            ``loss``: each with its `NAME`, modules with their `MODULES` and `OPTIONS`, a model with
            its `BUFFERS` and `HOOKS`, functions with `CODE` and `VALUES`.
        world_size: the number of processes that train together.
    """
    used = [*formats, *formats_within([config.format, list(map(values_of, owners.values()))])]
    settings, surely = whole_settings(config, owners)
    found = {
        **configuration_identity(config, owners),
        "data": data_identity(settings, config.workload, data, surely),
        "format": {
            f.name: {"sha256": format_digest(f), "from": config.format_origins.get(f.name)}
            for f in used
        },
        "plugin": {**_plugins(config), **given},
        "world_size": world_size,
        "platform": where,
    }
    return _as_json(found)


def configuration_identity(config: TrainConfig, owners: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that the configuration and the settings of ``owners`` are.

    That is ``configuration``, and ``paths``: the places of settings that name files.
    """
    settings, surely = whole_settings(config, owners)
    paths = sorted(p for own in named_files(settings, surely).values() for p in own)
    return _as_json({"configuration": {**config.to_plain(), "settings": settings}, "paths": paths})


def whole_settings(
    config: TrainConfig, owners: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """Return the settings of ``owners``, defaults included, as plain data; and which are paths.

    ``owners`` are those of `identity_of`. Paths are given by place, and so by their type.
    """
    values = {name: values_of(owner) for name, owner in owners.items()}
    whole = {
        name: to_plain({**own, **config.settings.get(name, {})}) for name, own in values.items()
    }
    return whole, paths_among(config.settings) | paths_among(values)


def code_of(identity: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return the code that was installed for a run, by name, as environment.json holds it.

    That is distribution and version (``from``), and the digest of the source or the format
    (``sha256``). The names are those of plugins, and ``format NAME``, ``workload NAME`` and
    ``optimizer NAME``. What came from Python, of which `code_given` is, and a format that the
    configuration holds whole are not among them.
    """
    formats, plugins = identity.get("format") or {}, identity.get("plugin") or {}
    found = {
        f"format {name}": {"from": fmt["from"], "sha256": fmt["sha256"]}
        for name, fmt in formats.items()
        if fmt["from"]
    }
    for key, p in plugins.items():
        if "distribution" in p:
            name = f"{key} {p[NAME]}" if key in ("workload", "optimizer") else p[NAME]
            origin = f"{p['distribution']} {p['version']}"
            found[name] = {"from": origin, "sha256": p["sha256"]}
    return found


def given_in(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that names what came from Python."""
    plugins = identity.get("plugin")
    found = plugins.items() if isinstance(plugins, Mapping) else ()
    return {k: v for k, v in found if isinstance(v, Mapping) and "distribution" not in v}


def code_given(given: Any) -> dict[str, dict[str, str | None]]:
    """Return the code of what came from Python, by name, in the form of `code_of`.

    Two of which only values differ, as of the variables of a function, have the same.

    Args:
        given: as `given_in` returns it, and environment.json has it.
    """
    parts = given.items() if isinstance(given, Mapping) else ()
    found = {}
    for key, part in parts:
        code = {k: v for k, v in part.items() if k not in (NAME, VALUES, BUFFERS)}
        known = digest(code) if any(code.values()) else None
        found[f"given {key}"] = {"from": part[NAME], "sha256": known}
    return found


def files_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each file that settings name, as environment.json holds them."""
    data = identity.get("data") or {}
    return {
        place: digest for place, digest in data.items() if place not in ("sha256", "of", UNKNOWN)
    }


def platform_of(where: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may decide the bits of a run beside the rest: versions, and ``where`` it runs."""
    return {
        "altcore": _version("altcore", "altcore"),
        "torch": _version("torch"),
        "python": platform.python_version(),
        **where,
    }


def data_identity(
    settings: Mapping[str, Any],
    workload: str,
    data: Mapping[str, Any],
    surely: Collection[str] = (),
) -> dict[str, Any]:
    """Return what ``data`` are known by, with the digest of each file that ``settings`` name.

    A digest that the workload gives of its data is one of its files, too. ``surely`` are the places
    of paths, bare words among them.
    """
    asked = {k: v for k, v in settings.items() if k != workload or data["of"] != "workload"}
    return {**data, **file_digests(named_files(asked, surely))}


def _as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(to_json(found), default=_stand_in))
    return plain


def _stand_in(value: Any) -> Any:
    """Return what stands for a setting's value that JSON cannot hold: members, or the class."""
    if isinstance(value, set | frozenset):
        return members(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


def entries_of(config: TrainConfig) -> dict[str, Entry]:
    """Return what is installed of a run's code: ``workload``, ``optimizer``, plugins by name."""
    entries = {kind: find(getattr(config, kind), (kind,)) for kind in ("workload", "optimizer")}
    return entries | {name: find(name, HOOK_KINDS) for name in config.plugins}


def _plugins(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return what all that is no part of altcore is known by: where it lies, and its source."""
    return {
        key: {
            NAME: e.name,
            KIND: e.kind,
            PLACE: e.value,
            "distribution": e.distribution,
            "version": e.version,
            "sha256": plugin_digest(e),
        }
        for key, e in entries_of(config).items()
    }


def plugin_digest(entry: Entry) -> str | None:
    """Return the digest of a plugin's source; a `BadInput` names the plugin."""
    with keyed(f"{entry.kind} {entry.name}"):
        return source_digest(entry.value, entry.distribution)


def _version(distribution: str, module: str | None = None) -> str:
    from importlib.metadata import version

    files = f", files {(source_digest(module) or '')[:DIGITS]}" if module else ""
    return f"{version(distribution)}{files}"
