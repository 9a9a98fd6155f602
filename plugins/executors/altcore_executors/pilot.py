"""A pilot: what runs in an allocation of Slurm, and takes jobs until its time is over."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

from attrs import evolve, frozen

from altcore.plugin import Interrupted, Placing
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
        times = ("--until", f"{until:.0f}", "--seconds", f"{self.seconds:.0f}")
        command = (*self.placing.command, *times)
        # Without this, GPUs that the allocation does not hold would be used.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
        with mps_daemon() if self.mps else nullcontext():
            count = self.workers_per_gpu * max(1, len(devices()))
            cpus = os.environ.get("SLURM_CPUS_ON_NODE") or len(os.sched_getaffinity(0))
            name = f"{os.uname().nodename}-{os.environ.get('SLURM_JOB_ID', 'pilot')}"
            placing = evolve(self.placing, command=command)
            try:
                Pool(placing, count, max(1, int(cpus) // count), name).run()
            except Interrupted as left:
                # No error: submitit would tell it with a traceback.
                raise SystemExit(left.exit_code) from None
