"""A process that torchrun's variables promise others, who never come."""

import os
import signal
import socket
import subprocess
import sys
from time import monotonic

import pytest
from helpers_cli import ROOT, environment

WAITS = """
import sys
from altcore.engine import torchrun
torchrun.PATIENCE = 0.1
sys.argv = ["altcore", "train", "--set", "gpt.size=tiny"]
from altcore.__main__ import start
start()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_for_whom_it_waits_and_leaves_at_once(tmp_path, number):
    """In torch's C code, which lets no handler run; left-over variables are enough to get there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    others |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = [ROOT, *sorted(ROOT.glob("plugins/*"))]
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        cwd=tmp_path,
        env={**environment(path), **others},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            told = next(line for line in process.stderr if "waits" in line)
            assert f"rank 0 of 2 waits for the others at 127.0.0.1:{port}" in told
            began = monotonic()
            os.kill(process.pid, number)
            assert process.wait(30) == -number
            assert monotonic() - began < 5
        finally:
            process.kill()
    assert not (tmp_path / "runs").exists()
