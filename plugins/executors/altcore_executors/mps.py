"""NVIDIA's Multi-Process Service: several workers compute on one GPU at the same time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from altcore.plugin import BadInput
from altcore_executors.pool import devices

CONTROL = "nvidia-cuda-mps-control"


@contextmanager
def mps_daemon() -> Iterator[None]:
    """Run a daemon of MPS within the context, for processes that are started there.

    Its folders are its own, so that no other one on the machine is met. Raises `BadInput` if the
    machine has no MPS.
    """
    before = dict(os.environ)
    with TemporaryDirectory(prefix="altcore-mps-") as folder:
        for variable in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
            own = Path(folder) / variable.split("_")[2].lower()
            own.mkdir()
            os.environ[variable] = str(own)
        try:
            subprocess.run([CONTROL, "-d"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BadInput(f"MPS does not start: {error}", key="mps") from error
        # The daemon shows its devices under numbers from 0 on.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i, _ in enumerate(devices()))
        try:
            yield
        finally:
            subprocess.run([CONTROL], input=b"quit\n", check=False)
            os.environ.clear()
            os.environ.update(before)
