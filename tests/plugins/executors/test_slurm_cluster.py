"""A real Slurm, with the faults that it really has: no job is lost, none burns a retry."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers_cli import ROOT
from helpers_executors import ToySweep, kill, parent_of
from helpers_slurm import Cluster, missing

from altcore.sweep import State

pytestmark = pytest.mark.cluster
PILOTS = "slurm:2,time=20,workers_per_gpu=1"


@pytest.fixture(scope="module")
def slurm():
    """A Slurm of one node."""
    if absent := missing():
        pytest.skip(f"Slurm is not installed ({absent}): apt-get install slurm-wlm munge")
    pytest.importorskip("submitit", reason="pip install 'altcore-executors[slurm]'")
    # A socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture
def toy(tmp_path, corpus, slurm):
    """A sweep whose command meets the cluster."""
    made = ToySweep(tmp_path, corpus, slurm.environment)
    yield made
    made.stop()
    slurm.told("scancel", "--state=PENDING", "--state=RUNNING")
    made.wait(lambda: not slurm.queue())


def test_pilots_run_a_sweep_to_its_end(toy, slurm):
    """Which leaves nothing in the queue: one has all CPUs, and the other waits for nothing."""
    toy.ends(toy.run("slurm:2,time=20,workers_per_gpu=2,cpus=2"))
    assert "pilots wait for: Resources" in toy.log
    toy.wait(lambda: not slurm.queue(), 10)
    toy.check()
    assert "scancel --name=altcore-toy-" in toy.log
    executors = {toy.ledger.standing(n).attempts[0].lease.executor for n in toy.ledger.names()}
    assert executors == {"slurm"}


def test_a_pilot_and_the_command_are_killed(toy, slurm):
    """The next command keeps the pilot that is left, and replaces the other one."""
    toy.ends(toy.command("plan", "toy.yaml"))
    command = toy.run(PILOTS)
    worker = toy.wait_for_worker()
    kill(parent_of(worker))
    kill(command.pid)
    command.wait()
    toy.wait(lambda: len(slurm.queue("RUNNING")) == 1)
    (kept,) = slurm.queue()
    command = toy.run(PILOTS)
    toy.wait(lambda: len(slurm.queue()) == 2)
    assert kept in slurm.queue()
    toy.ends(command)
    toy.check()


def test_a_pilot_is_requeued(toy, slurm):
    """Its runs save what they have, and go on in whichever pilot is next."""
    command = toy.run("slurm:1,time=20,workers_per_gpu=2")
    toy.wait_for_worker()
    (pilot,) = slurm.queue()
    slurm.told("scontrol", "requeue", pilot)
    toy.wait(lambda: slurm.queue("PENDING") == [pilot])
    slurm.told("scontrol", "update", f"JobId={pilot}", "StartTime=now")
    toy.ends(command)
    assert "Restarts=1" in slurm.told("scontrol", "show", "job", pilot)
    assert "interrupted" in toy.exits()
    toy.check()


def test_the_time_of_a_pilot_ends(toy, slurm):
    """Slurm's warning lets runs save what they have; another pilot goes on."""
    command = toy.run("slurm:1,time=20,workers_per_gpu=2")
    toy.wait_for_worker()
    (pilot,) = slurm.queue()
    slurm.told("scancel", "--signal=USR2", pilot)
    toy.ends(command)
    assert "interrupted" in toy.exits()
    assert f"submitted: {int(pilot) + 1};" in toy.log
    toy.check()


def test_the_controller_is_killed_and_comes_back(toy, slurm):
    """Pilots go on meanwhile, and the command waits for an answer."""
    command = toy.run(PILOTS)
    toy.wait_for_worker()
    # Before the kill: on a quick machine all are completed when squeue is next asked.
    done = toy.states().get(State.COMPLETED, 0)
    slurm.kill_controller()
    try:
        toy.wait(lambda: toy.states().get(State.COMPLETED, 0) > done)
        toy.wait(lambda: "squeue does not answer" in toy.log)
    finally:
        slurm.start_controller()  # or every other test fails for it
    toy.ends(command)
    toy.check()


def test_another_executor_goes_on(toy, slurm):
    """With a sweep that was begun in Slurm, and the runs in the middle of which it was left."""
    command = toy.run(PILOTS)
    toy.wait_for_worker()
    kill(command.pid)
    command.wait()
    slurm.told("scancel", "--state=RUNNING")
    toy.ends(toy.run("local:2"))
    toy.check()
    attempts = [a for name in toy.ledger.names() for a in toy.ledger.standing(name).attempts]
    assert {a.lease.executor for a in attempts} == {"slurm", "local"}


def test_what_slurm_refuses_is_told(toy):
    """With Slurm's own words."""
    command = toy.run("slurm:partition=nowhere")
    assert command.wait(60) == 2
    assert "Slurm refuses the pilot" in toy.log
    assert "invalid partition specified" in toy.log


def test_pilots_that_come_to_nothing_are_not_placed_for_ever(toy):
    """As when a set-up line, or the prefix, is wrong."""
    command = toy.run("slurm:2,prefix=/nowhere/apptainer")
    assert command.wait(120) == 2
    assert "none began a job" in toy.log


def test_the_loss_slope_study_from_its_check_to_its_verdict(slurm, tmp_path):
    """By the commands of its page, as they stand there, on four runs of the toy study."""
    page = (ROOT / "docs/loss-slope.md").read_text()
    section = page.partition("## On a Slurm cluster")[2].partition("\n## ")[0]
    text = "\n".join(re.findall(r"^ {7}(.*)$", section.partition("3. **Check**")[2], re.MULTILINE))
    asked = "--account=physics --partition=gpu --gres=gpu:1 --cpus-per-task=8 --mem=32G"
    assert asked in text
    # One node without accounts or GPUs, and busy with other tests.
    script = text.replace(asked, "--cpus-per-task=2").replace("> study.log &", "2>&1")
    script = script.replace("--resources", "--resources --slowdown 1000")
    (tmp_path / "my-study.yaml").write_text(
        f"preset: {ROOT}/examples/loss-slope-toy.yaml\nname: loss-slope\nseeds: 1\n"
        "base: {epochs: 6}\ngrid: {learning_rate: [0.1], weight_decay: [0.001]}\n"
        "executors: {slurm: {cpus: 2, time: 30}}\n"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{slurm.environment['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=tmp_path,
        env={**slurm.environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    assert "4/4 runs completed" in done.stdout
    assert "#SBATCH --cpus-per-task=2" in done.stdout
    table = (tmp_path / "sweeps/loss-slope/export/results.csv").read_text().splitlines()
    assert len(table) == 5
    told = (tmp_path / "reports/loss_slope_study.md").read_text()
    assert not re.search("was never recorded|has no value|has no run here", told)
    assert re.search(r"\*\*(NO-)?GO: .*\*\* H1 .*; H2 ", told)
