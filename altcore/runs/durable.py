"""Durable writing: a full disk is reported, and a rename survives a crash."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from altcore.errors import NoSpace


@contextmanager
def no_space_named(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk into `NoSpace`, naming the path and the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(f"no space left to write {path} ({needed} bytes needed)") from error


def fsync_folder(path: Path) -> None:
    """Make a rename in the folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
