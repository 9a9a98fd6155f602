"""Whether a job can end before the time of its worker is over, judged by the jobs that did end."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import chain
from statistics import fmean

from attrs import define, field

from altcore.errors import BadInput
from altcore.sweep.attempt import attempts_in
from altcore.sweep.job import Job
from altcore.sweep.ledger import JOBS, RUNS, Ledger
from altcore.sweep.run_time import seconds_of_run

LARGEST_SHARE = 0.9
"""Of its worker's whole time. A job that needs more begins while that share is left: it cannot end
anywhere, and goes on from its last checkpoint in the next worker."""
REFRESH = 10.0
"""Seconds between two looks for jobs that ended."""


@define
class TimeLeft:
    """The time that a worker has."""

    ledger: Ledger
    until: float
    """The moment at which it is over, in seconds since the epoch by this machine's clock."""
    seconds: float
    """Of which there were so many."""
    _looked: float = field(init=False, default=0.0)
    _seen: set[str] = field(init=False, factory=set)
    _seconds: dict[str, list[float]] = field(init=False, factory=dict)
    """By variant, what each completed run took."""
    _means: dict[str, float] = field(init=False, factory=dict)
    _mean: float = field(init=False, default=0.0)

    def is_enough(self, job: Job) -> bool:
        """Return whether a job is expected to end in time: that of its variant, or of any job.

        While none has ended, every job is.
        """
        now = time.time()
        if now - self._looked >= REFRESH:
            self._look()
            self._looked = now
        expected = self._means.get(job.variant, self._mean)
        needed = min(expected, LARGEST_SHARE * self.seconds)
        return now + needed < self.until

    def _look(self) -> None:
        try:
            found = {path.name for path in (self.ledger.folder / RUNS).iterdir()}
        except FileNotFoundError:
            return
        for name in (found - self._seen).intersection(self.ledger.names()):
            with suppress(BadInput):  # a damaged file tells nothing
                attempts = attempts_in(self.ledger.folder / JOBS / name)
                # Its end is written a moment after the run is there.
                if (taken := seconds_of_run(attempts)) is not None:
                    self._seconds.setdefault(self.ledger.job(name).variant, []).append(taken)
                    self._seen.add(name)
        if self._seconds:
            self._means = {variant: fmean(known) for variant, known in self._seconds.items()}
            self._mean = fmean(chain(*self._seconds.values()))
