"""What runs in an allocation: workers on its GPUs, with its CPUs, until its time is over."""

import os
import stat
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from altcore.plugin import BadInput, Placing
from altcore_executors.mps import CONTROL, mps_daemon
from altcore_executors.pilot import Pilot

NAMES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY")
WORKER = """
import os, sys
print(*sys.argv[1:], *(os.environ.get(name, "-") for name in {names}))
"""


@pytest.fixture
def pilot(tmp_path, monkeypatch):
    """A pilot of Slurm's job 7, with four CPUs, whose workers print what they are told."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    placing = Placing(
        folder=tmp_path,
        command=(sys.executable, "-S", "-c", WORKER.format(names=NAMES)),
        work=int,
        left=lambda: 0,
        attempts=lambda: 0,
        tell=print,
    )
    return lambda **keys: Pilot(placing=placing, workers_per_gpu=2, seconds=600, **keys)


def logs(tmp_path):
    """Return what each worker printed, by its log."""
    return {path.name: path.read_text().split() for path in (tmp_path / "workers").iterdir()}


def test_its_workers_share_its_cpus_and_begin_no_job_that_ends_too_late(pilot, tmp_path):
    """It may be started again at any time and place; GPUs that it was not given are not used."""
    began = int(time.time())
    cloudpickle.loads(cloudpickle.dumps(pilot()))()
    found = logs(tmp_path)
    assert sorted(found) == [f"{os.uname().nodename}-7-{slot}.log" for slot in (0, 1)]
    for until_, until, seconds_, seconds, threads, *gpu in found.values():
        assert (until_, seconds_, seconds) == ("--until", "--seconds", "600")
        assert began + 600 <= int(until) <= time.time() + 601
        assert threads == "2"
        assert gpu == ["-"]


def test_it_runs_workers_for_each_gpu(pilot, tmp_path, monkeypatch):
    """Of those that Slurm gave it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    pilot()()
    assert sorted(line[5] for line in logs(tmp_path).values()) == ["2", "2", "3", "3"]


@pytest.fixture
def control(tmp_path, monkeypatch):
    """A stub of NVIDIA's program that starts and ends the daemon."""
    program = tmp_path / "bin" / CONTROL
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "${{1:-$(cat)}} $CUDA_MPS_PIPE_DIRECTORY" >> {tmp_path}/calls\n'
        "touch $CUDA_MPS_LOG_DIRECTORY/log\n"
    )
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "calls"


def test_workers_share_a_gpu_by_a_daemon_of_their_own(pilot, tmp_path, monkeypatch, control):
    """In folders of its own, that are gone afterwards. It numbers its GPUs from 0 on."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    pilot(mps=True)()
    (begun, folder), (ended, same) = (x.split() for x in control.read_text().splitlines())
    assert (begun, ended, same) == ("-d", "quit", folder)
    found = logs(tmp_path).values()
    assert sorted(line[5] for line in found) == ["0", "0", "1", "1"]
    assert {line[6] for line in found} == {folder}
    assert not Path(folder).parent.exists()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_without_mps(tmp_path, monkeypatch):
    """It is an error that names the program."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=f"MPS does not start.*{CONTROL}"), mps_daemon():
        pass
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
