"""What every tracker is made of: a reporter that sends a run elsewhere, and never touches it.

A tracker works in a process of its own, which reads the run's record as it grows. So the record
is the queue: it holds everything, no step waits for a network or a disk, and a tracker that hangs
is killed. The same reading sends a run that is over, for ``altcore runs upload``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from attrs import field
from attrs.validators import gt

from altcore.plugin import (
    BadInput,
    RunRecord,
    hookimpl,
    log,
    read_json,
    replace_text,
    setting,
)
from altcore_reporters.following import Follower, Ledger, digest_of, mark_of
from altcore_reporters.tracker_process import TrackerProcess

if TYPE_CHECKING:
    from altcore.plugin import Run


@attrs.define(eq=False)
class TrackerReporter:
    """Derive from this, with ``@attrs.define(eq=False)``, and write `start`, `log` and `finish`.

    They are called in another process than the training's, on an instance with the same settings,
    or by ``altcore runs upload``. Whatever they raise ends the tracker, and not the run.
    """

    finish_timeout: float = setting(
        10.0, help="seconds that the end of the run waits until all is sent", validator=gt(0)
    )
    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that are imported before `start`, which does not count as sending."""
    name: str = field(init=False, default="tracker")
    address: str = field(init=False, default="")
    """Where people find the run, once it has started: told to the user."""
    ledger: Ledger | None = field(init=False, default=None)
    """Which rows were sent; there when `start` is called."""
    _process: TrackerProcess | None = field(init=False, default=None)

    # What a tracker implements ---------------------------------------------------------------

    def start(self, record: RunRecord) -> int | None:
        """Begin a run, or go on with it, and set ``address``; its summary is not there yet.

        Returns:
            How many of the rows that were logged in earlier sessions are still there; None if it
            begins anew. The rest are logged again: a row of the record is there exactly once.
        """
        return None

    def log(self, step: int, values: Mapping[str, Any], when: float) -> None:
        """Log a row: numbers, truths, texts and lists of numbers, by name.

        There may be several of one step: an evaluation and a change of format are rows of their
        own. ``when`` is the time of the row in seconds since 1970, by the run's own clock.
        """
        raise NotImplementedError

    def event(self, step: int, event: Mapping[str, Any]) -> None:
        """Tell of a line of events.jsonl, in every session anew; most trackers have no place."""

    def alert(self, level: str, title: str, text: str, wait: float) -> None:
        """Alert people. ``level`` is WARN or ERROR, ``wait`` the seconds until the same title."""

    def finish(self, record: RunRecord) -> None:
        """Send what is outstanding and close; ``record`` has its summary and reports now.

        Its status is ``unfinished`` if the run was killed.
        """

    def abandon(self) -> None:
        """Let go of what `start` opened, soon: an upload failed, and nothing more is to be sent."""

    def holds(self, record: RunRecord) -> bool:
        """Whether a run that was sent completely is still there; asked before it is sent again."""
        return True

    # For those who implement it ----------------------------------------------------------------

    def is_new(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the tracker's own making was never sent; from now on it was."""
        assert self.ledger is not None
        return self.ledger.is_new(row)

    def folder(self, record: RunRecord) -> Path:
        """Return the tracker's own folder, below the run's reports; it exists."""
        if record.directory is None:
            raise BadInput(f"run {record.name} has no directory to send it from: {record.source}")
        folder = record.directory / "reports" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def id_of(self, record: RunRecord) -> str:
        """Return the id by which a tracker knows a run, as ``id.txt`` in its folder has it.

        That is the run's own, unless somebody wrote another there. A copy of a run's directory that
        lies beside the original gets another, or it would take its place.
        """
        file, own = self.folder(record) / "id.txt", record.environment["run_id"]
        known = file.read_text().strip() if file.exists() else own
        if known == own and _is_copy(record):
            known = f"{own}_{digest_of(record.name)[:8]}"
        replace_text(file, known)
        return str(known)

    # What the engine and the command call ------------------------------------------------------

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Start the process; nothing waits for it."""
        self._process = TrackerProcess.start(self, run.directory)

    @hookimpl
    def on_record(self) -> None:
        """Hear what the process has to say, which costs a look at a pipe."""
        assert self._process is not None
        self._tell(self._process.hear())

    @hookimpl
    def run_end(self) -> None:
        """Wait until everything is sent, but not long."""
        if self._process is not None:
            self._tell(self._process.end(self.finish_timeout))

    def _tell(self, address: str | None) -> None:
        if address:
            log.info(f"{self.name}: {address}")

    def upload(self, runs: Sequence[RunRecord]) -> list[str]:
        """Send runs from their directories, each row exactly once; returns lines for the user."""
        return [self._upload(record) for record in runs]

    def _upload(self, record: RunRecord) -> str:
        tracker = self._for(record)
        with Ledger.opened(tracker.folder(record), waits=False) as ledger:
            tracker.ledger, complete = ledger, mark_of(tracker, record)
            if ledger.mark == complete and tracker.holds(record):
                return f"{record.name}: everything is there already"
            try:
                sent = Follower.start(tracker, record, ledger).send_new()
                tracker.finish(record)
            except BaseException:
                tracker.abandon()
                raise
            ledger.mark = complete
        place = f" to {tracker.address}" if tracker.address else ""
        return f"{record.name}: sent {sent} rows{place}"

    def _for(self, record: RunRecord) -> TrackerReporter:
        """Return a tracker for one run: what is not set here is as in the run's configuration."""
        own = record.config.get("settings", {}).get(self.name, {})
        fresh = type(self)()
        unset = {k: v for k, v in own.items() if getattr(self, k) == getattr(fresh, k)}
        tracker = attrs.evolve(self, **unset)
        tracker.name = self.name
        return tracker


def _is_copy(record: RunRecord) -> bool:
    """Whether a run's directory is a copy of the one beside it that the run began in."""
    started = next((e for e in record.events if e["event"] == "start"), {})
    assert record.directory is not None
    original = record.directory.with_name(str(started.get("name", record.directory.name)))
    if not original.is_dir() or original.samefile(record.directory):
        return False
    try:
        return bool(
            read_json(original / "environment.json").get("run_id") == record.environment["run_id"]
        )
    except BadInput:
        return False
