"""The executor ``ray``: workers in a Ray cluster."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from attrs import define, field
from attrs.validators import ge, optional

from altcore.plugin import BadInput, Placing, setting
from altcore_executors.pool import PAUSE
from altcore_executors.processes import (
    LOGS,
    Idle,
    exit_code,
    left_by,
    on_signal,
    start_worker,
    told_exit,
)


@define(eq=False)
class Ray:
    """Runs a sweep in a Ray cluster: a worker is a task of Ray, which takes one job after another.

    Ray finds a node for each, and its share of a GPU. A worker that dies, or whose node does, is
    placed again while jobs are left.
    """

    workers: int = setting(
        0, help="workers; 0 is all that the cluster has room for", validator=ge(0)
    )
    address: str | None = setting(
        None, help="of the cluster; null is RAY_ADDRESS, or a cluster of this machine alone"
    )
    cpus: int = setting(1, help="CPUs of each worker, and its threads", validator=ge(1))
    workers_per_gpu: int | None = setting(
        None,
        help="workers that share a GPU, if the cluster has any; null is what the sweep's resources "
        "say, or 2",
        validator=optional(ge(1)),
    )

    def run(self, placing: Placing) -> None:
        """Run workers until no job is left. Raises `BadInput` without a cluster, or room in it."""
        ray = _connected(self.address)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            sharing = self.workers_per_gpu or placing.workers_per_gpu
            gpu = 1 / sharing if any(has.get("GPU") for has in nodes) else 0
            room = sum(self._room(has, gpu) for has in nodes)
            if not room:
                raise BadInput(f"no node has room for a worker of {self.cpus} CPUs", key="ray.cpus")
            task = ray.remote(num_cpus=self.cpus, num_gpus=gpu, max_retries=0)(run_worker)
            _Tasks(placing, ray, task, self.cpus).run(self.workers or room)
        finally:
            ray.shutdown()

    def _room(self, has: dict[str, float], gpu: float) -> int:
        """Return how many workers a node with such resources has room for."""
        room = has.get("CPU", 0) // self.cpus
        return int(min(room, has.get("GPU", 0) // gpu) if gpu else room)


def _connected(address: str | None) -> Any:
    """Return the module ray, connected to a cluster."""
    # A run's numbers are nobody else's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        hint = "pip install 'altcore-executors[ray]'"
        raise BadInput("ray is not installed", key="ray", hint=hint) from error
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _check_that_it_answers(address or "")
        ray.init(address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError) as error:
        raise BadInput(f"there is no cluster: {error}", key="ray.address") from error
    return ray


def _check_that_it_answers(address: str) -> None:
    """Raise `OSError` unless somebody listens at an address; Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def run_worker(command: tuple[str, ...], log: str, threads: int) -> int:
    """Run a worker on the node where Ray calls this; return its exit code.

    When Ray calls it off, which raises KeyboardInterrupt here, the worker is asked to leave.
    """
    worker = start_worker(command, Path(log), {"OMP_NUM_THREADS": str(threads)})
    while (code := exit_code(worker)) is None:
        try:
            time.sleep(PAUSE)
        except KeyboardInterrupt:
            worker.terminate()
    return code


@define
class _Tasks:
    """The workers of a sweep, as tasks of Ray."""

    placing: Placing
    ray: Any
    task: Any
    threads: int
    _slots: dict[Any, int] = field(init=False, factory=dict)
    """The slot of each task that was not seen to end."""
    _asked: int = field(init=False, default=0)
    """The signal that asked this process to leave."""

    def run(self, count: int) -> None:
        """Keep a worker in each slot until no job is left.

        A signal asks the workers to leave, and this process leaves after them.
        """
        idle = Idle(self.placing.attempts)
        with on_signal(self._call_off):
            for slot in range(count):
                self._start(slot)
            while self._slots:
                self.placing.look()
                for task in self.ray.wait(list(self._slots), timeout=PAUSE)[0]:
                    slot = self._slots.pop(task)
                    how = self._end(task)
                    if self._asked:
                        continue
                    if how:
                        log = self._log_of(slot)
                        self.placing.tell(f"the worker of slot {slot} ended with {how}: see {log}")
                    if idle.may_start(how) and self.placing.left():
                        self._start(slot)
        if self._asked:
            raise left_by(self._asked)

    def _start(self, slot: int) -> None:
        task = self.task.remote(self.placing.command, str(self._log_of(slot)), self.threads)
        self._slots[task] = slot

    def _log_of(self, slot: int) -> Path:
        return self.placing.folder / LOGS / f"ray-{slot}.log"

    def _end(self, task: Any) -> str:
        """Return how a task ended; empty if its worker found no more jobs."""
        try:
            code = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return type(error).__name__
        return told_exit(code) if code else ""

    def _call_off(self, number: int) -> None:
        self._asked = number
        for task in self._slots:
            self.ray.cancel(task)
