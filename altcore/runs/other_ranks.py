"""The run directory as a process sees it that trains with the one that writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from altcore.runs.directory import RunDirectory


class UnwrittenDirectory(RunDirectory):
    """The directory of a run that rank 0 has locked and writes; here nothing is."""

    is_written: ClassVar[bool] = False

    def append(self, file: str, line: Mapping[str, Any]) -> None:
        """Append nothing."""

    def open_logs(self) -> None:
        """Open none."""

    def sync_logs(self) -> dict[str, dict[str, Any]]:
        """Return that no log is written here."""
        return {}

    def records(self) -> dict[str, dict[str, Any]]:
        """Return that nothing is written here."""
        return {}

    def cut_logs(self, recorded: Mapping[str, Mapping[str, Any]], step: int) -> list[str]:
        """Cut nothing."""
        return []

    def write(self, file: str, text: str) -> None:
        """Write nothing."""

    def remove(self, file: str) -> None:
        """Remove nothing."""
