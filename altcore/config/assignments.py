"""One key as it was given, and the rule that no source gives a key twice."""

from __future__ import annotations

from typing import Any, NamedTuple

from altcore.errors import BadInput, Source, shown


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


def named_key(key: Any, source: Source | None, owner: str = "") -> str:
    """Return a key of a configuration, or of an owner's settings; `BadInput` if it is not text."""
    if not isinstance(key, str):
        what = "null" if key is None else shown(key)
        raise BadInput(f"the key {what} is not text", key=owner, source=source)
    return key


def refuse_twice(key: str, source: Source | None, seen: dict[str, Source | None]) -> None:
    """Note in ``seen`` that a key is given; `BadInput` if its file or the flags gave it before."""
    if key in seen and _file(seen[key]) == _file(source):
        places = f", {seen[key]} and {source}" if source else ""
        raise BadInput(f"given twice{places}", key=key)
    seen[key] = source


def _file(source: Source | None) -> str:
    return source.file if source else ""
