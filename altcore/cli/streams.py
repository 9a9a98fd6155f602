"""The standard streams of the command, which may be closed, or lie where no space is left."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

from altcore.errors import AltcoreError, NoSpace


def prepare_streams() -> None:
    """Make the standard streams usable, whatever they are connected to.

    A stream that is closed (``2>&-``) gets the null device. Otherwise the next file that is opened
    gets its number, and what a library writes there. Standard error that cannot be written, since
    its reader has gone or its disk is full, is as good as closed: it ends no command. Of standard
    output that cannot be written an `AltcoreError` says so, or a `BrokenPipeError`.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _through(_Output, sys.stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _through(_Errors, sys.stderr)


def _through(kind: type[io.FileIO], stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Output(io.FileIO):
    def write(self, text: Any, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else AltcoreError
            raise kind(f"standard output cannot be written: {error.strerror}") from error


class _Errors(io.FileIO):
    def write(self, text: Any, /) -> int:
        size = memoryview(text).nbytes
        try:
            written = super().write(text)
        except OSError:
            return size
        return size if written is None else written  # None: a pipe is full that lets nobody wait


def drop_output() -> None:
    """Let Python's own flush at its end find nothing of standard output that cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, AltcoreError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
