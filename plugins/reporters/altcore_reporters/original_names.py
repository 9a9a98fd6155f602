"""What the original experiments called things, of which their notebooks and filters rely on."""

from __future__ import annotations

from typing import Any

from altcore.plugin import RunRecord

STATES = {
    "finished": "finished",
    "collapsed": "crashed",
    "stopped": "crashed",
    "failed": "failed",
    "interrupted": "failed",
    "unfinished": "running",
}
"""A run's state, by its status."""
FINISHED = "finished"
FAILED = ("crashed", "failed")
"""States of runs that did not come to their end."""
MANIFOLD_AWARE = "manifold-adamw"
"""The optimizer of runs that are aware of the manifold."""
SAME = ("steps", "final_loss", "best_loss", "bit_stall_final", "overflow_final")
"""Values of the summary that kept their names."""


def names_in_config(record: RunRecord) -> dict[str, Any]:
    """Return what the original experiments filter runs by."""
    optimizer = record.summary.get("optimizer")
    return {
        "format": record.summary.get("format") or "none",
        "optimizer": optimizer,
        "manifold_aware": optimizer == MANIFOLD_AWARE,
    }


def names_in_summary(record: RunRecord) -> dict[str, Any]:
    """Return the results that the original experiments read."""
    results = {name: record.summary.get(name) for name in SAME}
    return {**names_in_config(record), "state": STATES[record.summary["status"]], **results}
