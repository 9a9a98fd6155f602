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


def accepted_of(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt whose run was accepted; None if no record says which one that is.

    Who was later is refused. One that did not end may have made the run again, if somebody had
    removed it, and its worker was killed before it wrote that down.
    """
    for attempt in reversed(attempts):
        ended = _end(attempt)
        if ended is None or ended.is_complete:
            return attempt if ended else None
    return None


def seconds_of_run(attempts: Sequence[Attempt]) -> float | None:
    """Return the wall-clock seconds of the run that was accepted, of all attempts that led to it.

    An attempt with other settings was another run, and so was one before a run that was removed.
    None if no end of a run is known.
    """
    accepted = accepted_of(attempts)
    if accepted is None:
        return None
    changed, own = changed_in(accepted), list[Exit]()
    for attempt, ended in ended_in(attempts):
        if attempt.number > accepted.number:
            break
        if own and own[-1].is_complete:
            own.clear()
        if changed_in(attempt) == changed:
            own.append(ended)
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
