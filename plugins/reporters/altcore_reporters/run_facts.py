"""What tells runs apart beside their configuration: data, changes half-way, and their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from altcore.plugin import other_code, other_data

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

DIGITS = 6
"""Characters of a digest that are shown."""


def data_of(record: RunRecord) -> str | None:
    """Return the start of the digest of a run's data, or what else its workload calls them."""
    facts = record.summary.get("workload_facts") or {}
    return str(facts.get("sha256", ""))[:DIGITS] or facts.get("data")


def changes_of(record: RunRecord) -> str | None:
    """Return what was changed by permission when a run went on, None if nothing was."""
    changes = record.config.get("changes") or ()
    return " and ".join(f"{c['what']} after step {c['step']}" for c in changes) or None


def versions_of(records: Sequence[RunRecord], watching: Collection[str]) -> list[dict[str, str]]:
    """Return of each run the formats, plugins and files of which other runs have another version.

    Plugins whose names are in ``watching`` change no number, and are left out with their files.
    """
    found = other_code([record.environment.get("code") for record in records])
    parts = ([getattr(r, part) for r in records] for part in ("config", "summary", "environment"))
    data = other_data(*parts, whatever_was_asked=True)
    files = [(what, row) for what, row in data if what.startswith("file of ")]
    owners = {what: what.removeprefix("file of ").partition(".")[0] for what, _ in files}
    found |= {what: [*row] for what, row in files if owners[what] not in watching}
    return [
        {key: own[i] for key, own in found.items() if own[i] is not None and key not in watching}
        for i in range(len(records))
    ]


def run_id(record: RunRecord) -> str:
    """Return what tells a run from every other: its id, or its name if it has none."""
    return str(record.environment.get("run_id") or record.name)


def is_again(record: RunRecord, others: Iterable[RunRecord]) -> bool:
    """Whether one of other runs is the same run, of which the directory was copied."""
    own = record.environment.get("run_id")
    seed = record.summary.get("seed")
    return own is not None and any(
        other.environment.get("run_id") == own and other.summary.get("seed") == seed
        for other in others
    )
