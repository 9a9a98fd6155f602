"""Runs that repeat one another, and what the configurations of the others differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

NAMES = {
    *("name", "label", "project", "tags", "runs_dir", "changes"),
    *("format_digests", "format_origins"),  # they follow from formats and plugins
}
"""Keys that say where a run is and what it is called, not what it does."""
WATCHING = {"plugins", "no_plugins", "strict", "check_observers", "hook_timeout"}
"""Keys by which runs may be watched differently; no reason to call them different runs.

A plugin that acts has settings or changes the record; see `Group`.
"""
SEED, RECIPE = "seed", "recipe"
NAMELESS = ("format", RECIPE, "optimizer", "workload")
"""Keys whose values say what they are."""
LABEL = 4
"""Most values in a label."""
UNSET = "–"

Flat = dict[str, Any]


@frozen
class Group:
    """Runs with one configuration, but for the seed."""

    label: str
    """What sets it apart from the others: the values of the keys in which they differ."""
    records: Sequence[RunRecord]
    values: Mapping[str, str]
    """These values, by key."""


@frozen
class Difference:
    """A key of the configuration, and the value that each run has."""

    key: str
    values: Sequence[str]


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """Return the runs by configuration, in the order of the first run of each.

    Runs without a configuration are alone. Two runs of one configuration and one seed are in one
    group, too.
    """
    flats = [_identity(r) for r in records]
    keys = _varying(flats)
    groups: dict[Any, list[int]] = {}
    for i, flat in enumerate(flats):
        mark = tuple((k, _word(flat.get(k))) for k in keys) if flat else ("alone", i)
        groups.setdefault(mark, []).append(i)
    found = []
    for members in groups.values():
        first = members[0]
        values = {k: _word(flats[first].get(k)) for k in keys} if flats[first] else {}
        known = [
            v if _short(k) in ("format", "recipe", "optimizer", "workload") else f"{_short(k)} {v}"
            for k, v in values.items()
            if v != UNSET
        ]
        label = " · ".join(known) or _name(records[first], len(groups))
        found.append(Group(label, [records[i] for i in members], values))
    return found


def differences(records: Sequence[RunRecord]) -> list[Difference]:
    """Return the keys in which the configurations differ, seed and observers included."""
    flats = [flat_config(r) for r in records]
    keys = [k for k in _varying(flats) if k.partition(".")[0] not in NAMES]
    return [Difference(k, [_word(flat.get(k)) for flat in flats]) for k in keys]


def flat_config(record: RunRecord) -> Flat:
    """Return the configuration with dotted keys; the settings of plugins by their short form."""
    found: Flat = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for inner, own in value.items():
                add(f"{key}.{inner}", own)
        else:
            found[key.removeprefix("settings.")] = value

    for key, value in record.config.items():
        if key == RECIPE and isinstance(value, Mapping):
            found[RECIPE] = value
        else:
            add(str(key), value)
    return found


def _identity(record: RunRecord) -> Flat:
    ignored = NAMES | WATCHING | {SEED}
    return {k: v for k, v in flat_config(record).items() if k.partition(".")[0] not in ignored}


def _varying(flats: Sequence[Flat]) -> list[str]:
    """Return the keys that have several values, the telling ones first."""
    known = [flat for flat in flats if flat]
    keys = list(dict.fromkeys(k for flat in known for k in flat))
    found = [k for k in keys if len({_exact(flat.get(k)) for flat in known}) > 1]
    return sorted(found, key=lambda k: NAMELESS.index(k) if k in NAMELESS else len(NAMELESS))


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _word(value: Any) -> str:
    """Return a value of the configuration in a few letters."""
    if isinstance(value, Mapping) and value:
        return _word(value.get("name") or "given")
    if value is None or value == [] or value == {}:
        return UNSET
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_word(v) for v in value)
    return str(value).removesuffix(".yaml")  # a recipe's file


def _name(record: RunRecord, groups: int) -> str:
    if groups > 1:
        return record.name
    return str(record.summary.get("format") or record.name)
