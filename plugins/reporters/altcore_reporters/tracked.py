"""What trackers are told of a run: while it goes on, and afterwards from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from altcore.plugin import RunRecord

Values = dict[str, Any]
Line = tuple[int, Values, float]
"""A step, its values, and the time in seconds since 1970."""


def values_of(line: Mapping[str, Any], timings: Mapping[str, Any]) -> Values:
    """Return what a tracker logs of a line of metrics: what was measured, and the step's time."""
    own = {k: v for k, v in line.items() if k != "step" and v is not None}
    return own | {k: timings[k] for k in ("step_time_ms",) if k in timings}


def lines_of(record: RunRecord) -> Iterator[Line]:
    """Yield each recorded line, in the record's order; its time is from the run's own clock."""
    began = datetime.strptime(record.environment["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    timings = {line["step"]: line for line in record.timings}
    elapsed = 0.0
    for line in record.metrics:
        own = timings.get(line["step"], {})
        elapsed = own.get("elapsed_seconds", elapsed)
        yield line["step"], values_of(line, own if "loss" in line else {}), began + elapsed
