"""The log of the command: structlog writes one line for each message to standard error."""

from __future__ import annotations

import sys

import structlog


def configure() -> None:
    """Let structlog write plain lines to standard error. For the command only."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
