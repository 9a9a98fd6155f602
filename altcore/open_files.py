"""Whose calls leave files open: named when the process may open no more."""

from __future__ import annotations

import errno
import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field

from altcore.errors import AltcoreError, Interrupted, PluginError, chain_of, described

SHARE = 0.1
"""Of all files that the process may open: who left fewer of them open is not named."""


def lowest_free() -> int:
    """Return the number that the next file has, the limit if there is none, in a microsecond."""
    try:
        free = os.dup(2)
    except OSError as error:
        return _limit() if error.errno == errno.EMFILE else 0
    os.close(free)
    return free


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@define(eq=False)
class OpenFiles:
    """How many files the calls of each left open."""

    _left: Counter[str] = field(init=False, factory=Counter)

    def add(self, who: object, more: int) -> None:
        """Count what a call left open; fewer than none if it closed files of an earlier one."""
        if more:
            self._left[str(who)] += more

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let an error that comes of too many open files say whose they are."""
        try:
            yield
        except Exception as error:
            if isinstance(error, Interrupted) or not _is_of_open_files(error):
                raise
            kind = PluginError if isinstance(error, PluginError) else AltcoreError
            raise kind(f"{described(error)}: {self._told()}") from error

    def _told(self) -> str:
        limit = _limit()
        most = [(who, n) for who, n in self._left.most_common() if n > SHARE * limit]
        told = [f"calls of {who} left {n} of {limit} open" for who, n in most]
        return ", ".join(told) or f"whose the {limit} open files are is not known"


def _is_of_open_files(error: BaseException) -> bool:
    return any(isinstance(e, OSError) and e.errno == errno.EMFILE for e in chain_of(error))
