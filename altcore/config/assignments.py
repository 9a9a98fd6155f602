"""One key as it was given, and the rule that no source gives a key twice."""

from __future__ import annotations

from typing import Any, NamedTuple

from altcore.errors import BadInput, Source


class Assignment(NamedTuple):
    """A key, its value, and where both were given."""

    key: str
    value: Any
    source: Source | None
    """None from Python."""
    level: int = 1
    """0 in the configuration file, 1 above it. The higher one wins."""

    def standing_for(self, key: str, value: Any, through: str) -> Assignment:
        """Return another key that this one stands for."""
        source = self.source and self.source._replace(through=through)
        return self._replace(key=key, value=value, source=source)


def refuse_twice(key: str, source: Source | None, seen: dict[str, Source | None]) -> None:
    """Note in ``seen`` that a key is given; `BadInput` if its file or the flags gave it before."""
    if key in seen and _file(seen[key]) == _file(source):
        places = f", {seen[key]} and {source}" if source else ""
        raise BadInput(f"given twice{places}", key=key)
    seen[key] = source


def _file(source: Source | None) -> str:
    return source.file if source else ""
