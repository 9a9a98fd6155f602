"""The tables of a page: runs, differences of configuration, what happened, provenance."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from statistics import fmean
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore_reporters.page.verdict import is_finite, outcomes
from altcore_reporters.page.words import NONE, duration, loss, number, share
from altcore_reporters.pictures import differences, marks_of
from altcore_reporters.run_facts import changes_of

if TYPE_CHECKING:
    from altcore.plugin import RunRecord
    from altcore_reporters.page.plots import Look
    from altcore_reporters.pictures import Group

MARKS = {
    "nan": "not finite",
    "shift": "change of format",
    "rollback": "rollback",
    "collapse": "collapse",
    "stop": "stop",
    "warning": "warning",
    "degraded": "plugin disabled",
}
FINAL = ("bit_stall_final", "overflow_final", "flushed_final")
"""Keys of the summary that are shares, as they were at the end."""
EVENTS = 200
"""Most lines of what happened, unless more than these are `TELLING`."""
TELLING = ("shift", "rollback", "collapse", "stop", "degraded")
"""What is never left out."""
VALUES = 12
"""Values of a configuration's key that are told one by one."""


@frozen
class Cell:
    """A cell, and what it is sorted by."""

    text: str
    key: str = ""
    """A number, or the text itself if empty."""
    url: str = ""
    look: Look | None = None
    group: int | None = None
    """The index of the group that its row is about."""
    is_number: bool = False


@frozen
class Table:
    """A table; its first column names the rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def without_empty(self) -> Table:
        """Return the table without columns of which nothing is known."""
        kept = [i for i in range(len(self.head)) if any(row[i].text != NONE for row in self.rows)]
        return Table([self.head[i] for i in kept], [[row[i] for i in kept] for row in self.rows])


def configurations_table(groups: Sequence[Group], looks: Sequence[Look]) -> Table | None:
    """Return a row for each configuration, the lowest mean validation loss first.

    None if each has one run: then the table of runs says it all.
    """
    if all(len(group.records) == 1 for group in groups):
        return None
    head = ("configuration", "runs", "learned", "validation loss", "lowest", "highest", "stalled",
            "overflow", "flushed")  # fmt: skip
    place = {id(group): i for i, group in enumerate(groups)}
    rows = []
    for outcome in outcomes(groups):
        i, losses = place[id(outcome.group)], outcome.losses
        summaries = [record.summary for record in outcome.runs]
        rates = [_mean(s.get(k) for s in summaries) for k in FINAL]
        rows.append((
            Cell(outcome.group.label, look=looks[i], group=i),
            _number(len(summaries)),
            _number(outcome.learned),
            _loss(outcome.mean if losses else None),
            _loss(min(losses, default=None)),
            _loss(max(losses, default=None)),
            *map(_share, rates),
        ))  # fmt: skip
    return Table(head, rows).without_empty()


def runs_table(groups: Sequence[Group], looks: Sequence[Look]) -> Table:
    """Return a row for each run, by configuration, the lowest validation loss first."""
    place = {id(group): i for i, group in enumerate(groups)}
    head = ("configuration", "run", "seed", "verdict", "steps", "validation loss", "training loss",
            "stalled", "overflow", "flushed", "time")  # fmt: skip
    rows = []
    for outcome in outcomes(groups):
        i = place[id(outcome.group)]
        for record in outcome.group.records:
            s = record.summary
            rows.append((
                Cell(outcome.group.label, look=looks[i], group=i),
                Cell(record.name, url=record.url or ""),
                _number(s.get("seed")),
                Cell(str(s.get("verdict") or s.get("status") or NONE)),
                _number(s.get("steps")),
                _loss(s.get("val_loss")),
                _loss(s.get("final_loss")),
                *(_share(s.get(key)) for key in FINAL),
                Cell(duration(s.get("seconds")), _key(s.get("seconds")), is_number=True),
            ))  # fmt: skip
    return Table(head, rows).without_empty()


def differences_table(records: Sequence[RunRecord]) -> Table | None:
    """Return the keys in which configurations differ, and how many runs have each value."""
    rows = []
    for difference in differences(records):
        counts = Counter(difference.values).most_common()
        told = ", ".join(f"{value} ({count})" for value, count in counts[:VALUES])
        more = f", and {len(counts) - VALUES} more" if len(counts) > VALUES else ""
        rows.append((Cell(difference.key), Cell(told + more)))
    return Table(("key", "values, and how many runs have each"), rows) if rows else None


def configuration_table(config: Mapping[str, Any]) -> Table:
    """Return the keys of a configuration; what says only where the run lay is left out."""
    left_out = ("runs_dir", "name", "changes", "format_digests")
    rows = [(Cell(k), Cell(_plain(v))) for k, v in _flat(config) if k not in left_out]
    return Table(("key", "value"), rows)


def events_table(records: Sequence[RunRecord]) -> Table | None:
    """Return what happened, in order: marks, warnings and plugins that broke.

    Of too many lines the last warnings and non-finite steps are left out, and counted at the end.
    """
    rows: list[tuple[str, Sequence[Cell]]] = []
    for record in records:
        found = [(m.step, m.last, m.kind, m.text) for m in marks_of(record)]
        for event in record.events:
            if event["event"] in ("warning", "degraded"):
                words = [event.get(k) for k in ("plugin", "message", "error") if event.get(k)]
                text = ": ".join(map(str, words))
                found.append((event["step"], event["step"], event["event"], text))
        for step, last, kind, text in sorted(found, key=lambda row: row[0]):
            steps = str(step) if last == step else f"{step} to {last}"
            row = (Cell(steps, str(step), is_number=True), Cell(MARKS[kind]), Cell(text))
            rows.append((kind, (Cell(record.name), *row) if len(records) > 1 else row))
    if not rows:
        return None
    head = ("run",) if len(records) > 1 else ()
    spare = max(0, len(rows) - EVENTS)
    plain = [i for i, (kind, _) in enumerate(rows) if kind not in TELLING]
    left_out = {*plain[max(0, len(plain) - spare) :]}
    shown = [row for i, (_, row) in enumerate(rows) if i not in left_out]
    if left_out:
        told = f"{len(left_out)} more, not finite or warnings, which the record has"
        more = (Cell(NONE, _key(None), is_number=True), Cell("left out"), Cell(told))
        shown.append((*[Cell(NONE)] * len(head), *more))
    return Table((*head, "step", "what", "details"), shown)


def provenance(record: RunRecord) -> Table:
    """Return what made a run: versions, device, code and data."""
    about, config, facts = record.environment, record.config, record.summary.get("workload_facts")
    pairs: list[tuple[str, Any]] = [
        ("started", about.get("started")),
        ("altcore", about.get("altcore")),
        ("libraries", _pairs(about.get("libraries"))),
        ("code", _pairs(_origins(about.get("code")))),
        ("format's sha256", _pairs(config.get("format_digests"))),
        ("Python", about.get("python")),
        ("platform", about.get("platform")),
        ("device", about.get("device")),
        ("threads", about.get("threads")),
        ("processes", about.get("world_size")),
        ("git", _git(about.get("git"))),
        ("data", _pairs(facts)),
        ("run id", about.get("run_id")),
    ]
    return Table(("", ""), [(Cell(k), Cell(str(v))) for k, v in pairs if v not in (None, "")])


def command_of(record: RunRecord) -> str:
    """Return the command that was given, without the path of the program; empty if not known."""
    given = record.environment.get("command") or []
    if not isinstance(given, list) or not given:
        return ""
    program = PurePath(str(given[0])).name
    own = shlex.quote(program)
    if program == "__main__.py":
        own = _launcher(record) or "python -m altcore"
    return " ".join([own, *(shlex.quote(str(word)) for word in given[1:])])


def _launcher(record: RunRecord) -> str:
    """Return what starts altcore in as many processes as the run had; empty if that was one."""
    count = record.environment.get("world_size") or 1
    return f"torchrun --nproc-per-node {count} -m altcore" if count > 1 else ""


@frozen
class Repeat:
    """What makes the same run again."""

    command: str
    """Empty where no one command does."""
    text: str
    """What is said after it, or in its place."""


def repeat_of(records: Sequence[RunRecord]) -> Repeat:
    """Return the command that repeats a run, or each of several."""
    programs = {_launcher(record) or "altcore" for record in records}
    changed = [record for record in records if changes_of(record)]
    where = "with the file in its directory"
    if len(records) == 1 and changed:
        told = f"{changes_of(records[0])}; config.yaml has the last of them"
        return Repeat("", f"No one command repeats it, since it went on with changes: {told}.")
    if len(programs) > 1:
        return Repeat("", "Each run is repeated by the command on its own page.")
    if changed:
        names = ", ".join(record.name for record in changed)
        where += f", but for those that went on with changes: {names}"
    return Repeat(f"{programs.pop()} train --config config.yaml", f"{where}.")


def _flat(config: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}".removeprefix("settings."), value


def _plain(value: Any) -> str:
    if value is None or value in ([], {}):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _pairs(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return ", ".join(f"{k} {v}" for k, v in value.items())


def _origins(code: Any) -> Any:
    if not isinstance(code, Mapping):
        return code
    return {k: own.get("from") if isinstance(own, Mapping) else own for k, own in code.items()}


def _git(value: Any) -> str:
    return _pairs(value) if value else ""


def _mean(values: Iterable[Any]) -> float | None:
    known = [v for v in values if is_finite(v)]
    return fmean(known) if known else None


def _loss(value: Any) -> Cell:
    return Cell(loss(value), _key(value), is_number=True)


def _number(value: Any) -> Cell:
    return Cell(number(value), _key(value), is_number=True)


def _share(value: Any) -> Cell:
    return Cell(share(value), _key(value), is_number=True)


def _key(value: Any) -> str:
    # What is not known comes last.
    return repr(value) if is_finite(value) else "1e999"
