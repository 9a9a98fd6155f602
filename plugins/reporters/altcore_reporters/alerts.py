"""Which alerts a run gives rise to: they come from its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field, frozen

WAIT = 300.0
"""Seconds between two warnings of the same title."""
WARN, ERROR = "WARN", "ERROR"
STALL_RATES = ("stored_stall_rate", "view_stall_rate")
"""The first that a line has is the stall rate of the original experiments."""

Line = Mapping[str, Any]


@frozen
class Alert:
    """What people are told."""

    level: str
    title: str
    text: str
    wait: float = 0.0
    """Seconds until the same title may come again."""


@define(eq=False)
class Alerts:
    """Decides what people are alerted of, and not too often.

    A high stall rate says little: the quantized views of healthy runs stall at 80 to 95 %. So a raw
    rate alerts only where the configuration is one of the original experiments; in all other runs
    the engine judges, by what is learned.
    """

    config: Mapping[str, Any]
    """The run's configuration, as config.yaml has it."""
    now: Callable[[], float] = time.monotonic
    last: dict[str, float] = field(init=False, factory=dict)
    """When each title came."""

    def of_event(self, event: Line) -> Alert | None:
        """Return the alert of an event: a collapse, or an overflow rate above its threshold."""
        cause = event.get("cause")
        if event["event"] == "collapse":
            title = "Not finite" if cause == "nan_patience" else f"Collapse: {cause}"
            return self._due(Alert(ERROR, title, f"step {event['step']}: {event['reason']}"))
        if event["event"] == "warning" and cause == "overflow":
            text = f"step {event['step']}: {event['message']}"
            return self._due(Alert(WARN, "Overflow", text, WAIT))
        return None

    def of_line(self, line: Line) -> Alert | None:
        """Return the alert of a line of metrics: a raw stall rate, in original configurations."""
        threshold = self.config.get("bit_stall_threshold")
        rates = [line[key] for key in STALL_RATES if line.get(key) is not None]
        if not self.config.get("original") or threshold is None or not rates:
            return None
        if rates[0] <= threshold:
            return None
        text = f"step {line['step']}: {rates[0]:.1%} of updates moved nothing (bit_stall_threshold)"
        return self._due(Alert(WARN, "Bit stall", text, WAIT))

    def _due(self, alert: Alert) -> Alert | None:
        before = self.last.get(alert.title)
        if before is not None and self.now() - before < alert.wait:
            return None
        self.last[alert.title] = self.now()
        return alert
