"""Whether runs were made of the same code and data, by what each of them recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from altcore.runs.identity import DIGITS

Row = tuple[str, Sequence[str | None]]
"""What runs may have in common, and the text of each run's own; None of a run that has none."""


def other_code(codes: Sequence[Any]) -> dict[str, list[str | None]]:
    """Return each name whose code is not the same in all runs that have it, with each run's text.

    The digest decides, and without one the version: the text is that of the first with the same.
    ``codes`` are as environment.json has them under ``code``.

    >>> old, new = {"from": "mine 1.0", "sha256": "0a" * 32}, {"from": "mine 1.1", "sha256": None}
    >>> other_code([{"shrink": old}, {"shrink": new}, {}])
    {'shrink': ['mine 1.0 (0a0a0a0a0a0a)', 'mine 1.1', None]}
    >>> other_code([{"shrink": old}, {"shrink": {**old, "from": "mine 1.1"}}, {"shrink": 5}, None])
    {}
    """
    found = {}
    known = [_mapping(code) for code in codes]  # a file may hold anything
    for name in dict.fromkeys(name for code in known for name in code):
        parts = [code.get(name) for code in known]
        pairs = [_key_and_text(part) if isinstance(part, Mapping) else None for part in parts]
        texts = dict(reversed([pair for pair in pairs if pair]))
        if len(texts) > 1:
            found[name] = [pair and texts[pair[0]] for pair in pairs]
    return found


def other_data(
    configs: Sequence[Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
    environments: Sequence[Mapping[str, Any]],
    *,
    whatever_was_asked: bool = False,
) -> list[Row]:
    """Return the data that are not the same in all runs that have any.

    These are what a workload digests, its fact ``sha256``, and the files that settings name.

    Args:
        configs: of the runs.
        summaries: likewise.
        environments: as environment.json has them, ``files`` among its keys.
        whatever_was_asked: whether runs are compared whose settings of the same workload, or
            plugin, are not the same. Other settings may ask for other data.
    """
    known: list[dict[tuple[str, str], str]] = []
    for config, summary, environment in zip(configs, summaries, environments, strict=True):
        settings = {} if whatever_was_asked else _mapping(config.get("settings"))
        facts, files = _mapping(summary.get("workload_facts")), _mapping(environment.get("files"))
        found = [("sha256 of its data", str(config.get("workload")), facts.get("sha256"))]
        found += [
            (f"file of {place}", place.partition(".")[0], own) for place, own in files.items()
        ]
        known.append(
            {
                (what, json.dumps([owner, settings.get(owner)], sort_keys=True, default=str)): own
                for what, owner, own in found
                if isinstance(own, str) and own
            }
        )
    rows: list[Row] = []
    for key in dict.fromkeys(key for own in known for key in own):
        row = [own.get(key) for own in known]
        if len({*row} - {None}) > 1:
            rows.append((key[0], [own and own[:DIGITS] for own in row]))
    return rows


def unlike_most(names: Sequence[str], rows: Sequence[Row]) -> dict[str, str]:
    """Return the runs whose code or data are not those of most that have any, with both.

    >>> unlike_most(["a", "b", "c", "d"], [("shrink", ["mine 1", "mine 2", None, "mine 1"])])
    {'b': 'shrink is mine 2, and mine 1 in a'}
    """
    found: dict[str, list[str]] = {}
    for what, row in rows:
        (usual, _), *_ = Counter(own for own in row if own is not None).most_common(1)
        for name, own in zip(names, row, strict=True):
            if own not in (None, usual):
                told = f"{what} is {own}, and {usual} in {names[row.index(usual)]}"
                found.setdefault(name, []).append(told)
    return {name: "; ".join(told) for name, told in found.items()}


def several(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return a line for what is not the same in all runs that have any.

    >>> several(["a", "b", "c"], [("sha256 of its data", ["0a", "0b", "0b"])])
    ['sha256 of its data is 0a in 1 run (a), 0b in 2 (b, ...)']
    """
    lines = []
    for what, row in rows:
        pairs = [*zip(names, row, strict=True)]
        having = {text: [n for n, own in pairs if own == text] for text in row if text}
        (one, few), *others = having.items()
        told = [f"{one} in {len(few)} run{'s' * (len(few) != 1)} ({_first(few)})"]
        told += [f"{text} in {len(many)} ({_first(many)})" for text, many in others]
        lines.append(f"{what} is {', '.join(told)}")
    return lines


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, ..."


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _key_and_text(code: Mapping[str, Any]) -> tuple[str, str]:
    """Return what decides whether two codes are one, and a text."""
    origin, digest = str(code.get("from")), str(code.get("sha256") or "")
    return digest or origin, f"{origin} ({digest[:DIGITS]})" if digest else origin
