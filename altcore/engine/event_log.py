"""The events of a run: written to its record, told to the plugins, and warnings to the log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import define, field

from altcore.builtin_types import as_builtin
from altcore.engine.dispatch import Dispatcher
from altcore.engine.state import Run
from altcore.hooks import DECISIONS
from altcore.log import log
from altcore.runs import EVENTS, RunDirectory, read_lines, to_json


@define(eq=False)
class EventLog:
    """Writes an event, then calls ``on_event``; a warning is logged, too."""

    directory: RunDirectory
    dispatch: Dispatcher
    known: set[str] = field(init=False, factory=set)
    """Events that are in the record and are not to be repeated."""
    logged: set[str] = field(init=False, factory=set)
    """Warnings that the log has already, and the record not yet."""

    def __call__(self, run: Run, event: Mapping[str, Any]) -> None:
        if self.known and event["event"] not in DECISIONS and _key(event) in self.known:
            return
        if event["event"] == "warning" and run.rank == 0:
            self._log(event)
        self.directory.append(EVENTS, event)
        # Weights are read at once where they are saved: what interventions hear depends on no
        # checkpoint, so they hear of them in the next step.
        is_early = event.get("arose") == event["step"]
        acting = None if event["event"] in DECISIONS and not is_early else False
        self.dispatch.call("on_event", acting=acting, run=run, event=event)

    def _log(self, event: Mapping[str, Any]) -> None:
        message = str(event.get("message"))
        if message not in self.logged:
            log.warning(message, step=event["step"])
        self.logged.discard(message)

    @contextmanager
    def without_repeats(self) -> Iterator[None]:
        """Leave out what the record tells already: a resumed run starts like a new one."""
        if self.directory.is_written:
            self.known = {_key(event) for event in read_lines(self.directory.path / EVENTS)}
        try:
            yield
        finally:
            self.known, self.logged = set(), set()


def _key(event: Mapping[str, Any]) -> str:
    """Return all of an event but the step."""
    plain = {k: v for k, v in event.items() if k != "step"}
    return json.dumps(to_json(as_builtin(plain)), sort_keys=True)
