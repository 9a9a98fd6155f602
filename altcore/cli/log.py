"""What altcore tells the terminal beside its results: structlog, in one line each, to stderr."""

from __future__ import annotations

import sys

import structlog


def configure() -> None:
    """Let structlog write plain lines to stderr; for the command, not for the library."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
