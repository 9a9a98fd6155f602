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


def pilot_name(folder: Path) -> str:
    """Return the name that the pilots of a sweep have in the queue, and no other job."""
    return f"altcore-{folder.name}-{sha256(str(folder).encode()).hexdigest()[:8]}"


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
        except subprocess.SubprocessError as error:
            why = str(error.stderr or error).strip()
            self._tell(f"squeue does not answer, and is asked again: {why}")
            return None
        lines = [line.split("|", 2) for line in answer.splitlines()]
        waiting = {reason for _, state, reason in lines if state == "PENDING"}
        self._tell(f"pilots wait for: {', '.join(sorted(waiting))}" if waiting else "")
        return {number for number, state, _ in lines if state != ENDING}

    def cancel_waiting(self) -> None:
        """Take pilots that have not begun out of the queue."""
        asked = ("scancel", "--me", "--state=PENDING", f"--name={self.name}")
        subprocess.run(asked, capture_output=True, check=False)

    def _tell(self, line: str) -> None:
        """Tell a line, unless it was the last one."""
        if line and line != self._told:
            self.tell(line)
        self._told = line
