"""How an attempt ended: one record, written once by whoever ended it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import NOTHING, asdict, field, frozen
from attrs.validators import deep_iterable, deep_mapping, instance_of, optional

from altcore.runs import ENDED
from altcore.sweep.records import number
from altcore.sweep.usage import check_used

COMPLETED = ENDED
"""Statuses of an attempt whose run came to an end of its own: a collapse is a result."""
LOST = "lost"
SIGNAL = "signal"
"""The cause of an attempt that a signal interrupted, and not a disk: the job itself may send it."""
LEFT = ("interrupted", LOST)
"""Statuses of an attempt that was taken from its worker: no fault of the job's. A scheduler that
preempts it interrupts it by a signal, or, if that finds no time, it is lost."""


def _text(default: Any = NOTHING) -> Any:
    return field(default=default, validator=instance_of(str))


_TEXTS = deep_mapping(instance_of(str), instance_of(str), instance_of(dict))
_LIST = deep_iterable(instance_of(str), instance_of(list))


@frozen(kw_only=True)
class Exit:
    """The end of an attempt."""

    status: str = _text()
    """A status of `ENDED`, or ``failed``, ``timeout``, ``refused``, or one of `LEFT`."""
    error: str = _text("")
    """What the run said of its failure, or the worker of its end."""
    cause: str = _text("")
    """By which rule of retrying it goes on, once that is known."""
    seconds: float | None = field(default=None, validator=optional(number))
    """Wall-clock seconds of the attempt, of a lost one by its heartbeats; None if not known."""
    verdict: str = _text("")
    collapse: str = _text("")
    """The cause of a collapse that the sweep takes for a failure, as the summary has it."""
    checkpoint: int = field(default=-1, validator=instance_of(int))
    """Of a lost or interrupted attempt: the step of its newest checkpoint, -1 without one."""
    used: Mapping[str, Any] = field(factory=dict, validator=check_used)
    """What it used, as `altcore.sweep.usage` measures it."""
    settings: Mapping[str, Any] = field(factory=dict, validator=instance_of(dict))
    """Settings, by dotted key, that a retry may halve, as the run had them: those that the job
    leaves to its workload, and fractions that it gives as whole numbers."""
    changes: Sequence[str] = field(factory=list, validator=_LIST)
    """What the job bound anew in torch: its process is not as it was, and numbers may be others."""
    accepted: Mapping[str, str] = field(factory=dict, validator=_TEXTS)
    """Of a run that was accepted: the digests of its job and of its files, as they were then."""

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
