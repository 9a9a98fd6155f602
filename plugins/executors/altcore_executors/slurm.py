"""The executor ``slurm``: workers in allocations of a cluster."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, evolve
from attrs.validators import ge, gt, optional

from altcore.plugin import BadInput, Placing, setting
from altcore_executors.pilot import Pilot
from altcore_executors.processes import MOST_IDLE, Idle
from altcore_executors.slurm_queue import Queue, pilot_name

if TYPE_CHECKING:
    import submitit

ASK_EVERY = 60.0
"""Seconds between two questions to the scheduler."""
WARNING = 90
"""Seconds before its end at which an allocation is told of it: runs save what they have."""
SCRIPTS = "pilots"
"""The folder of the sweep that holds what was submitted, and what pilots printed."""


def minutes_of(told: Any) -> int:
    """Return the minutes of an allocation's time. Raises `ValueError` if it is none.

    Of the forms of sbatch, those are left out that mean hours to one reader and minutes to another.

    >>> minutes_of(30), minutes_of("12:00:00"), minutes_of("1-00:00:30")
    (30, 720, 1441)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", str(told))
    if found is not None:
        days, hours, whole, seconds = (int(part or 0) for part in found.groups())
        told = (24 * days + hours) * 60 + whole + (seconds > 0)
    if type(told) is not int or told < 1:
        raise ValueError(f"minutes from 1 up or HOURS:MINUTES:SECONDS are needed, not {told!r}")
    return told


def _check_options(told: Mapping[str, Any]) -> None:
    """Raise `ValueError` for options by which a pilot would not be the one that is looked for."""
    for name in told:
        if name.replace("_", "-") in ("array", "a", "job-name", "J"):
            raise ValueError(f"{name}: a pilot is one job, under a name of its sweep's")


@define(eq=False)
class Slurm:
    """Runs a sweep in allocations of Slurm, which hold pilots.

    A pilot runs workers on its node, which take one job after another. While jobs are left, a pilot
    that ended is replaced. Pilots that are in the queue already, from an earlier command, are kept.
    """

    pilots: int = setting(1, help="allocations, each of one node", validator=ge(1))
    account: str | None = setting(None, help="the account that is charged")
    partition: str | None = setting(None, help="the partition; null is the cluster's default")
    time: Any = setting(
        720,
        help="of an allocation: minutes, or HOURS:MINUTES:SECONDS, as 12:00:00",
        validator=lambda _, __, value: minutes_of(value),
    )
    max_hours: float = setting(
        11.0, help="hours of an allocation in which a job may be expected to end", validator=gt(0)
    )
    gres: str | None = setting(None, help="generic resources of an allocation, such as gpu:2")
    cpus: int | None = setting(None, help="CPUs of an allocation, divided among its workers")
    mem: str | None = setting(None, help="memory of an allocation, such as 32G")
    workers_per_gpu: int | None = setting(
        None,
        help="workers for each GPU, and without a GPU as many as for one; null is what the sweep's "
        "resources say, or 2",
        validator=optional(ge(1)),
    )
    mps: bool = setting(False, help="whether workers share a GPU by NVIDIA's MPS")
    setup: list[str] = setting(factory=list, help="lines of the batch script before the pilot")
    prefix: str | None = setting(
        None, help="what is put before the pilot's command, such as a container"
    )
    output: str | None = setting(None, help="where a pilot prints; null is the sweep's folder")
    error: str | None = setting(None, help="where a pilot prints errors; null is as for output")
    sbatch: dict[str, Any] = setting(
        factory=dict,
        help="further options of sbatch, by name",
        validator=lambda _, __, value: _check_options(value),
    )

    def script(self, placing: Placing) -> str:
        """Return the batch script of a pilot."""
        executor = self._executor(placing.folder)
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
        return text

    def run(self, placing: Placing) -> None:
        """Keep pilots in the queue until no job is left.

        Raises `BadInput` if Slurm refuses the first pilot, or if pilots end without an attempt.
        """
        if shutil.which("sbatch") is None:
            raise BadInput("there is no Slurm on this machine: sbatch is not found", key="slurm")
        queue = Queue(pilot_name(placing.folder), placing.tell)
        known: set[str] = set()
        idle = Idle(placing.attempts)
        while left := placing.left():
            pilots = queue.pilots()
            if pilots is not None:
                ended = known - pilots
                # Another one beside it would find no job to begin.
                is_held = bool(pilots) and not placing.waiting()
                if ended and not is_held and idle.ends(len(ended)) >= MOST_IDLE:
                    raise self._idle(placing.folder, max(ended, key=int))
                wanted = 0 if is_held else min(self.pilots, left) - len(pilots)
                known = pilots | self._submit(placing, wanted, is_first=not known | pilots)
            self._wait(placing)
        queue.cancel_waiting()

    def _submit(self, placing: Placing, count: int, *, is_first: bool) -> set[str]:
        """Submit pilots; return their ids."""
        from submitit.core.utils import FailedJobError

        pilot = Pilot(
            # Workers take the jobs, and its node hears what it tells.
            placing=evolve(placing, work=int, tell=print, look=bool),
            workers_per_gpu=self.workers_per_gpu or placing.workers_per_gpu,
            seconds=min(3600 * self.max_hours, 60 * minutes_of(self.time) - self._warning),
            mps=self.mps,
        )
        executor = self._executor(placing.folder)
        for path in filter(None, (self.output, self.error)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        submitted: set[str] = set()
        try:
            while len(submitted) < count:
                submitted.add(executor.submit(pilot).job_id)
        except (FailedJobError, OSError, subprocess.SubprocessError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[-1]
            if is_first and not submitted and isinstance(error, FailedJobError):
                raise BadInput(f"Slurm refuses the pilot: {why}", key="slurm") from error
            placing.tell(f"sbatch fails, and is tried again: {why}")
        if submitted:
            name = pilot_name(placing.folder)
            placing.tell(
                f"submitted: {', '.join(sorted(submitted, key=int))}; they go on without this "
                f"command, and `scancel --name={name}` ends them"
            )
        return submitted

    def _executor(self, folder: Path) -> submitit.SlurmExecutor:
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            raise BadInput(
                "submitit is not installed",
                key="slurm",
                hint="pip install 'altcore-executors[slurm]'",
            ) from error

        class Executor(SlurmExecutor):
            @classmethod
            def affinity(cls) -> int:
                # A script may be shown where no Slurm is.
                return 1

        python = " ".join(filter(None, (self.prefix, shlex.quote(sys.executable))))
        executor = Executor(folder / SCRIPTS, python=python)
        told = {
            "account": self.account,
            "partition": self.partition,
            "gres": self.gres,
            "cpus_per_task": self.cpus,
            "mem": self.mem,
        }
        logs = {"output": self.output, "error": self.error}
        logs = {key: path for key, path in logs.items() if path}
        # Since Slurm 22.05 srun asks for one CPU, however many the allocation has.
        own = {**logs, **({"cpus-per-task": self.cpus} if self.cpus else {})}
        options = {"requeue": True, **logs, **self.sbatch}
        executor.update_parameters(
            job_name=pilot_name(folder),
            time=minutes_of(self.time),
            signal_delay_s=self._warning,
            setup=self.setup or None,
            wckey=None,
            stderr_to_stdout=self.error is None,
            srun_args=[f"--{key}={value}" for key, value in own.items()],
            additional_parameters={k: v for k, v in options.items() if v is not False},
            **{key: value for key, value in told.items() if value is not None},
        )
        return executor

    @property
    def _warning(self) -> int:
        # Of a few minutes, all but a few seconds are for jobs.
        return min(WARNING, 12 * minutes_of(self.time))

    def _wait(self, placing: Placing) -> None:
        """Wait until the scheduler may be asked again, or until no job is left."""
        until = time.monotonic() + ASK_EVERY
        while (began := time.monotonic()) < until and placing.left():
            placing.look()
            # Counting takes a twentieth of the time at most.
            time.sleep(max(1.0, 20 * (time.monotonic() - began)))

    def _idle(self, folder: Path, pilot: str) -> BadInput:
        log = self.output or str(folder / SCRIPTS / "%j_0_log.out")
        return BadInput(
            "pilots ended one after another, and none began a job",
            key="slurm",
            hint=f"{log.replace('%j', pilot)} has what the last one printed",
        )
