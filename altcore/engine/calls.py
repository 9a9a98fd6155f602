"""Calls of plugins' code: whatever they raise or may not change is theirs, and has their name."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import structlog
from attrs import define, field

from altcore.engine.deferred_errors import TELL_LATE
from altcore.engine.guards import Kept
from altcore.engine.plugins import Plugin
from altcore.engine.state import Run, Step
from altcore.errors import AltcoreError, PluginError
from altcore.signals import is_from_signal

log = structlog.get_logger("altcore")


@define(eq=False)
class Boundary:
    """Deals with what plugins do wrong: interventions end the run, others are disabled."""

    strict: bool = False
    """Whether a diagnostic or reporter that breaks ends the run."""
    _late: list[tuple[Plugin, BaseException]] = field(init=False, factory=list)
    """Errors that came when a plugin's context was left already."""

    def call(
        self,
        plugin: Plugin,
        doing: str,
        run: Run,
        step: Step | None = None,
        undo: Callable[[], None] | None = None,
    ) -> Call:
        """Return the context in which code of a plugin is called.

        ``doing`` is the hook or method, and ``undo`` what comes before changed modes of torch are
        put back. A call that fails is left quietly if the plugin is disabled for it.

        Raises:
            PluginError: from the context, if an intervention fails, or anybody if ``strict``.
        """
        return Call(self, plugin, doing, run, step, undo)

    def tell_late(self, run: Run) -> None:
        """Deal with the errors of functions that plugins left in the model."""
        while self._late:
            plugin, error = self._late.pop()
            if not plugin.is_disabled:
                self.settle(plugin, "a function that it left in the model", run, error)

    def settle(self, plugin: Plugin, doing: str, run: Run, error: BaseException) -> None:
        """Disable a plugin for an error, or raise `PluginError` if that would not be enough."""
        if plugin.is_disabled:  # told already, as while one of its contexts was open
            return
        is_named = isinstance(error, AltcoreError)
        message = str(error) if is_named else f"{type(error).__name__}: {error}"
        text = f"{plugin} failed in {doing}: {message}"
        if plugin.acts or self.strict:
            raise PluginError(text) from error
        plugin.is_disabled = True
        log.warning("plugin disabled for the rest of the run", plugin=str(plugin), error=message)
        run.degraded.append(plugin.name)
        run.write_event("degraded", plugin=plugin.name, message=text)


class Call:
    """A context, written by hand: it is entered several times in each step."""

    __slots__ = ("_about", "_boundary", "_kept", "_token", "_undo")

    def __init__(
        self,
        boundary: Boundary,
        plugin: Plugin,
        doing: str,
        run: Run,
        step: Step | None,
        undo: Callable[[], None] | None,
    ) -> None:
        self._boundary, self._about, self._undo = boundary, (plugin, doing, run, step), undo

    def __enter__(self) -> None:
        plugin, _, run, step = self._about
        late = self._boundary._late
        self._kept = Kept(run, step)
        self._token = TELL_LATE.set(lambda error: late.append((plugin, error)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        TELL_LATE.reset(self._token)
        plugin, doing, run, step = self._about
        problem = self._kept.put_back(plugin, doing, run, step, self._undo)
        if error is not None and is_from_signal(error):
            return False
        if error is None and problem:
            error = PluginError(problem)
        if error is not None:
            self._boundary.settle(plugin, doing, run, error)
        return True
