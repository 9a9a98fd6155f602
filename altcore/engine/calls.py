"""Calls of plugins' code: whatever they raise or may not change is theirs, and has their name."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from attrs import define, field

from altcore.engine.deferred_errors import TELL_LATE
from altcore.engine.guards import Kept, may_change_loss
from altcore.engine.observers import Before, ObserverCheck
from altcore.engine.plugins import Plugin
from altcore.engine.state import Run, Step
from altcore.errors import PluginError, described
from altcore.hook_clock import HookClock
from altcore.log import log
from altcore.signals import is_from_signal


@define(eq=False)
class Boundary:
    """Deals with what plugins do wrong: interventions end the run, others are disabled."""

    strict: bool = False
    """Whether a diagnostic or reporter that breaks ends the run."""
    observers: ObserverCheck | None = None
    """Looks at what observers change; None for nobody."""
    clock: HookClock = field(factory=HookClock)
    note_harm: Callable[[Plugin | None, str], None] = field(init=False, default=lambda *_: None)
    """Called around each call of a plugin, which may close the run's files or write to them."""
    process: int = field(init=False, factory=os.getpid)
    """The one that trains; a child of it that a plugin forked may not go on."""
    errors: dict[str, str] = field(init=False, factory=dict)
    """Of the plugins that this process disabled, by name."""
    _late: list[tuple[Plugin, BaseException]] = field(init=False, factory=list)
    """Errors that came when a plugin's context was left already."""

    def call(
        self,
        plugin: Plugin,
        doing: str,
        run: Run,
        step: Step | None = None,
        *,
        kept: Kept | None = None,
        watches: bool = False,
        entered: Call | None = None,
        undo: Callable[[], None] | None = None,
    ) -> Call:
        """Return the context in which code of a plugin is called.

        A call that fails is left quietly if the plugin is disabled for it.

        Args:
            plugin: whose code it is.
            doing: the hook or method.
            run: the run.
            step: the step, if the hook is given one.
            kept: what is put back; as it is now if it is not given.
            watches: whether a context is entered or left that surrounds a pass of the model.
            entered: the call in which that context was entered.
            undo: called before changed modes of torch are put back.

        Raises:
            PluginError: from the context, if an intervention fails, or anybody if ``strict``.
        """
        about = (plugin, doing, run, step, undo)
        return Call(self, about, kept or Kept(run, step), watches=watches, entered=entered)

    def tell_late(self, run: Run) -> None:
        """Deal with the errors of functions that plugins left in the model."""
        while self._late:
            plugin, error = self._late.pop()
            if not plugin.is_disabled:
                self.settle(plugin, "a function that it left in the model", run, error)

    def settle(
        self, plugin: Plugin, doing: str, run: Run, error: BaseException, also: str = ""
    ) -> None:
        """Disable a plugin for an error, or raise `PluginError` if that would not be enough."""
        if plugin.is_disabled:  # told already, as while one of its contexts was open
            return
        message = described(error)
        message = f"{message}; {also}" if also else message
        text = f"{plugin} failed in {doing}: {message}"
        if plugin.acts or self.strict:
            raise PluginError(text) from error
        plugin.is_disabled = True
        run.degraded.append(plugin.name)
        self.errors[plugin.name] = text
        try:
            log.warning(
                "plugin disabled for the rest of the run", plugin=str(plugin), error=message
            )
            run._write_event("degraded", plugin=plugin.name, message=text)
        except RecursionError:  # nothing can be told in a full stack: the call further out tells
            plugin.is_disabled = False
            run.degraded.remove(plugin.name)
            del self.errors[plugin.name]
            raise


class Call:
    """A context, written by hand: it is entered several times in each step."""

    __slots__ = ("_about", "_before", "_boundary", "_entered", "_kept", "_token", "_watches")

    def __init__(
        self,
        boundary: Boundary,
        about: tuple[Plugin, str, Run, Step | None, Callable[[], None] | None],
        kept: Kept,
        *,
        watches: bool,
        entered: Call | None,
    ) -> None:
        self._boundary, self._about, self._kept = boundary, about, kept
        self._watches, self._entered = watches, entered
        self._before: Before | None = None

    def __enter__(self) -> None:
        plugin, doing, run, step, _ = self._about
        if step is not None and not may_change_loss(plugin, doing):
            step._keep_loss()
        late = self._boundary._late
        again = self._entered is not None and self._entered._before is not None
        if self._boundary.observers is not None:
            self._before = self._boundary.observers.before(plugin, doing, run, step, again=again)
        self._boundary.note_harm(None, "")
        self._token = TELL_LATE.set(lambda error: late.append((plugin, error)))
        self._boundary.clock.enter(plugin, doing)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if os.getpid() != self._boundary.process:
            _leave_to_parent(*self._about[:2])
        self._boundary.clock.leave(is_in_step=self._about[3] is not None)
        TELL_LATE.reset(self._token)
        plugin, doing, run, step, undo = self._about
        self._boundary.note_harm(plugin, doing)
        problems = [self._kept.put_back(plugin, doing, run, step, undo)]
        if self._before is not None:
            problems.append(self._before.put_back(is_in_pass=self._watches))
        if self._entered is not None and self._entered._before is not None:
            problems.append(self._entered._before.put_back(only_of_pass=True))
        if error is not None and is_from_signal(error):
            return False
        problem = "; ".join(filter(None, problems))
        if error is None and problem:
            error, problem = PluginError(problem), ""
        if error is not None:
            self._boundary.settle(plugin, doing, run, error, problem)
        return True


def _leave_to_parent(plugin: Plugin, doing: str) -> None:
    """End a forked process that came back from a plugin: it would write the run a second time."""
    text = f"altcore: {plugin} forked in {doing}, and its child came back: the child ends here\n"
    with suppress(OSError):
        os.write(2, text.encode())
    os._exit(1)  # what is buffered is the parent's to write
