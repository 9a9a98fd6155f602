"""Calling the hooks of the plugins.

pluggy keeps specifications, validation and registration. Its own call path runs the last
registered first, loses who returned what, and stops at the first that raises; so the dispatcher
walks the implementations itself, each under its own guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from traceback import walk_tb
from typing import Any

import pluggy
from attrs import define, field
from torch import Tensor

from altcore.builtin_types import as_builtin, copied
from altcore.engine.calls import Boundary
from altcore.engine.guards import Kept
from altcore.engine.losses import who_is
from altcore.engine.memory import is_out_of_memory
from altcore.engine.observers import ObserverCheck
from altcore.engine.plugins import Plugin
from altcore.engine.returns import as_actions, check_return, check_state, measured
from altcore.engine.state import Run, Step
from altcore.engine.unasked import tell_changed_weights, weights_of
from altcore.errors import AltcoreError, BadInput, PluginError, described
from altcore.hook_clock import HookClock
from altcore.hooks import HOOKS, HOOKSPECS, MEASURING, ON_DUE_STEPS, WATCHING, Proposal
from altcore.signals import is_from_signal


@define(eq=False)
class Dispatcher:
    """Calls hooks in the order of ``plugins``, and says what is due and needed on a step."""

    plugins: Sequence[Plugin]
    strict: bool = False
    """Whether a diagnostic or reporter that raises ends the run."""
    observers: ObserverCheck | None = None
    """Looks at what diagnostics and reporters change; None for nobody."""
    clock: HookClock = field(factory=HookClock)
    _calls: dict[str, list[tuple[Plugin, Callable[..., Any], tuple[str, ...]]]] = field(init=False)
    _due: tuple[int, set[str]] | None = field(init=False, default=None)
    """A step, and the names of the plugins that are due on it."""
    _hearing: set[str] = field(init=False, factory=set)
    """The plugins whose ``on_event`` runs: they are told of no event that comes meanwhile."""
    boundary: Boundary = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.boundary = Boundary(self.strict, self.observers, self.clock)
        manager = pluggy.PluginManager("altcore")
        manager.add_hookspecs(HOOKSPECS)
        by_name = {p.name: p for p in self.plugins}
        place = {p.name: i for i, p in enumerate(self.plugins)}
        for plugin in self.plugins:
            try:
                manager.register(plugin.instance, plugin.name)
            except (pluggy.PluginValidationError, ValueError) as error:
                raise BadInput(f"{plugin}: {error}") from error
        manager.check_pending()
        self._calls = {}
        for hook in HOOKS:
            found = [
                (by_name[impl.plugin_name], impl.function, impl.argnames)
                for impl in getattr(manager.hook, hook).get_hookimpls()
            ]
            self._calls[hook] = sorted(found, key=lambda call: place[call[0].name])

    @property
    def heard(self) -> set[str]:
        """Names of the interventions, and of the plugins whose measures they read."""
        heard = {p.name for p in self.plugins if p.acts}
        for plugin in reversed(self.plugins):  # what a plugin requires stands before it
            if plugin.name in heard:
                heard.update(plugin.requires)
        return heard

    def implements(self, hook: str) -> bool:
        """Whether any plugin has the hook."""
        return bool(self._calls[hook])

    def acts_in(self, *hooks: str) -> bool:
        """Whether an intervention has one of these hooks."""
        return bool(self.acting_in(*hooks))

    def acting_in(self, *hooks: str) -> list[Plugin]:
        """Return the interventions that have one of these hooks."""
        found = [plugin for hook in hooks for plugin, _, _ in self._calls[hook] if plugin.acts]
        return list(dict.fromkeys(found))

    def needs(self, run: Run, step: Step) -> set[str]:
        """Return the captures that the plugins due on ``step`` need.

        Snapshots have an interval of their own.
        """
        due = self._due_on(run, step)
        active = [p for p in self.plugins if not p.is_disabled]
        return {n for p in active for n in p.needs if n == "snapshots" or p.name in due}

    def measures_on(self, run: Run, step: Step) -> bool:
        """Whether a plugin measures on ``step``, so that the step is recorded."""
        due = self._due_on(run, step)
        measuring = [p for hook in MEASURING for p, _, _ in self._calls[hook]]
        return any(p.name in due and not p.is_disabled for p in measuring)

    def call(
        self, hook: str, *, run: Run, acting: bool | None = None, **arguments: Any
    ) -> list[tuple[Plugin, Any]]:
        """Call every implementation; returns who returned what, None left out.

        ``acting``: only those of interventions, or only those of all others.

        Raises:
            PluginError: if an intervention raises or returns what it must not. A diagnostic or
                reporter is disabled instead, unless the dispatcher is ``strict``.
        """
        return list(self._results(hook, run, arguments, acting=acting))

    def actions(self, hook: str, *, run: Run, **arguments: Any) -> list[Proposal]:
        """Call an acting hook; returns the proposals."""
        results = self._results(hook, run, arguments)
        return [Proposal(p.name, action) for p, found in results for action in as_actions(found)]

    def measures(self, hook: str, *, run: Run, step: Step) -> dict[str, Any]:
        """Call a measuring hook; returns measures by ``plugin/measure``.

        They are in ``step.measures`` before the next plugin is called. Tensors are copied: a view
        of a gradient, or a sum that the plugin goes on with, would be recorded as it is later.
        """
        found: dict[str, Any] = {}
        for plugin, returned in self._results(hook, run, {"step": step}):
            measures = {key: _kept(value) for key, value in returned.items()}
            step.measures.setdefault(plugin.name, {}).update(measures)
            found |= {f"{plugin.name}/{key}": value for key, value in measures.items()}
        return found

    def findings(self, run: Run, lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Return what each plugin found, by its name; it is given its own measures of ``lines``.

        Of a diagnostic that measures, and of which there is nothing in the lines, that is said.
        """
        history = {p.name: own_measures(p.name, lines) for p, _, _ in self._calls["findings"]}
        own = {name: lines for name, lines in history.items() if lines}
        found = self._results("findings", run, {}, history=own)
        measuring = {p for hook in MEASURING for p, _, _ in self._calls[hook] if not p.is_disabled}
        silent = [p.name for p in self.plugins if p in measuring and p.kind == "diagnostic"]
        why = "" if run.quantization.layers else ": nothing is quantized"
        nothing = [f"recorded no measure{why}"]
        without = {n: nothing for n in silent if lines and not own_measures(n, lines)}
        return without | {plugin.name: list(said) for plugin, said in found}

    def _results(
        self,
        hook: str,
        run: Run,
        arguments: Mapping[str, Any],
        *,
        acting: bool | None = None,
        history: Mapping[str, Sequence[Any]] | None = None,
    ) -> Iterator[tuple[Plugin, Any]]:
        """Yield each plugin with what it returned, as soon as it did.

        ``history`` is an argument by plugin; a plugin without one is not called.
        """
        self.boundary.tell_late(run)
        if not self._calls[hook]:
            return
        step = arguments.get("step")
        kept = Kept(run, step)
        due = self._due_on(run, arguments["step"]) if hook in ON_DUE_STEPS else None
        busy = self._hearing if hook == "on_event" else set()
        failure: PluginError | None = None
        for plugin, function, names in self._calls[hook]:
            is_called = (
                not plugin.is_disabled
                and (due is None or plugin.name in due)
                and acting in (None, plugin.acts)
                and (history is None or plugin.name in history)
                and plugin.name not in busy
            )
            if not is_called:
                continue
            own = {} if history is None else {"history": history[plugin.name]}
            known = {"run": run, **arguments, **own}
            call = partial(_called, function, [known[name] for name in names])
            busy.add(plugin.name)
            try:
                result = self._returned(plugin, hook, call, run, step, kept)
            except PluginError as error:
                # Everybody is told that the run is over.
                if hook not in ("findings", "run_end"):
                    raise
                failure = failure or error
                continue
            finally:
                busy.discard(plugin.name)
            if result is not None:
                yield plugin, result
        if failure:
            raise failure

    def _returned(
        self,
        plugin: Plugin,
        hook: str,
        call: Callable[[], Any],
        run: Run,
        step: Step | None,
        kept: Kept,
    ) -> Any:
        """Return what a plugin returns, checked; None if it fails and is disabled."""
        result = None
        weights = weights_of(run, plugin, hook)
        with self.boundary.call(plugin, hook, run, step, kept=kept):
            returned = call()
            if step is not None and hook in MEASURING:
                returned = measured(returned, step.measures.get(plugin.name, ()))
            check_return(plugin, hook, returned)
            result = returned
        if weights is not None and not plugin.is_disabled:
            tell_changed_weights(run, plugin, hook, weights)
        return result

    @contextmanager
    def watching(self, hook: str, run: Run, step: Step) -> Iterator[None]:
        """Enter the contexts that the plugins due on the step return from a watching hook."""
        try:
            with ExitStack() as contexts:
                for plugin, context in self.call(hook, run=run, step=step):
                    contexts.enter_context(self._watch(plugin, hook, run, step, context))
                yield
        except BaseException as error:
            if isinstance(error, AltcoreError) or is_out_of_memory(error) or is_from_signal(error):
                raise
            # The pass cannot be finished: a careful observer defers its errors.
            culprit = next((p for p in self.plugins if _is_raised_in(p, error)), None)
            is_loss = culprit is None and hook == "watch_forward"
            doing = "loss" if is_loss else f"the {hook.removeprefix('watch_')} pass"
            who = culprit or who_is(run.workload)
            text = f"{who} failed in {doing}: {described(error)}"
            raise PluginError(text) from error

    @contextmanager
    def _watch(
        self,
        plugin: Plugin,
        hook: str,
        run: Run,
        step: Step,
        context: AbstractContextManager[Any],
    ) -> Iterator[None]:
        inner = ExitStack()
        entering = self.boundary.call(plugin, hook, run, step, watches=True, undo=inner.close)
        with entering:
            inner.enter_context(context)
        try:
            yield
        except BaseException as error:
            with suppress(BaseException):  # none takes the place of this one
                inner.__exit__(type(error), error, error.__traceback__)
            raise
        with self.boundary.call(plugin, hook, run, step, watches=True, entered=entering):
            inner.close()

    def _due_on(self, run: Run, step: Step) -> set[str]:
        """Return the names of the plugins that are due; each is asked once a step.

        One whose ``is_due`` raises is no longer active.
        """
        if self._due is None or self._due[0] != step.index:
            answers = {p.name: due for p, due in self.call("is_due", run=run, step=step)}
            by_interval = {p.name: p.is_due(step.index) for p in self.plugins}
            due = {name for name, is_on in (by_interval | answers).items() if is_on}
            self._due = step.index, due
        return self._due[1]

    def disable_broken(self, run: Run, errors: Sequence[Mapping[str, str]]) -> None:
        """Disable the plugins that other ranks disabled; ``errors`` has why, by rank and name."""
        for rank, told in enumerate(errors):
            for plugin in self.plugins:
                if plugin.name in told and not plugin.is_disabled:
                    plugin.is_disabled = True
                    run.degraded.append(plugin.name)
                    text = f"on rank {rank} {told[plugin.name]}"
                    run._write_event("degraded", plugin=plugin.name, message=text)

    def state_dict(self, run: Run) -> dict[str, Any]:
        """Return the state of the plugins that have one; of a disabled one if it can still tell."""
        states = {}
        for plugin in self.plugins:
            if hasattr(plugin.instance, "state_dict"):
                with self.boundary.call(plugin, "state_dict", run):
                    states[plugin.name] = check_state(plugin.instance.state_dict())
        return states

    def load_state_dict(self, run: Run, state: Mapping[str, Any]) -> None:
        """Restore the plugins that are in ``state``; one that was disabled stays so."""
        for plugin in self.plugins:
            plugin.is_disabled = plugin.name in run.degraded
            if plugin.name in state and hasattr(plugin.instance, "load_state_dict"):
                with self.boundary.call(plugin, "load_state_dict", run):
                    plugin.instance.load_state_dict(state[plugin.name])


def _called(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Call a hook; whatever the plugin does to its dictionaries reaches nobody else."""
    return as_builtin(function(*map(copied, arguments)))


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def own_measures(name: str, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a plugin's measures, by their own names, on each step on which it measured."""
    prefix, found = f"{name}/", []
    for line in lines:
        own = {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
        if own:
            found.append({"step": line["step"], **own})
    return found


def _is_raised_in(plugin: Plugin, error: BaseException) -> bool:
    """Whether code of the plugin's class has part in it."""
    cls = type(plugin.instance)
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return any(
        frame.f_globals.get("__name__") == cls.__module__
        and frame.f_code.co_qualname.startswith(f"{cls.__qualname__}.")
        and frame.f_code.co_name not in WATCHING  # the error only passes through its context
        for frame in frames
    )
