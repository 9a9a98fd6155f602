"""Following a run's record: each new row goes to a tracker, exactly once, and so do alerts."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field, fields

from altcore.plugin import (
    EVENTS,
    METRICS,
    TIMINGS,
    BadInput,
    RunRecord,
    read_new_lines,
    replace_text,
)
from altcore_reporters.alerts import Alerts

if TYPE_CHECKING:
    from altcore_reporters.tracking import TrackerReporter

Line = Mapping[str, Any]


@define(eq=False)
class Follower:
    """Reads what is new in a record, and hands it to a tracker."""

    tracker: TrackerReporter
    ledger: Ledger
    metrics: GrowingFile
    timings: GrowingFile
    events: GrowingFile
    began: float
    """When the run did, in seconds since 1970."""
    alerts: Alerts | None
    """None if nobody is to be alerted."""
    earlier: int
    """Bytes of the events that are of earlier sessions: nobody is alerted again."""
    times: dict[int, Line] = field(init=False, factory=dict)
    """Those of steps whose metrics have not been sent."""
    elapsed: float = field(init=False, default=0.0)

    @classmethod
    def start(
        cls,
        tracker: TrackerReporter,
        record: RunRecord,
        ledger: Ledger,
        live_from: int | None = None,
    ) -> Follower:
        """Start the tracker. With ``live_from``, people are alerted of events from that byte on."""
        assert record.directory is not None
        files = (GrowingFile(record.directory / name) for name in (METRICS, TIMINGS, EVENTS))
        if "started" not in record.environment:
            raise BadInput(
                f"{record.directory / 'environment.json'} is missing, or tells of no start",
                hint=f"altcore runs restore {record.name} writes it anew",
            )
        began = datetime.strptime(record.environment["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        alerts = None if live_from is None else Alerts(record.config)
        tracker.ledger = ledger
        ledger.keep(tracker.start(record) or 0)
        return cls(tracker, ledger, *files, began, alerts, live_from or 0)

    def send_new(self) -> int:
        """Send what is new, in the order of the steps; returns how many rows that were."""
        metrics = list(self.metrics.new())
        # Read after them: the time of each of these lines was written before it.
        for line, _ in self.timings.new():
            self.times[line["step"]] = line
        lines = sorted([*metrics, *self.events.new()], key=lambda read: read[0]["step"])
        return sum(
            self._send_event(line, end) if "event" in line else self._send_metrics(line)
            for line, end in lines
        )

    def _send_metrics(self, line: Line) -> bool:
        values = {k: v for k, v in line.items() if k != "step" and v is not None}
        if "loss" in line and line["step"] in self.times:
            times = self.times.pop(line["step"])
            values |= {key: own for key, own in times.items() if key == "step_time_ms"}
            self.elapsed = times.get("elapsed_seconds", self.elapsed)
        is_new = self.ledger.is_new(line)
        if is_new:
            self.tracker.log(line["step"], values, self.began + self.elapsed)
            self._alert(self.alerts and self.alerts.of_line(line))
        return is_new

    def _send_event(self, event: Line, end: int) -> bool:
        step, is_sent = event["step"], False
        self.tracker.event(step, event)
        if event["event"] == "recipe" and (is_sent := self.ledger.is_new(event)):
            self.tracker.log(step, shift(event), self.began + self.elapsed)
        if end > self.earlier:
            self._alert(self.alerts and self.alerts.of_event(event))
        return is_sent

    def _alert(self, alert: Any) -> None:
        if alert:
            self.tracker.alert(alert.level, alert.title, alert.text, alert.wait)


def shift(event: Line) -> dict[str, Any]:
    """Return the row of a change of formats, by the names of the original experiments."""
    formats = ", ".join(event["to"])
    return {"format_shift": 1, "new_format": formats, "shift_reason": event["reason"]}


@define(eq=False)
class GrowingFile:
    """A .jsonl file of a run, read piece by piece while it is written."""

    path: Path
    offset: int = 0

    def new(self) -> Iterator[tuple[Line, int]]:
        """Yield each whole line that has come since the last call, and the offset of its end."""
        for line, end in read_new_lines(self.path, self.offset):
            self.offset = end
            yield line, end


@define(eq=False)
class Ledger:
    """Which rows were sent, in their order, as a digest each, kept beside what the tracker writes.

    A row is in the ledger before it is sent, so that the tracker never has one that is not. After
    a resume, the same line is known and not sent again; one that came out differently is.
    """

    folder: Path
    order: list[str] = field(init=False, factory=list)
    known: Counter[str] = field(init=False, factory=Counter)
    """The rows of the ledger that this session has not met yet."""

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, *, waits: bool = True) -> Iterator[Ledger]:
        """Read the ledger, once no other process sends the run.

        Raises:
            BadInput: if another does, and it does not wait.
        """
        with (folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise BadInput(f"{folder} is being written by another process") from error
            ledger = cls(folder)
            if ledger.path.exists():
                ledger.order = ledger.path.read_text().split()
            yield ledger

    @property
    def path(self) -> Path:
        """The file of the ledger."""
        return self.folder / "sent.txt"

    def keep(self, count: int) -> None:
        """Forget the rows after the first ``count``, which the tracker has not got."""
        if count > len(self.order):
            raise BadInput(
                f"the tracker has {count} rows of this run, and {self.path} tells of "
                f"{len(self.order)}: nothing is sent, or it would be there twice"
            )
        del self.order[count:]
        replace_text(self.path, "".join(f"{digest}\n" for digest in self.order))
        self.known = Counter(self.order)
        self.mark = ""

    def is_new(self, line: Line) -> bool:
        """Whether a line was not sent yet; then it is in the ledger now."""
        digest = digest_of(line)
        if self.known[digest]:
            self.known[digest] -= 1
            return False
        with self.path.open("a") as file:
            file.write(f"{digest}\n")
        return True

    @property
    def mark(self) -> str:
        """What `mark_of` returned when everything was sent; empty before."""
        mark = self.folder / "complete.txt"
        return mark.read_text() if mark.exists() else ""

    @mark.setter
    def mark(self, mark: str) -> None:
        replace_text(self.folder / "complete.txt", mark)


def mark_of(tracker: TrackerReporter, record: RunRecord) -> str:
    """Return what identifies all of a record, and where it is sent to."""
    settings = {a.name: getattr(tracker, a.name) for a in fields(type(tracker)) if a.init}
    del settings["finish_timeout"]
    # A reporter that comes after the tracker may add a report, and a run may be moved.
    summary = {k: v for k, v in record.summary.items() if k not in ("reports", "directory")}
    digest = hashlib.sha256(digest_of([summary, settings]).encode())
    assert record.directory is not None
    for name in (METRICS, EVENTS):  # as bytes, since nobody waits long at a run's end
        file = record.directory / name
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()


def digest_of(held: Any) -> str:
    """Return a short digest of plain data."""
    text = json.dumps(held, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
