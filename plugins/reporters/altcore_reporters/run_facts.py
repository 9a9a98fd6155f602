"""What tells runs apart beside their configuration: their data, and what was changed half-way."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
