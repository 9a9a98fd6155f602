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
    try:
        with TemporaryDirectory(prefix="altcore-mps-") as folder:
            _start(Path(folder))
            try:
                yield
            finally:
                subprocess.run([CONTROL], input=b"quit\n", check=False)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start(folder: Path) -> None:
    for kind in ("pipe", "log"):
        (folder / kind).mkdir()
        os.environ[f"CUDA_MPS_{kind.upper()}_DIRECTORY"] = str(folder / kind)
    try:
        subprocess.run([CONTROL, "-d"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BadInput(f"MPS does not start: {error}", key="mps") from error
    # The daemon shows its GPUs under numbers from 0 on.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i, _ in enumerate(devices()))
