"""altcore's log, by structlog as the caller configured it: no message commands the terminal.

Names of plugins, runs and layers are in it, which anybody may have chosen.
"""

from __future__ import annotations

from typing import Any

import structlog

from altcore.builtin_types import one_line


class Log:
    """Writes messages of a line each, with control characters as escapes."""

    def info(self, message: str, **about: Any) -> None:
        """Tell what happens."""
        structlog.get_logger("altcore").info(one_line(message), **_printable(about))

    def warning(self, message: str, **about: Any) -> None:
        """Tell what may be wrong."""
        structlog.get_logger("altcore").warning(one_line(message), **_printable(about))


def _printable(about: dict[str, Any]) -> dict[str, Any]:
    """Escape texts; structlog writes everything else as Python does, which escapes it."""
    return {key: one_line(x) if isinstance(x, str) else x for key, x in about.items()}


log = Log()
