"""Values of an accepted run by name: of its summary, or else of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import fields

from altcore.runs import METRICS, Summary, lines_of, summary_of

SUMMARY_KEYS = {a.name: a.metadata["help"] for a in fields(Summary)}
"""What each key of a summary holds."""


class Values:
    """The values of one run, read when they are first asked for.

    A name is a key of the summary, as ``final_loss``, or, with dots, a value within it, as
    ``evaluation.val_accuracy``. Any other is a measure of metrics.jsonl.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """How the run ended."""
        return summary_of(self.run)

    @cached_property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """What it recorded."""
        return lines_of(self.run, METRICS)

    def all(self, name: str) -> list[Any]:
        """Return the value that the summary has, or every one that was recorded, in order.

        A name of which there is nothing, and be it None, has no value.
        """
        key, *within = name.split(".")
        if key not in SUMMARY_KEYS:
            return [line[name] for line in self.lines if name in line]
        value = self.summary.get(key)
        for part in within:
            if not isinstance(value, Mapping) or part not in value:
                return []
            value = value[part]
        return [value]

    def last(self, name: str) -> Any:
        """Return the value that the summary has, or the last one that was recorded; else None."""
        return next(reversed(self.all(name)), None)
