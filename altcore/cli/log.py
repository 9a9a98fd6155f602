"""The log of the command: structlog writes one line for each message to standard error."""

from __future__ import annotations

import sys

import structlog

from altcore.builtin_types import printable


def _as_text(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Write control characters as their escapes, in what plugins log, too."""
    return {k: printable(v) if isinstance(v, str) else v for k, v in event.items()}


def configure() -> None:
    """Let structlog write plain lines to standard error. For the command only."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _as_text,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
