"""Trackers of tests. Their process imports them, so they cannot be made within a test."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import attrs

from altcore.plugin import setting
from altcore_reporters.tracking import TrackerReporter


@attrs.define(eq=False)
class FileTracker(TrackerReporter):
    """Writes what it is told to a file, and can be told to break."""

    file: str = setting("told.jsonl", help="where it writes, outside of the run")
    fault: str = setting("", help="the method that breaks, and how: `log:raise`, `finish:hang`")

    def start(self, run: Any) -> int:
        """Count the rows that the file has."""
        self._break("start")
        self.address = f"file:{self.file}"
        self._tell("start", name=run.name, config=dict(run.config))
        return sum("log" in told for told in self.told())

    def log(self, step: int, values: Any, when: float) -> None:
        """Write a row."""
        self._break("log")
        self._tell("log", step=step, values=values, when=when)

    def event(self, step: int, event: Any) -> None:
        """Write an event's name."""
        self._tell("event", step=step, event=event["event"])

    def alert(self, level: str, title: str, text: str, wait: float) -> None:
        """Write an alert."""
        self._tell("alert", level=level, title=title, text=text, wait=wait)

    def finish(self, run: Any) -> None:
        """Write the summary, and which reports there are."""
        self._break("finish")
        folder = run.directory / "reports"
        reports = sorted(path.name for path in folder.iterdir() if path.is_file())
        self._tell("finish", summary=dict(run.summary), reports=reports)

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """Return what was told, each as a mapping by its method."""
        path = Path(self.file)
        lines = path.read_text().splitlines() if path.exists() else []
        told = [json.loads(line) for line in lines]
        return [t for t in told if not methods or set(methods) & set(t)]

    def _tell(self, method: str, **said: Any) -> None:
        with Path(self.file).open("a") as file:
            file.write(json.dumps({method: said}) + "\n")

    def _break(self, method: str) -> None:
        where, _, how = self.fault.partition(":")
        if where != method:
            return
        if how == "hang":
            time.sleep(60)
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), 9)
        if how == "full":  # its log is on the same disk
            os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        raise OSError(28, "No space left on device")


@attrs.define(eq=False)
class ImportingTracker(FileTracker):
    """Needs a module that nobody has."""

    imports = ("nobodys",)
