"""Workers are tasks of Ray, which a stub stands for: placed, placed again, and called off."""

import os
import signal
import socket
import sys
import time
from types import SimpleNamespace

import pytest

from altcore.plugin import BadInput, Interrupted, Placing
from altcore_executors import ray as executor
from altcore_executors.ray import Ray, run_worker


class RayError(Exception):
    """What Ray raises of a task whose process was killed."""


class FakeRay:
    """One node, whose tasks end at once with the results that a test gives, in turn."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, resources, results=()):
        self.resources, self.results = resources, list(results)
        self.options, self.placed, self.cancelled, self.is_down = {}, [], [], False
        self.before_wait = bool
        self.looks = []

    def nodes(self):
        return [{"Resources": self.resources, "Alive": True}, {"Resources": {}, "Alive": False}]

    def remote(self, **options):
        self.options = options
        return lambda _: SimpleNamespace(remote=self._place)

    def _place(self, *arguments):
        self.placed.append(arguments)
        return len(self.placed)

    def wait(self, tasks, timeout):
        self.before_wait()
        return tasks[:1], tasks[1:]

    def get(self, task):
        result = self.results.pop(0) if self.results else 0
        if isinstance(result, Exception):
            raise result
        return result

    def cancel(self, task):
        self.cancelled.append(task)

    def shutdown(self):
        self.is_down = True


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Run the executor with a fake Ray; return what it told."""

    def run(fake, left=lambda: 1, declared=2, **settings):
        monkeypatch.setattr(executor, "_connected", lambda address: fake)
        told = []
        placing = Placing(
            folder=tmp_path,
            command=("work",),
            work=int,
            left=left,
            attempts=lambda: 0,
            workers_per_gpu=declared,
            tell=told.append,
            look=lambda: fake.looks.append(1),
        )
        try:
            Ray(**settings).run(placing)
        finally:
            assert fake.is_down
        return told

    return run


def test_as_many_workers_as_there_is_room_for(place, tmp_path):
    """By CPUs, and where there are GPUs by these as well."""
    fake = FakeRay({"CPU": 7.0})
    assert place(fake, cpus=2) == []
    assert fake.options == {"num_cpus": 2, "num_gpus": 0, "max_retries": 0}
    assert fake.placed == [(("work",), f"{tmp_path}/workers/ray-{i}.log", 2) for i in range(3)]
    fake = FakeRay({"CPU": 64.0, "GPU": 2.0})
    place(fake, workers_per_gpu=3)
    assert fake.options["num_gpus"] == 1 / 3
    assert len(fake.placed) == 6
    fake = FakeRay({"CPU": 64.0, "GPU": 2.0})
    place(fake, declared=4)
    assert len(fake.placed) == 8
    fake = FakeRay({"CPU": 64.0})
    place(fake, workers=2)
    assert len(fake.placed) == 2
    with pytest.raises(BadInput, match="no node has room"):
        place(FakeRay({"CPU": 1.0}), cpus=2)


def test_a_worker_that_dies_is_placed_again(place):
    """While jobs are left, and not for ever; each death is told with its log."""
    fake = FakeRay({"CPU": 1.0}, [RayError(), 3, -signal.SIGKILL, 0])
    told = place(fake)
    assert [line.split(":")[0] for line in told] == [
        "the worker of slot 0 ended with RayError",
        "the worker of slot 0 ended with exit code 3",
        "the worker of slot 0 ended with signal SIGKILL",
    ]
    assert len(fake.placed) == 3
    assert len(fake.looks) >= 3
    fake = FakeRay({"CPU": 1.0}, [3])
    assert len(place(fake, left=lambda: 0)) == len(fake.placed) == 1


def test_a_signal_calls_the_workers_off(place):
    """None is placed again, and the process leaves with the signal's code."""
    fake = FakeRay({"CPU": 2.0}, [143, 143])
    fake.before_wait = lambda: fake.cancelled or os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM: the workers left") as left:
        place(fake)
    assert left.value.exit_code == 128 + signal.SIGTERM
    assert fake.cancelled == [1, 2]
    assert len(fake.placed) == 2


def test_a_worker_is_asked_to_leave_when_its_task_is_called_off(tmp_path, monkeypatch):
    """And waited for: it saves its run."""
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), os._exit(143)))\n"
        "print('ready', os.environ['OMP_NUM_THREADS'], flush=True); time.sleep(600)"
    )
    log = tmp_path / "workers" / "log"

    def called_off(_):
        if log.read_text().startswith("ready"):
            monkeypatch.setattr(executor.time, "sleep", pause)
            raise KeyboardInterrupt
        pause(0.01)

    pause = time.sleep
    monkeypatch.setattr(executor.time, "sleep", called_off)
    assert run_worker((sys.executable, "-S", "-c", code), str(log), 3) == 143
    assert log.read_text() == "ready 3\nsaved\n"


def test_a_cluster_that_is_not_there(monkeypatch):
    """Is an error at once that names the setting; RAY_ADDRESS is an address as well."""
    begun = []
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda *a, **k: begun.append(a)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        executor._connected(None)
    assert begun == [(address,)]
    for told in (None, address, f"ray://{address}"):
        with pytest.raises(BadInput, match="there is no cluster"):
            executor._connected(told)
    executor._connected("auto")
    assert begun[1:] == [("auto",)]


def test_ray_is_an_extra(monkeypatch):
    """Without it, the error says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match="altcore-executors\\[ray\\]"):
        executor._connected(None)
