"""The executor ``local`` through the kills that those of clusters are put to."""

import pytest
from helpers_executors import ToySweep, kill

pytestmark = pytest.mark.slow


def test_workers_and_the_command_are_killed(tmp_path, corpus):
    """From the plan to the last job: each has one result, that of an undisturbed run."""
    toy = ToySweep(tmp_path, corpus)
    try:
        toy.ends(toy.command("plan", "toy.yaml"))
        assert "8 jobs: master 4, pure 4" in toy.log
        command = toy.run("local:2")
        kill(toy.wait_for_worker())
        toy.wait(lambda: "ended with signal SIGKILL" in toy.log)
        toy.wait_for_worker()
        kill(command.pid)
        command.wait()
        toy.ends(toy.run("local:2"))
        toy.check()
    finally:
        toy.stop()
