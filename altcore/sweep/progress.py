"""What becomes of a sweep's jobs while it runs: a line as an attempt begins, and as it ends.

It is read from the ledger, so it is the same wherever the workers are, and whoever placed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from attrs import define, field

from altcore.builtin_types import duration
from altcore.errors import BadInput
from altcore.sweep.attempt import attempt_at
from altcore.sweep.exits import Exit
from altcore.sweep.kept import accepted_runs
from altcore.sweep.ledger import JOBS, Ledger, State
from altcore.sweep.rows import end_of_run

LOOK = 1.0
"""Least seconds between two looks."""
SHARE = 20
"""A look is followed by a pause so many times as long."""


@define
class Progress:
    """Tells what happened to the jobs of a ledger since the last look."""

    ledger: Ledger
    tell: Callable[[str], None]
    _total: int = field(init=False)
    _begun: dict[str, int] = field(init=False)
    """How many attempts were seen to begin at each job that is not done."""
    _held: set[str] = field(init=False, factory=set)
    """The jobs whose last attempt was not seen to end."""
    _due: float = field(init=False, default=0.0)
    """When the next look is due."""

    def __attrs_post_init__(self) -> None:
        names, accepted = self.ledger.names(), accepted_runs(self.ledger)
        self._total = len(names)
        self._begun = {name: 0 for name in names if name not in accepted}
        for _ in self._news():
            pass  # from before

    def look(self, *, at_once: bool = False) -> None:
        """Tell what happened, unless the last look was a moment ago."""
        began = time.monotonic()
        if not at_once and began < self._due:
            return
        for line in self._news():
            done = self._total - len(self._begun)
            jobs = f"{self._total} job{'s' * (self._total != 1)}"
            self.tell(f"{line} ({done} of {jobs} done)")
        now = time.monotonic()
        self._due = now + max(LOOK, SHARE * (now - began))

    def _news(self) -> Iterator[str]:
        for name in list(self._begun):
            try:
                yield from self._news_of(name)
            except BadInput:  # a damaged file, which whoever takes the job tells
                del self._begun[name]

    def _news_of(self, name: str) -> Iterator[str]:
        folder = self.ledger.folder / JOBS / name
        while name in self._begun:
            number = self._begun[name]
            if name in self._held:
                ended = self._end_of(name, number)
                if ended is None:
                    return
                self._held.remove(name)
                yield self._told_end(name, number, ended)
            elif attempt_at(folder, number + 1).folder.is_dir():
                self._begun[name] = number + 1
                self._held.add(name)
                yield f"{name}: {f'attempt {number + 1} begins' if number else 'begins'}"
            else:
                return

    def _end_of(self, name: str, number: int) -> Exit | None:
        ended = attempt_at(self.ledger.folder / JOBS / name, number).exit
        run = self.ledger.run_of(name)
        # A worker that was killed may have published the run, and no record of its end.
        return end_of_run(run) if ended is None and run.is_dir() else ended

    def _told_end(self, name: str, number: int, ended: Exit) -> str:
        standing = self.ledger.standing(name)
        # Since the last look other attempts may have followed.
        is_last = standing.last is None or standing.last.number == number
        if is_last and standing.state in (State.COMPLETED, State.FAILED):
            del self._begun[name]
        after = f" after {duration(ended.seconds)}" if ended.seconds is not None else ""
        follows = standing.decision if is_last and not ended.is_complete else None
        why = follows.why if follows else ""
        changed = f"replaced {', '.join(ended.changes)}" if ended.changes else ""
        told = "; ".join(filter(None, (ended.verdict or ended.error, why, changed)))
        return f"{name}: {ended.status}{after}{f': {told}' if told else ''}"
