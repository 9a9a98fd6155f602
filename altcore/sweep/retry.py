"""Whether a job that failed is tried again, and with what changed: data, and a pure function.

Training is deterministic, so an attempt that failed by its numbers is never repeated unchanged. A
setting that a retry changes is named, since the run is another experiment then. The seed is a
factor of the sweep, and no retry changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen
from attrs.validators import ge

from altcore.hooks import setting
from altcore.sweep.exits import LEFT, LOST, SIGNAL, Exit
from altcore.sweep.records import is_number

UNKNOWN = "unknown"
GRADIENT, COLLAPSE = "gradient", "collapse"


@frozen(kw_only=True)
class Rule:
    """What is done about one cause of failure."""

    limit: int = setting(0, help="attempts that may follow failures of this cause", validator=ge(0))
    patterns: tuple[str, ...] = setting(
        (),
        help="literal texts, one of which the error contains, in any case",
        converter=tuple,
    )
    halve: dict[str, float] = setting(
        factory=dict, help="settings that the next attempt halves, and the least value of each"
    )
    repeat: bool = setting(
        False,
        help="whether the attempt is made again as it was, and nothing is halved",
    )


DEFAULT_RULES: Mapping[str, Rule] = {
    "out_of_memory": Rule(
        limit=3,
        patterns=("out of memory", "OutOfMemoryError", "can't allocate memory", "MemoryError"),
        halve={"batch_size": 16, "workers": 1},
    ),
    GRADIENT: Rule(
        limit=2,
        patterns=("gradient overflow", "nan loss", "inf detected", "not finite"),
        halve={"learning_rate": 0},
    ),
    "timeout": Rule(limit=1, patterns=("TimeoutError", "SLURM timeout"), repeat=True),
    LOST: Rule(limit=2, repeat=True),
    SIGNAL: Rule(limit=9, repeat=True),
    COLLAPSE: Rule(),
    UNKNOWN: Rule(),
}
"""A worker that is lost or interrupted is no failure of its job, unless the job itself ends its
workers: of `LOST` and `SIGNAL`, those count that follow one another while the job saves no newer
checkpoint. Signals are likelier to come from outside."""


@frozen(kw_only=True)
class Decision:
    """What becomes of a job after an attempt."""

    goes_on: bool
    why: str
    changed: Mapping[str, Any] = field(factory=dict)
    """The settings of the next attempt that differ from the job's, by dotted key."""
    comes_later: bool = False
    """Whether other jobs begin before it, since it may end its workers."""


def cause_of(ended: Exit, rules: Mapping[str, Rule]) -> str:
    """Return which rule is for a failure: by its status, else the first one by cause or text."""
    if ended.status in ("timeout", *LEFT):
        return ended.status
    error, by_collapse = ended.error.lower(), _cause_of_collapse(ended)
    found = (
        name
        for name, rule in rules.items()
        if name == by_collapse or any(p.lower() in error for p in rule.patterns)
    )
    return next(found, UNKNOWN)


def _cause_of_collapse(ended: Exit) -> str:
    if not ended.collapse:
        return ""
    return GRADIENT if ended.collapse == "nan_patience" else COLLAPSE


def decide(
    exits: Sequence[Exit],
    config: Mapping[str, Any],
    changed: Mapping[str, Any],
    rules: Mapping[str, Rule] = DEFAULT_RULES,
) -> Decision:
    """Return what follows the last of a job's attempts.

    Args:
        exits: of all attempts so far, in order.
        config: the job's configuration, in plain data.
        changed: the settings that the last attempt changed already.
        rules: for each cause of failure.
    """
    last = exits[-1]
    if last.is_complete:
        return Decision(goes_on=False, why="it has a result")
    if last.status in (*LEFT, "refused"):
        count, way = ended_in_a_row(exits), _way(last)
        if way and count > rules.get(way, Rule()).limit:
            what = "lost {} worker{}" if way == LOST else "was interrupted {} time{}"
            told = what.format(count, "s" * (count > 1))
            why = f"it {told} in a row without a newer checkpoint"
            return Decision(goes_on=False, why=why)
        why = f"{last.status}, which is no failure"
        return Decision(goes_on=True, why=why, changed=changed, comes_later=count > 1)
    causes = [cause_of(e, rules) for e in exits if e.counts]
    cause = causes[-1]
    rule = rules.get(cause, Rule())
    if causes.count(cause) > rule.limit:
        return Decision(goes_on=False, why=f"{cause}: {_attempts(rule.limit)} after a failure")
    if rule.repeat:
        return Decision(goes_on=True, why=f"{cause}: tried again as it was", changed=changed)
    halved = _halved(rule.halve, config, {**changed, **last.settings})
    if not halved:
        wanted = ", ".join(rule.halve) or "nothing"
        return Decision(
            goes_on=False,
            why=f"{cause}: a run that is repeated unchanged fails again, and the rule changes "
            f"{wanted}, which is not set or already as low as may be",
        )
    told = ", ".join(f"{key} {value:g}" for key, value in halved.items())
    return Decision(goes_on=True, why=f"{cause}: with {told}", changed={**changed, **halved})


def _way(ended: Exit) -> str:
    """Return the way in which a job may have ended its worker: `LOST`, `SIGNAL` or none."""
    return next((way for way in (LOST, SIGNAL) if way in (ended.status, ended.cause)), "")


def ended_in_a_row(exits: Sequence[Exit]) -> int:
    """Return how many of the last attempts ended their worker, in the same way as the last one.

    They count since the job made progress.
    """
    count, newest, last = 0, -1, _way(exits[-1])
    for ended in exits:
        if not last or _way(ended) != last:
            count, newest = 0, -1
            continue
        count = 1 if ended.checkpoint > newest else count + 1
        newest = max(newest, ended.checkpoint)
    return count


def _attempts(limit: int) -> str:
    return "no attempt is made" if not limit else f"{limit} more attempt{'s' * (limit > 1)} made"


def _halved(
    wanted: Mapping[str, float], config: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the wanted settings that can be halved, with their new values, by dotted key."""
    found = {}
    for name, least in wanted.items():
        for key, now in _settings_named(name, config, known).items():
            half = now // 2 if isinstance(now, int) else now / 2
            half = max(half, type(now)(least))
            if half < now:
                found[key] = half
    return found


def _settings_named(
    name: str, config: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a configuration with this name, by dotted key: `workers` is in
    ``NAME.workers`` of whatever workload or plugin has it, unless the name says of which one. What
    is ``known`` of a key wins.
    """
    own = {
        f"{owner}.{setting}": value
        for owner, settings in config.get("settings", {}).items()
        for setting, value in settings.items()
    }
    top = {name: config[name]} if name in config else {}
    own = {k: v for k, v in {**top, **own, **known}.items() if name in (k, k.rpartition(".")[2])}
    return {k: v for k, v in own.items() if is_number(v)}


def with_cause(ended: Exit, rules: Mapping[str, Rule]) -> Exit:
    """Return a failure with its cause filled in."""
    return evolve(ended, cause=cause_of(ended, rules)) if ended.counts else ended
