"""A sweep of few and slow jobs, run by the command in processes that tests may kill."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import define, field
from helpers_processes import SOURCES, install

from altcore.runs import summary_of
from altcore.sweep import Ledger, State, begin_sweep, jobs_of, read_sweep, worker_of

FILE = """
base:
  {{gpt.size: tiny, gpt.n_layer: 1, gpt.block_size: 8, data: {corpus}, max_steps: 8,
   warmup_steps: 0, eval_steps: 1, checkpoint_interval: 1,
   no_plugins: [progress, page, failure-report]{more}}}
variants: {{master: {{format: E5M2}}, pure: {{format: E5M2, recipe: pure}}}}
grid: {{learning_rate: [0.01, 0.02]}}
seeds: 2
lost_after: 20
"""
SLOW = "\n        ".join(
    (
        "@hookimpl",
        "def post_step(self, run, step):",
        "    time.sleep(0.25)",
    )
)
COMMAND = """
import sys
from altcore_executors import slurm
slurm.ASK_EVERY = 2.0  # of a Slurm that nobody else uses
from altcore.cli import main
main()
"""


@define
class ToySweep:
    """Eight jobs of two variants, each of some two seconds."""

    folder: Path
    corpus: Path
    variables: Mapping[str, str] = field(factory=dict)
    """Of the environment of every process."""
    ledger: Ledger = field(init=False)
    _started: list[subprocess.Popen[str]] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        install(self.folder, SLOW, name="slow")
        self._write("toy", ", plugins: [slow]")
        self.ledger = Ledger(self.folder / "sweeps" / "toy")

    def _write(self, name: str, more: str) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(FILE.format(corpus=self.corpus, more=more))
        return path

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``altcore sweep`` with these arguments."""
        path = [self.folder, *SOURCES, os.environ.get("PYTHONPATH", "")]
        log = (self.folder / "command.log").open("a")
        started = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "sweep", *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                **self.variables,
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "OMP_NUM_THREADS": "1",
            },
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        self._started.append(started)
        return started

    def run(self, executor: str) -> subprocess.Popen[str]:
        """Start or continue the sweep."""
        return self.command("run", "toy.yaml", "--executor", executor)

    def ends(self, command: subprocess.Popen[str], seconds: float = 300) -> None:
        """Wait for the end of a command, which must be a good one."""
        assert command.wait(seconds) == 0, self.log

    def stop(self) -> None:
        """End what was started and still runs."""
        for command in self._started:
            command.kill()
            command.wait()
        for pid in self.workers():
            kill(pid)

    @property
    def log(self) -> str:
        """All that commands and workers printed."""
        logs = [self.folder / "command.log", *self.ledger.folder.glob("*/*.log")]
        return "\n".join(f"{log}:\n{log.read_text()}" for log in logs)

    # What the ledger says ----------------------------------------------------------------------

    def states(self) -> dict[State, int]:
        """Return how many jobs are in each state."""
        found = [self.ledger.standing(name).state for name in self.ledger.names()]
        return {state: found.count(state) for state in set(found)}

    def workers(self) -> list[int]:
        """Return the processes that hold a job whose run has begun, and live."""
        standings = [self.ledger.standing(name) for name in self.ledger.names()]
        last = [s.last for s in standings if s.state is State.RUNNING and s.last is not None]
        begun = [a for a in last if any(a.work.glob("*/checkpoints/step-00000002"))]
        return [a.lease.process.pid for a in begun if not a.lease.process.is_gone()]

    def exits(self) -> set[str]:
        """Return the ways in which attempts ended."""
        attempts = [a for name in self.ledger.names() for a in self.ledger.standing(name).attempts]
        return {a.exit.status for a in attempts if a.exit is not None}

    def wait_for_worker(self) -> int:
        """Return the process of a worker in the middle of a run."""
        self.wait(self.workers)
        return self.workers()[0]

    def wait(self, what: Callable[[], object], seconds: float = 120) -> None:
        """Wait until something holds."""
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, self.log
            time.sleep(0.1)

    def check(self) -> None:
        """Check that each job has the result that it has if nothing happens, and did not fail.

        So say the commands, too: nothing is missing, and each job is a row of the exported table.
        """
        assert self.states() == {State.COMPLETED: 8}, self.log
        assert self.exits() <= {"finished", "interrupted", "lost", "refused"}
        calm = read_sweep(self._write("calm", ""))
        ledger, _ = begin_sweep(calm, jobs_of(calm), str(self.folder / "sweeps"))
        worker_of(calm, ledger, "local", lambda _: None).work()
        assert losses(self.ledger) == losses(ledger)
        for name in ("verify", "export"):
            self.ends(self.command(name, "toy"))
        rows = list(csv.DictReader((self.ledger.folder / "export" / "runs.csv").open()))
        assert {row["job"]: float(row["final_loss"]) for row in rows} == losses(ledger)


def losses(ledger: Ledger) -> dict[str, float]:
    """Return the loss that each accepted run ended with."""
    return {name: summary_of(ledger.run_of(name))["final_loss"] for name in ledger.names()}


def parent_of(pid: int) -> int:
    """Return the process that started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int) -> None:
    """Send SIGKILL to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
