"""One attempt at a job, in this process: the run is trained, and what came of it is told."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

from altcore.errors import AltcoreError, Interrupted, described, text_of
from altcore.runs import ENDED, has_summary, summary_of
from altcore.signals import is_from_signal
from altcore.sweep.attempt import Held
from altcore.sweep.carry_on import copy_run
from altcore.sweep.exits import Exit
from altcore.sweep.job import Job


class Leave(Exception):
    """A signal asked the worker to leave; its attempt is ended, and its run can go on."""

    def __init__(self, ended: Exit, cause: BaseException) -> None:
        super().__init__(text_of(cause))
        self.ended, self.cause = ended, cause


def run_job(job: Job, held: Held, *, collapse_fails: bool = False) -> Exit:
    """Train a job's run in the attempt's folder, from where an earlier attempt left it.

    Raises:
        Leave: if a signal asked the process to leave.
    """
    began, cpu = time.perf_counter(), time.process_time()
    status, verdict, error = _train(job, held)
    if status == "collapsed" and collapse_fails:
        status, error = "failed", f"it collapsed: {verdict}"
    ended = Exit(
        status=status,
        error=error if isinstance(error, str) else text_of(error),
        verdict=verdict,
        seconds=round(time.perf_counter() - began, 3),
        used={"cpu_seconds": round(time.process_time() - cpu, 3), **memory_used()},
    )
    if isinstance(error, BaseException) and status == "interrupted":
        raise Leave(ended, error)
    return ended


def _train(job: Job, held: Held) -> tuple[str, str, str | BaseException]:
    """Return the status of the run, its verdict, and the error that ended it."""
    path = held.attempt.work / job.name
    try:
        # Takes seconds, in which a signal may come.
        from altcore.api import train

        if held.before is not None:
            copy_run(held.before, path)
        if has_summary(path):
            known = summary_of(path)
            # A worker that was killed between the end of its run and publishing it.
            if known["status"] in ENDED:
                return known["status"], known["verdict"], ""
        config = job.train_config(str(held.attempt.work), held.lease.changed)
        result = train(config, resume=job.name if path.is_dir() else None)
        return result.status, result.verdict, ""
    except Interrupted as error:
        return "interrupted", "", error
    except AltcoreError as error:
        return "failed", "", f"{type(error).__name__}: {text_of(error)}"
    except BaseException as error:
        if is_from_signal(error):
            return "interrupted", "", error
        return "failed", "", described(error)


def memory_used() -> dict[str, Any]:
    """Return the most memory that this process has used so far, in bytes."""
    # Linux tells kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    used = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        used["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    return used
