"""What a command that lasts is doing, and how long is left, on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from shutil import get_terminal_size
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from altcore.builtin_types import duration, printable
from altcore.cli.terminal import logs_json, say

T = TypeVar("T")

HEARTBEAT = 10.0
"""Seconds between lines if standard error is no terminal."""


class Status:
    """One line that says what is being done: on a terminal redrawn, elsewhere told now and then.

    As a context manager it is gone at the end.
    """

    def __init__(self) -> None:
        is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.is_live = is_terminal and not logs_json()
        self.told_at = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _: type[BaseException] | None,
        __: BaseException | None,
        ___: TracebackType | None,
    ) -> None:
        self.now("")

    def now(self, text: str) -> None:
        """Say what is being done; an empty text takes the line away."""
        if self.is_live:
            shown = printable(text)[: get_terminal_size().columns - 1]
            # The cursor goes back, so that whatever is told meanwhile takes the place of the line.
            sys.stderr.write(f"\r{shown}\x1b[K\r")
            sys.stderr.flush()
        elif text and monotonic() - self.told_at >= HEARTBEAT:
            self.tell(text)

    def tell(self, text: str) -> None:
        """Say something that stays."""
        self.told_at = monotonic()
        if self.is_live:
            self.now("")
        say(text, "info")


def followed(items: Sequence[T], doing: str, name: Callable[[T], str] = str) -> Iterator[T]:
    """Yield the items, and say which one is dealt with and how long the others will take."""
    began = monotonic()
    with Status() as status:
        for i, item in enumerate(items):
            passed = monotonic() - began
            left = f", about {duration(passed / i * (len(items) - i))} left" if i else ""
            status.now(f"{doing} {name(item)}: {i + 1} of {len(items)}{left}")
            yield item
