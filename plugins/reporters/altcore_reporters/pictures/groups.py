"""Runs that repeat one another, and what the configurations of the others differ in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore_reporters.run_facts import versions_of

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

NAMES = {
    *("name", "label", "project", "tags", "runs_dir", "changes", "original"),
    *("format_digests", "format_origins"),  # follow from the others, as the original keys
}
"""Keys that say where a run is and what it is called, not what it does."""
WATCHING = {"no_plugins", "strict", "check_observers", "hook_timeout"}
"""Keys that say how runs are watched."""
LOOKING = ("altcore.diagnostics", "altcore.reporters")
"""Entry points of plugins that change no number."""
SEED, RECIPE = "seed", "recipe"
NAMELESS = ("format", RECIPE, "optimizer", "workload")
"""Keys whose values say what they are."""
ALWAYS = ("format", RECIPE)
"""Keys that are in every label if they vary."""
MOST = 5
"""Most keys in a label."""
LONGEST = 40
"""Most characters of a value in a label."""
UNSET = "–"
GIVEN = "given"
"""The word for a format or a recipe without a name."""

Flat = dict[str, Any]


@frozen
class Group:
    """Runs with one configuration and code, but for the seed."""

    label: str
    """What sets it apart from the others: the values of the keys in which they differ."""
    records: Sequence[RunRecord]
    values: Mapping[str, str]
    """These values, by key."""


@frozen
class Difference:
    """A key of the configuration or the code, and the value that each run has."""

    key: str
    values: Sequence[str]


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """Return the runs by configuration, in the order of the first run of each.

    Runs without a configuration are alone. Two runs of one configuration and one seed are in one
    group, too.
    """
    flats = _identities(records)
    keys = _varying(flats)
    groups: dict[Any, list[int]] = {}
    for i, flat in enumerate(flats):
        mark = tuple(_exact(flat.get(k)) for k in keys) if flat else ("alone", i)
        groups.setdefault(mark, []).append(i)
    firsts = [members[0] for members in groups.values()]
    values = [{k: _word(flats[i].get(k)) for k in keys} if flats[i] else {} for i in firsts]
    names = [_name(records[i], len(groups)) for i in firsts]
    for own, members in zip(values, groups.values(), strict=True):
        if own.get(RECIPE) == GIVEN:
            own[RECIPE] = _stem([records[i].name for i in members])
    return [
        Group(label, [records[i] for i in members], own)
        for label, members, own in zip(_labels(values, names), groups.values(), values, strict=True)
    ]


def by_seed(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return runs by their seed; each one whose seed is not known is by itself."""
    found: dict[str, list[RunRecord]] = {}
    for i, record in enumerate(records):
        seed = record.summary.get("seed")
        found.setdefault(f"unknown {i}" if seed is None else str(seed), []).append(record)
    return found


def _labels(values: Sequence[Mapping[str, str]], names: Sequence[str]) -> list[str]:
    """Return a label for each group: the values of as few keys as tell the groups apart.

    Groups without values have their names. Where `MOST` keys are not enough, numbers follow.
    """
    keys = list(dict.fromkeys(k for own in values for k in own))
    used = [k for k in keys if k in NAMELESS]
    usual = {k: _most_common([own.get(k, UNSET) for own in values]) for k in keys}

    def told(used: Sequence[str]) -> list[str]:
        return [_label(own, used) or name for own, name in zip(values, names, strict=True)]

    while len(set(told(used))) < len(values) and len(used) < MOST:
        best = max(keys, key=lambda k: len(set(told([*used, k]))), default=None)
        if best is None or len(set(told([*used, best]))) == len(set(told(used))):
            break
        used.append(best)
    # What most have in common goes without saying, if the labels still differ.
    short = [
        _label({k: v for k, v in own.items() if k in ALWAYS or v != usual[k]}, used) or name
        for own, name in zip(values, names, strict=True)
    ]
    whole = told(used)
    counts: Counter[str] = Counter()
    labels = []
    for label in short if len(set(short)) == len(set(whole)) else whole:
        counts[label] += 1
        labels.append(label if counts[label] == 1 else f"{label} ({counts[label]})")
    return labels


def _most_common(words: Sequence[str]) -> str:
    """Return the word that is there most often; of several such the first by the alphabet."""
    return min(words, key=lambda word: (-words.count(word), word))


def _label(values: Mapping[str, str], keys: Sequence[str]) -> str:
    found = [(k, values[k]) for k in keys if values.get(k, UNSET) != UNSET]
    found = [(k, v if len(v) <= LONGEST else f"{v[: LONGEST - 1]}…") for k, v in found]
    words = [v if k in NAMELESS else f"{_short(k)} {v}" for k, v in found]
    return "\u00a0· ".join(words)  # no line begins with a dot


def _stem(names: Sequence[str]) -> str:
    """Return what the names of a group's runs begin with, up to a dash.

    >>> _stem(["FU-s42-lr3-9c1", "FU-s43-lr3-03e"]), _stem(["FU-s42-lr3-9c1"])
    ('FU', 'FU-s42-lr3-9c1')
    """
    if len(names) == 1:
        return names[0]
    stem = names[0]
    while stem and not all(name.startswith(f"{stem}-") for name in names):
        stem = stem[:-1]
    return stem or GIVEN


def differences(records: Sequence[RunRecord]) -> list[Difference]:
    """Return the keys in which configurations and code differ, seed and observers included."""
    codes = versions_of(records, ())
    flats = [flat_config(r) | own for r, own in zip(records, codes, strict=True)]
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
        if key in ALWAYS and isinstance(value, Mapping):
            found[key] = value
        else:
            add(str(key), value)
    return found


def _identities(records: Sequence[RunRecord]) -> list[Flat]:
    """Return the configuration and code of each run without seed, names, and what only looks."""
    looking = _looking()
    ignored = NAMES | WATCHING | {SEED} | looking
    found = []
    for record, code in zip(records, versions_of(records, looking), strict=True):
        own = {k: v for k, v in flat_config(record).items() if k.partition(".")[0] not in ignored}
        if own:
            # One that is not installed here may act, and stays.
            listed = own.get("plugins")
            listed = listed if isinstance(listed, list | tuple) else []
            own["plugins"] = [p for p in listed if not (isinstance(p, str) and p in looking)]
            own |= code
        found.append(own)
    return found


@cache
def _looking() -> frozenset[str]:
    """Return the names of the installed plugins that only look."""
    return frozenset(point.name for group in LOOKING for point in entry_points(group=group))


def _varying(flats: Sequence[Flat]) -> list[str]:
    """Return the keys that have several values, the telling ones first, then by name."""
    known = [flat for flat in flats if flat]
    keys = sorted({k for flat in known for k in flat})
    found = [k for k in keys if len({_exact(flat.get(k)) for flat in known}) > 1]
    return sorted(found, key=lambda k: NAMELESS.index(k) if k in NAMELESS else len(NAMELESS))


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _word(value: Any) -> str:
    """Return a value of the configuration in a few letters."""
    if isinstance(value, Mapping) and value:
        return _word(value.get("name") or GIVEN)
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
