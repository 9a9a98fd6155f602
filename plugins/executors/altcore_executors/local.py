"""The executor ``local``: workers on this machine."""

from __future__ import annotations

import os

from attrs import define
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

    def run(self, placing: Placing) -> None:
        """Run workers until no job is left."""
        count = self.per_gpu * max(1, len(devices())) or self.slots
        if count:
            Pool(placing, count, threads=max(1, (os.cpu_count() or 1) // count)).run()
        else:
            placing.work()
