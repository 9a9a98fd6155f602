"""Runs as real processes, with plugins whose code a test writes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers_cli import ROOT, TINY, distribution, environment

SOURCES = [ROOT, *(ROOT / "plugins").iterdir()]
"""The code under test, wherever another one is installed."""


def started(
    folder: Path,
    corpus: Path,
    *arguments: str,
    path: Sequence[Path] = (),
    before: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start ``altcore train`` as a process, the leader of a group of its own."""
    command = [*before, sys.executable, "-m", "altcore", "train", *TINY, "--data", str(corpus)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env={**environment([*path, *SOURCES]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there."""
    deadline = time.monotonic() + 90
    while not what() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert what(), process.communicate()


def install(
    folder: Path, body: str, name: str = "hangs", kind: str = "diagnostic"
) -> tuple[str, str]:
    """Install a plugin with these lines as its class's body; returns the flag that names it."""
    text = f"""
    import os, signal, time
    import attrs
    from altcore import hookimpl

    @attrs.define(eq=False)
    class Plugin:
        {body}
    """
    points = {kind: {name: f"acme_{name}:Plugin"}}
    distribution(folder, f"acme-{name}", points, **{f"acme_{name}": text})
    return ("--plugin", name)
