"""What Slurm says of the pilots of a sweep."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from attrs import define, field

ENDING = "COMPLETING"
LONGEST = 60.0
"""Seconds that an answer may take."""
UNANSWERED = (OSError, subprocess.SubprocessError, ValueError)
"""What comes of a scheduler, or a login node, that is too busy; ValueError of half an answer."""


def pilot_name(folder: Path) -> str:
    """Return the name that the pilots of a sweep have in the queue, and no other job."""
    own = folder.resolve()  # which a link may lead to as well
    return f"altcore-{own.name}-{sha256(str(own).encode()).hexdigest()[:8]}"


@define
class Queue:
    """The pilots of one name, as the scheduler knows them."""

    name: str
    tell: Callable[[str], None]
    _told: str = field(init=False, default="")

    def pilots(self) -> set[str] | None:
        """Return the ids of pilots that wait or run; None if the scheduler does not answer."""
        asked = ("squeue", "--me", "--noheader", f"--name={self.name}", "--format=%i|%T|%r")
        try:
            answer = subprocess.run(
                asked, capture_output=True, text=True, check=True, timeout=LONGEST
            ).stdout
            lines = [_parsed(line) for line in answer.splitlines()]
        except UNANSWERED as error:
            self._tell(f"squeue does not answer, and is asked again: {_why(error)}")
            return None
        waiting = {reason for _, state, reason in lines if state == "PENDING"}
        self._tell(f"pilots wait for: {', '.join(sorted(waiting))}" if waiting else "")
        return {number for number, state, _ in lines if state != ENDING}

    def cancel_waiting(self) -> None:
        """Take pilots that have not begun out of the queue."""
        asked = ("scancel", "--me", "--state=PENDING", f"--name={self.name}")
        try:
            subprocess.run(asked, capture_output=True, text=True, check=True, timeout=LONGEST)
        except UNANSWERED as error:
            command = " ".join(asked)
            self.tell(f"scancel fails; pilots that wait are left to `{command}`: {_why(error)}")

    def _tell(self, line: str) -> None:
        """Tell a line, unless it was the last one."""
        if line and line != self._told:
            self.tell(line)
        self._told = line


def _parsed(line: str) -> tuple[str, str, str]:
    """Return the id, state and reason of a pilot. Raises `ValueError` for any other line."""
    number, state, reason = line.split("|", 2)
    if not number.isdecimal():
        raise ValueError(f"it says {line!r:.200}")
    return number, state, reason


def _why(error: Exception) -> str:
    return str(getattr(error, "stderr", None) or error).strip() or type(error).__name__
