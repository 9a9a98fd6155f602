"""What Python tells of code of others that nobody waits for: in lines, and as text alone.

And what it does not tell: that such code ended the process.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from typing import Any, NoReturn

from altcore.builtin_types import printable
from altcore.cli.terminal import echo, say
from altcore.errors import described, text_of

_formatted = warnings.formatwarning


def tell_uncaught(*, debug: bool) -> None:
    """Tell of threads, finalizers and callbacks that fail in a line each, until Python ends.

    Python itself writes a traceback, whatever is in its texts.

    Args:
        debug: whether to write the traceback, too.
    """

    def tell(what: str, error: BaseException | None) -> None:
        with suppress(Exception):  # the stream may be closed, or be a plugin's
            if debug and error is not None:
                echo("".join(traceback.format_exception(error)), err=True)
            say(f"{what} failed: {described(error)}" if error else f"{what} failed")

    def of_thread(args: Any) -> None:
        if not isinstance(args.exc_value, SystemExit):  # by which a thread may end
            tell(f"thread {args.thread.name if args.thread else '?'}", args.exc_value)

    def ignored(args: Any) -> None:
        where = f" ({args.err_msg.removeprefix('Exception ignored ')})" if args.err_msg else ""
        name = getattr(args.object, "__qualname__", type(args.object).__name__)
        tell(f"{name}{where}", args.exc_value)

    threading.excepthook, sys.unraisablehook = of_thread, ignored
    warnings.formatwarning = _printable


def refuse_silent_end() -> None:
    """Turn ``os._exit(0)`` of code of others into exit code 1: 0 says that all was done."""
    own, leave = os.getpid(), os._exit

    def told(status: int) -> NoReturn:
        if status % 256 == 0 and os.getpid() == own:  # a forked child may leave so
            caller = sys._getframe(1)
            where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            with suppress(Exception):
                say(f"os._exit({status}) was called before the command was over ({where})", "error")
            status = 1
        leave(status)

    os._exit = told


def _printable(message: Warning | str, *about: Any, **more: Any) -> str:
    return printable(_formatted(text_of(message), *about, **more))
