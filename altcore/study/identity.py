"""The identity of a run: its configuration, formats' values, data and code.

A study identifies its runs by it. After a change, the changed runs are new ones beside the old.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from attrs import fields_dict

from altcore.config import TrainConfig
from altcore.engine import choose_device, owners_of
from altcore.formats import BlockFormat, Format, format_digest
from altcore.hooks import formats_within, values_of
from altcore.runs import (
    KEPT,
    NAMES,
    entries_of,
    file_digests,
    named_files,
    plugin_digest,
    source_digest,
    whole_settings,
)


def identity(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a run's numbers, as plain data.

    ``facts`` are those of the workload, its data included.
    """
    # Each format has its digest.
    left_out = (*NAMES, *KEPT, "changes", "format_digests", "format_origins")
    owners = owners_of(config)
    formats = formats_within([values_of(owner) for owner in owners.values()])
    keys = {k: getattr(config, k) for k in fields_dict(TrainConfig) if k not in left_out}
    return {
        "config": plain({**keys, "device": choose_device(config.device).type}),
        "workload": plain(facts),
        "files": dict(files(*whole_settings(config, owners))),
        "formats": {fmt.name: format_digest(fmt) for fmt in formats},
        "code": code(config),
    }


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can write it; a format by its name and digest."""
    if isinstance(value, Format | BlockFormat):
        return {"format": value.name, "sha256": format_digest(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


# Data ------------------------------------------------------------------------------------------


def files(settings: Mapping[str, Any], surely: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield each text that names a file or folder, with the digest of its contents.

    ``settings`` and ``surely`` are those of `named_files`.
    """
    named = named_files(settings, surely)
    digests = file_digests(named)
    texts = {text: digests[place] for own in named.values() for place, text in own.items()}
    yield from sorted(texts.items())


# Code ------------------------------------------------------------------------------------------


def code(config: TrainConfig) -> dict[str, Any]:
    """Return versions and source digests of altcore and of the plugins in the run."""
    entries = entries_of(config).values()
    return {
        "altcore": [version("altcore"), source_digest("altcore")],
        "torch": version("torch"),
        **{f"{e.kind} {e.name}": [e.origin, e.value, plugin_digest(e)] for e in entries},
    }
