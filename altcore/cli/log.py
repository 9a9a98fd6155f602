"""The log of the command: one line for each message on standard error, as text or as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from functools import partial
from typing import Any

import structlog

from altcore.builtin_types import printable, to_json


def _as_text(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Write control characters as their escapes, in what plugins log, too."""
    return {k: printable(v) if isinstance(v, str) else v for k, v in event.items()}


def configure() -> None:
    """Let structlog write plain lines to standard error, unless it writes JSON."""
    if not renders_json():
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        _configure(_as_text, renderer)


def configure_json() -> None:
    """Let structlog write JSON lines to standard error, Python's own warnings among them."""
    strict = partial(json.dumps, allow_nan=False, default=str)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    # What is not plain data is told in words: a line must never fail.
    renderer = structlog.processors.JSONRenderer(lambda event, **_: strict(to_json(event)))
    _configure(stamp, renderer)
    warnings.showwarning = _log_warning


def _configure(*processors: structlog.typing.Processor) -> None:
    structlog.configure(
        processors=[structlog.processors.add_log_level, *processors],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def renders_json() -> bool:
    """Whether structlog writes JSON lines."""
    last = structlog.get_config()["processors"][-1]
    return isinstance(last, structlog.processors.JSONRenderer)


def log_line(text: str, level: str, **facts: Any) -> None:
    """Write a line of the command itself to the log."""
    getattr(structlog.get_logger("altcore"), level)(text, **facts)


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    log_line(str(message), "warning", category=category.__name__)
