"""``torchrun -m altcore``: the command in several processes, which make one run."""

import os
import subprocess
import sys

import pytest

from altcore.runs import list_runs, summary_of

TINY = ["gpt.size=tiny", "gpt.n_layer=1", "gpt.block_size=16", "warmup_steps=1"]


def torchrun(folder, *arguments):
    """Return exit code, standard output and error of ``altcore`` in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "altcore"]
    done = subprocess.run(
        [*launch, *arguments],
        cwd=folder,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_torchrun_makes_one_run(tmp_path, corpus):
    """Rank 0 alone prints and writes. Both refuse what two processes cannot do."""
    sets = [word for setting in TINY for word in ("--set", setting)]
    given = ["train", "--format", "E4M3", "--device", "cpu", "--data", str(corpus), *sets]
    code, out, err = torchrun(tmp_path, *given, "--steps", "2")
    assert (code, out.count("verdict")) == (0, 1), err
    (run,) = list_runs(str(tmp_path / "runs"))
    assert summary_of(run)["steps"] == 2

    code, out, err = torchrun(tmp_path, *given, "--set", "gpt.batch_size=5")
    assert code == 1
    for rank in (0, 1):
        assert f"altcore, rank {rank}: batch_size: a micro-batch has 5 items" in err
    assert len(list_runs(str(tmp_path / "runs"))) == 1
