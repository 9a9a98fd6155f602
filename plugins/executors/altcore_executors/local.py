"""The executor ``local``: workers on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field
from attrs.validators import ge

from altcore.plugin import Placing, setting
from altcore_executors.pool import Pool, devices


@define(eq=False)
class Local:
    """Runs a sweep on this machine.

    Without slots the jobs run in the process of the command, one after another: nothing is started,
    and a job that hangs holds up the rest. With slots, each is a process that takes one job after
    another, and threads and GPUs are divided among them.
    """

    slots: int = setting(0, help="processes; 0 is the command's own", validator=ge(0))
    per_gpu: int = setting(0, help="processes for each GPU, in place of slots", validator=ge(0))

    _lasts: bool = field(init=False, default=False)
    _pool: Pool | None = field(init=False, default=None)
    """Of the call before, if its workers last."""

    def run(self, placing: Placing) -> None:
        """Run workers until no job is left."""
        count = self.per_gpu * max(1, len(devices())) or self.slots
        if not count:
            placing.work()
            return
        if self._pool is None:
            threads = max(1, (os.cpu_count() or 1) // count)
            self._pool = Pool(placing, count, threads, stays=self._lasts)
        self._pool.placing = placing
        try:
            self._pool.run()
        finally:
            if not self._pool.stays:
                self._pool = None

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Keep workers from one call of `run` to the next: each imports torch once."""
        self._lasts = True
        try:
            yield
        finally:
            self._lasts = False
            if self._pool is not None:
                self._pool.close()
                self._pool = None
