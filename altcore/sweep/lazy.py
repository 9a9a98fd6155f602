"""A mapping that is read when it is first asked for anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from attrs import define


@define
class Lazy(Mapping[str, Any]):
    """What ``read`` returns, which is called once at most."""

    read: Callable[[], Mapping[str, Any]]

    @cached_property
    def _held(self) -> Mapping[str, Any]:
        return self.read()

    def __getitem__(self, key: str) -> Any:
        return self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
