"""How an attempt ended: one record, written once by whoever ended it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import asdict, field, frozen

from altcore.runs import ENDED

COMPLETED = ENDED
"""Statuses of an attempt whose run came to an end of its own: a collapse is a result."""
LEFT = ("interrupted", "preempted", "lost")
"""Statuses of an attempt that was taken from its worker: no fault of the job's."""


@frozen(kw_only=True)
class Exit:
    """The end of an attempt."""

    status: str
    """A status of `ENDED`, or ``failed``, ``timeout``, ``refused``, or one of `LEFT`."""
    error: str = ""
    """What the run said of its failure, or the worker of its end."""
    cause: str = ""
    """By which rule of retrying it goes on, once that is known."""
    seconds: float | None = None
    """Wall-clock seconds of the attempt; None if its worker could not say."""
    verdict: str = ""
    used: Mapping[str, Any] = field(factory=dict)
    """What it used: ``peak_memory_bytes``, ``cpu_seconds``, ``gpu_memory_bytes``."""

    @property
    def is_complete(self) -> bool:
        """Whether the attempt has a result."""
        return self.status in COMPLETED

    @property
    def counts(self) -> bool:
        """Whether it counts as a failure of the job."""
        return not self.is_complete and self.status not in (*LEFT, "refused")

    def to_plain(self) -> dict[str, Any]:
        """Return the record as its file holds it."""
        return asdict(self)
