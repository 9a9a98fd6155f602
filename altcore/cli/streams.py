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
    gets its number, and what a library writes there. Standard error that cannot be written is as
    good as closed; of standard output an `AltcoreError` says so.
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
            # Python writes what is left when it ends, and would complain.
            drop_output(self.fileno())
            kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else AltcoreError
            raise kind(f"standard output cannot be written: {error.strerror}") from error


class _Errors(io.FileIO):
    def write(self, text: Any, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError:
            return memoryview(text).nbytes


def drop_output(number: int) -> None:
    """Send what is written to a file descriptor to the null device from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
