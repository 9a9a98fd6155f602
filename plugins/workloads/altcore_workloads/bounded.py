"""A generator that runs in a process of its own, with a limit on its memory.

A library that is not written in Python may end its process where it finds no memory.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import struct
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

HEADER = struct.Struct("<cQ")
"""Of a message: its kind, and its length in bytes."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""That a child would else answer as this process does."""
ITEM, ERROR, END = b"i", b"e", b"."


class ChildFailed(Exception):
    """The process raised an error, which this is the first line of, or it ended early."""


def bounded(produce: Callable[[], Iterator[bytes]], memory: int) -> Generator[bytes]:
    """Yield what ``produce`` yields in a fork of this process.

    Args:
        produce: called in the child; it may use what this process holds, but no device.
        memory: bytes that the child may use beyond what this process does; on Linux only.

    Raises:
        ChildFailed: where ``produce`` raises, or if its process ends, as without memory.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no lock of a thread
        child = os.fork()
    if child == 0:
        _serve(produce, memory, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as stream:
            yield from _items(stream, memory)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _items(stream: BinaryIO, memory: int) -> Iterator[bytes]:
    while header := stream.read(HEADER.size):
        kind, size = HEADER.unpack(header)
        if kind == END:
            return
        if kind == ERROR:
            raise ChildFailed(stream.read(size).decode())
        yield stream.read(size)
    raise ChildFailed(f"it needs more than {memory >> 20} MiB of memory, or breaks its library")


def _serve(produce: Callable[[], Iterator[bytes]], memory: int, writing: int) -> None:
    """Send what is produced, and end this process."""
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Where a library, and Python, tell of its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.disable()
        _limit(memory)
        with os.fdopen(writing, "wb", buffering=0) as stream:
            try:
                for item in produce():
                    _send(stream, ITEM, item)
                _send(stream, END, b"")
            except BaseException as error:  # a panic of Rust is no Exception
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                _send(stream, ERROR, f"{reason:.200}".encode(errors="replace"))
    finally:
        os._exit(0)


def _send(stream: BinaryIO, kind: bytes, data: bytes) -> None:
    view = memoryview(HEADER.pack(kind, len(data)) + data)
    while view:
        view = view[stream.write(view) :]


def _limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # there is no /proc but on Linux
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        least = min(n for n in (used + memory, soft, hard) if n != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (least, hard))
