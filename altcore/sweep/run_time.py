"""How long a run took: one attempt after another, each of which went on where the last one left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from altcore.errors import BadInput
from altcore.sweep.attempt import Attempt
from altcore.sweep.exits import Exit

Ended = Sequence[tuple[Attempt, Exit]]


def ended_in(attempts: Sequence[Attempt]) -> Ended:
    """Return the attempts that ended, with their ends, as far as these can be read."""
    return [(a, ended) for a in attempts if (ended := _end(a)) is not None]


def accepted_of(known: Ended) -> Attempt | None:
    """Return the attempt whose run was accepted: who was later is refused."""
    return next((a for a, ended in reversed(known) if ended.is_complete), None)


def seconds_of_run(known: Ended) -> float | None:
    """Return the wall-clock seconds of the run that was accepted, of all attempts that led to it.

    An attempt with other settings was another run. None if no end of a run is known.
    """
    accepted = accepted_of(known)
    if accepted is None:
        return None
    changed = changed_in(accepted)
    own = [e for a, e in known if a.number <= accepted.number and changed_in(a) == changed]
    told = [e.seconds for e in own if e.seconds is not None]
    return sum(told) if told else None


def changed_in(attempt: Attempt | None) -> Mapping[str, Any]:
    """Return the settings that a retry changed for an attempt."""
    # No retry came before the first attempt.
    if attempt is None or attempt.number == 1:
        return {}
    with suppress(BadInput):
        return attempt.lease.changed
    return {}


def _end(attempt: Attempt) -> Exit | None:
    """Return how an attempt ended, as far as can be read: its job has a result all the same."""
    with suppress(BadInput):
        return attempt.exit
    return None
