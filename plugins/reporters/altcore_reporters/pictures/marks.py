"""What happened in a run, and at which step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

KINDS = ("nan", "shift", "rollback", "collapse", "stop")
"""What is marked: the kinds of `Mark`."""


@frozen
class Mark:
    """Something that happened at a step."""

    step: int
    kind: str
    """One of `KINDS`."""
    text: str
    """What it was, in words."""
    last: int
    """The last step of a streak of steps that were not finite; otherwise ``step``."""


def marks_of(record: RunRecord) -> list[Mark]:
    """Return what happened, in order; of a run without events what its summary tells."""
    events = record.events or list(_events_of(record.summary))
    found: list[Mark] = []
    for event in events:
        mark = _mark(event)
        if mark is None:
            continue
        before = found[-1] if found else None
        is_streak = before and before.kind == mark.kind == "nan" and mark.step <= before.last + 1
        if before and is_streak:
            found[-1] = evolve(before, last=mark.step)
        else:
            found.append(mark)
    return found


def _mark(event: Mapping[str, Any]) -> Mark | None:
    kind, step = event["event"], event["step"]
    if kind == "nan":
        where = [event.get("what"), event.get("layer"), event.get("operand")]
        words = " of ".join(str(w) for w in where[:2] if w)
        value = event.get("value")
        return Mark(step, "nan", f"{value} in {words}" if words else "not finite", step)
    if kind == "collapse":
        return Mark(step, "collapse", str(event.get("reason") or event.get("cause")), step)
    if kind == "rollback":
        text = f"back to the weights of step {event.get('to')}"
        return Mark(step, "rollback", _with_reason(text, event), step)
    if kind == "recipe":
        text = f"{_formats(event.get('from'))} to {_formats(event.get('to'))}"
        return Mark(step, "shift", _with_reason(text, event), step)
    if kind == "verdict":
        stops = [p for p in event.get("chosen") or [] if p.get("action") == "Stop"]
        if stops:
            return Mark(step, "stop", _with_reason(str(stops[0].get("plugin")), stops[0]), step)
    return None


def _events_of(summary: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield what a summary tells of what happened, as events do."""
    found = [{**shift, "event": "recipe"} for shift in summary.get("shifts") or []]
    found += [{**collapse, "event": "collapse"} for collapse in summary.get("collapses") or []]
    return sorted(found, key=lambda event: event["step"])


def _formats(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(dict.fromkeys(value.values()))
    if isinstance(value, list | tuple):
        return ", ".join(dict.fromkeys(map(str, value))) or "none"
    return str(value) if value else "none"


def _with_reason(text: str, event: Mapping[str, Any]) -> str:
    reason = event.get("reason")
    return f"{text}: {reason}" if reason else text
