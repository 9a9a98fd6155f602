"""Exceptions of code that looks on while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from attrs import define, field

from altcore.signals import is_from_signal


def _raise(error: BaseException) -> None:
    raise error


TELL_LATE: ContextVar[Callable[[BaseException], None]] = ContextVar("tell_late", default=_raise)
"""What the engine does with an error of the plugin that it calls, once nobody waits for it."""


def is_plugins_turn() -> bool:
    """Whether the engine is calling code of a plugin."""
    return TELL_LATE.get() is not _raise


@define(eq=False)
class DeferredErrors:
    """Holds the first exception of an observer inside the model until the pass is over.

    An exception raised inside the model aborts the pass, and with it the run. Raised after the
    pass it only disables the plugin. One that comes when the context is left already, as in
    backward by a hook on a tensor of the forward pass, is told to the engine, to the same end.

    >>> seen = []
    >>> with DeferredErrors() as errors:
    ...     look = errors.guard(lambda x: seen.append(1 / x))
    ...     look(2), look(0), look(4)
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    >>> seen
    [0.5]
    """

    error: BaseException | None = field(init=False, default=None)
    is_open: bool = field(init=False, default=False)

    def guard(self, look: Callable[..., Any]) -> Callable[..., None]:
        """Return a function that calls ``look``, until the first error, and returns nothing."""
        tell_late = TELL_LATE.get()

        def call(*args: Any, **kwargs: Any) -> None:
            if self.error is None:
                try:
                    look(*args, **kwargs)
                # The model must go on, whatever it is.
                except BaseException as error:
                    if is_from_signal(error):
                        raise
                    self.error = error
                    if not self.is_open:
                        tell_late(error)

        return call

    def __enter__(self) -> DeferredErrors:
        self.error, self.is_open = None, True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.is_open = False
        if kind is None and self.error is not None:
            raise self.error
