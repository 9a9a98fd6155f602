"""A job's values as strict JSON: long lists lie in files of their own, and no number is lost.

Long lists are held once: the values of a format of 16 bits are a megabyte, and a study may ask for
one in every layer. In a job's file such a list is ``{"$table": DIGEST}``, and it lies in
``tables/DIGEST.json`` of the sweep's folder. A number that JSON does not have is
``{"$number": "inf"}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from altcore import durable
from altcore.builtin_types import to_json
from altcore.errors import BadInput, UnreadableFile
from altcore.formats import digest

TABLES = "tables"
"""The folder of these files, in that of the sweep."""
LONG = 1000
"""Items of a list that lies in a file of its own, at least."""
KEY = "$table"
NUMBER = "$number"


class Table(list[Any]):
    """A long list that knows its digest."""

    def __init__(self, items: list[Any], known: str = "") -> None:
        super().__init__(items)
        self.digest = known or digest(items)


def without_tables(value: Any, found: dict[int, Table] | None) -> Any:
    """Return plain data as strict JSON, with each long list named by its digest.

    ``found`` gets those lists, by the number of the object, so that one that is in many places is
    digested once. If it is None, no list is named.
    """
    if isinstance(value, Mapping):
        return {key: without_tables(part, found) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {NUMBER: to_json(value)}
    if not isinstance(value, list | tuple):
        return value
    if found is None or len(value) < LONG:
        return [without_tables(part, found) for part in value]
    if id(value) not in found:
        found[id(value)] = value if isinstance(value, Table) else Table(list(value))
    return {KEY: found[id(value)].digest}


def with_tables(value: Any, read: Callable[[str], Table] | None) -> Any:
    """Undo `without_tables`: ``read`` gives the lists that it named; None if it named none."""
    if isinstance(value, dict):
        if read is not None and value.keys() == {KEY}:
            return read(value[KEY])
        if value.keys() == {NUMBER}:
            return float(str(value[NUMBER]))
        return {key: with_tables(part, read) for key, part in value.items()}
    return [with_tables(part, read) for part in value] if isinstance(value, list) else value


@define
class Tables:
    """The folder of the lists of one sweep."""

    folder: Path
    _known: dict[str, Table] = field(init=False, factory=dict)

    def path(self, name: str) -> Path:
        """Return the file of a list, by its digest."""
        return self.folder / TABLES / f"{name}.json"

    def add(self, table: Table) -> None:
        """Write a list down, unless it is there."""
        path = self.path(table.digest)
        if table.digest in self._known or path.is_file():
            return
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
        items = [without_tables(part, None) for part in table]
        durable.write_once(path, json.dumps(items, allow_nan=False).encode())
        self._known[table.digest] = table

    def read(self, name: Any) -> Table:
        """Return a list by its digest. Raises `BadInput` if its file is not what was written."""
        if name in self._known:
            return self._known[name]
        if not isinstance(name, str) or not name.isalnum():
            raise BadInput("it names a table as no sweep does")
        path = self.path(name)
        durable.check_no_links((path.parent,))
        try:
            items = with_tables(json.loads(durable.read_file(path)), self.read)
        except UnreadableFile:  # a ValueError, too
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(f"{path} cannot be read: {error}") from error
        if not isinstance(items, list) or digest(items) != name:
            raise BadInput(f"{path} is not what a sweep wrote")
        return self._known.setdefault(name, Table(items, name))
