"""A real Ray, on this machine, through kills: no job is lost, none burns a retry."""

import os
import signal

import pytest
from helpers_executors import ToySweep, kill, parent_of

from altcore.sweep import State

pytestmark = pytest.mark.cluster
pytest.importorskip("ray", reason="pip install 'altcore-executors[ray]'")


@pytest.fixture
def toy(tmp_path, corpus):
    """A sweep whose Ray cluster is its command's own."""
    made = ToySweep(tmp_path, corpus)
    yield made
    made.stop()


def test_workers_and_the_command_are_killed(toy):
    """A worker, a task of Ray, then the command with its whole cluster: the next one goes on."""
    command = toy.run("ray:2")
    kill(toy.wait_for_worker())
    toy.wait(lambda: "ended with signal SIGKILL" in toy.log)
    kill(parent_of(toy.wait_for_worker()))
    toy.wait(lambda: "ended with WorkerCrashedError" in toy.log)
    toy.wait_for_worker()
    kill(command.pid)
    command.wait()
    toy.ends(toy.run("ray:2"))
    toy.check()
    assert "lost" in toy.exits()


def test_a_signal_is_passed_on_and_another_executor_goes_on(toy):
    """The workers save their runs, and the command leaves after them with the signal's code."""
    command = toy.run("ray:2")
    toy.wait_for_worker()
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait(60) == 128 + signal.SIGTERM
    assert not toy.workers()
    assert State.RUNNING not in toy.states()
    assert "interrupted" in toy.exits()
    toy.ends(toy.run("local:2"))
    toy.check()
