"""A pilot: what runs in an allocation of Slurm, and takes jobs until its time is over."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

from attrs import evolve, frozen

from altcore.plugin import Placing
from altcore_executors.mps import mps_daemon
from altcore_executors.pool import Pool, devices


@frozen(kw_only=True)
class Pilot:
    """The workers of one allocation. Slurm may start it again: it holds nothing that changes."""

    placing: Placing
    workers_per_gpu: int
    seconds: float
    """In which it begins jobs."""
    mps: bool = False

    def __call__(self) -> None:
        """Run workers until no job is left, or until none is expected to end in time."""
        until = time.time() + self.seconds
        command = (*self.placing.command, "--until", f"{until:.0f}")
        # Without this, GPUs that the allocation does not hold would be used.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
        with mps_daemon() if self.mps else nullcontext():
            count = self.workers_per_gpu * max(1, len(devices()))
            cpus = os.environ.get("SLURM_CPUS_ON_NODE") or len(os.sched_getaffinity(0))
            Pool(
                evolve(self.placing, command=command),
                count,
                threads=max(1, int(cpus) // count),
                name=f"{os.uname().nodename}-{os.environ.get('SLURM_JOB_ID', 'pilot')}",
            ).run()
