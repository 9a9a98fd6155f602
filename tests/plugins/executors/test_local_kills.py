"""Worker processes on this machine, through kills, from the plan to the exported table."""

import pytest
from helpers_executors import ToySweep, kill

pytestmark = pytest.mark.slow


@pytest.fixture
def toy(tmp_path, corpus):
    made = ToySweep(tmp_path, corpus)
    yield made
    made.stop()


def test_workers_and_the_command_are_killed(toy):
    """A worker, then the command and its other worker: the next command goes on."""
    toy.ends(toy.command("plan", "toy.yaml"))
    command = toy.run("local:2")
    kill(toy.wait_for_worker())
    toy.wait(lambda: "ended with signal SIGKILL" in toy.log)
    toy.wait_for_worker()
    kill(command.pid)
    command.wait()
    for pid in toy.workers():
        kill(pid)
    toy.ends(toy.run("local:2"))
    toy.check()
    assert "lost" in toy.exits()
