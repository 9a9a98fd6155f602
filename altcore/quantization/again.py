"""A context manager that may be entered again and again, one time after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from attrs import define, field


@define(eq=False)
class Again(AbstractContextManager[None]):
    """Enters a new context each time; those of `contextlib.contextmanager` may be entered once.

    A backward pass that keeps its graph repeats a checkpointed block as often as it is run.
    """

    make: Callable[[], AbstractContextManager[None]]
    entered: AbstractContextManager[None] | None = field(init=False, default=None)

    def __enter__(self) -> None:
        self.entered = self.make()
        self.entered.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        entered, self.entered = self.entered, None
        assert entered is not None
        return entered.__exit__(kind, error, traceback)
