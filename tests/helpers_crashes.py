"""Runs in processes that are killed at a point of their file operations."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

import pytest


def forked(action: Callable[[], Any], crash_at: str = "") -> int:
    """Run an action in a child of this process, which has imported torch; returns its exit code.

    That of a signal is negative. ``crash_at`` is ALTCORE_CRASH_AT for the child.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.environ["ALTCORE_CRASH_AT"] = crash_at
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def points_of(action: Callable[[], Any]) -> list[str]:
    """Return the names of all points that an action passes, in order."""
    from altcore.runs import durable

    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "crash_point", found.append)
        action()
    return found


def killed(action: Callable[[], Any], point: int) -> None:
    """Run an action in a child that is killed at the ``point``-th of all points, from 1."""
    assert forked(action, f"any:{point}") == -signal.SIGKILL
