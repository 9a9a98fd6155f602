"""Runs in processes that are killed at a point of their file operations."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest


def needs_a_fork() -> None:
    """Skip the test on a GPU: CUDA does not work in a fork of a process that has used it."""
    if os.environ.get("ALTCORE_TEST_DEVICE", "cpu") != "cpu":
        pytest.skip("trains in a fork of this process, where CUDA does not work")


def forked(action: Callable[[], Any], crash_at: str = "") -> int:
    """Run an action in a child of this process, which has imported torch; returns its exit code.

    That of a signal is negative. ``crash_at`` is ALTCORE_CRASH_AT for the child.
    """
    needs_a_fork()
    child = os.fork()
    if child:
        return ended(child)
    code = 1
    try:
        gc.freeze()  # to look through all that was imported would copy it
        os.environ["ALTCORE_CRASH_AT"] = crash_at
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def points_of(action: Callable[[], Any]) -> list[str]:
    """Return the names of all points that an action passes, in order."""
    from altcore import durable

    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "crash_point", found.append)
        action()
    return found


def killed(action: Callable[[], Any], point: int) -> None:
    """Run an action in a child that is killed at the ``point``-th of all points, from 1."""
    assert forked(action, f"any:{point}") == -signal.SIGKILL


def forked_command(
    folder: Path, arguments: list[str], err: IO[str], prepare: Callable[[], Any] = bool
) -> int:
    """Fork a process that is the command in a folder; returns its id when it handles signals.

    It writes to ``err``, and calls ``prepare`` first.
    """
    needs_a_fork()
    ready, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        assert os.read(ready, 1)
        os.close(ready)
        return child
    code: Any = 1
    try:
        gc.freeze()
        from altcore.cli import main
        from altcore.signals import handle_signals

        os.dup2(err.fileno(), 2)
        os.dup2(err.fileno(), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        threading.excepthook = threading.__excepthook__  # not pytest's
        os.chdir(folder)
        prepare()
        handle_signals()
        os.write(tell, b".")
        main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process; returns its exit code, that of a signal negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
