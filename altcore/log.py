"""altcore's log, by structlog as the caller configured it: no message commands the terminal.

Names of plugins, runs and layers are in it, which anybody may have chosen. And none costs training:
a line that cannot be printed, since the disk is full or the reader has gone, is left out.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import structlog

from altcore.builtin_types import one_line, printable
from altcore.errors import described


class Log:
    """Writes messages of a line each, with control characters as escapes; never fails."""

    _has_failed = False

    def info(self, message: str, **about: Any) -> None:
        """Tell what happens."""
        self._write("info", message, about)

    def warning(self, message: str, **about: Any) -> None:
        """Tell what may be wrong."""
        self._write("warning", message, about)

    def _write(self, level: str, message: str, about: dict[str, Any]) -> None:
        line = one_line(message)
        try:
            getattr(structlog.get_logger("altcore"), level)(line, **_printable(about))
        except RecursionError:  # no fault of the log: whoever filled the stack is to be told
            raise
        except Exception as error:
            self._tell_once(line, error)

    def _tell_once(self, line: str, error: Exception) -> None:
        """Say that lines are left out where Python's own warnings go, if that can be printed."""
        if self._has_failed:
            return
        self._has_failed = True
        why = f"the log cannot be printed ({described(error)}); this is said once"
        with suppress(Exception):
            print(f"altcore: {why}: {line}", file=sys.stderr, flush=True)


def warn(message: str, stacklevel: int = 1) -> None:
    """Issue a `RuntimeWarning`, as `warnings.warn` does; one that cannot be printed is left out.

    Args:
        message: may have control characters.
        stacklevel: 1 for the function that calls this one, 2 for its caller.

    Raises:
        RuntimeWarning: if the caller's filters make errors of warnings.
    """
    with suppress(OSError, ValueError):
        warnings.warn(printable(message), RuntimeWarning, stacklevel=stacklevel + 1)


@cache
def warn_once(message: str) -> None:
    """Log a warning, if this process has not logged the same one before."""
    log.warning(message)


def _printable(about: dict[str, Any]) -> dict[str, Any]:
    """Escape texts; structlog writes everything else as Python does, which escapes it."""
    return {key: one_line(x) if isinstance(x, str) else x for key, x in about.items()}


log = Log()
