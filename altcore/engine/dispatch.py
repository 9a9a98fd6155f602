"""Loading the plugins that a run lists, and calling their hooks.

pluggy keeps specifications, validation and registration. Its own call path runs the last
registered first, loses who returned what, and stops at the first that raises; so the dispatcher
walks the implementations itself, each under its own guard.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from traceback import walk_tb
from types import NoneType
from typing import Any

import attrs
import pluggy
import structlog
from attrs import define, field
from torch import Tensor

from altcore.config import TrainConfig
from altcore.engine.state import Run, Step
from altcore.errors import AltcoreError, BadInput, PluginError, nearest
from altcore.hooks import ACTING, HOOKS, HOOKSPECS, MEASURING, NEEDS, Action, Proposal, build
from altcore.registry import HOOK_KINDS, Entry, find

log = structlog.get_logger("altcore")

INTERVAL_HOOKS = ("pre_backward", "post_backward", "pre_step", "post_step")
"""Hooks that a plugin's ``interval`` setting thins out; what happened is always told."""
LONGEST_MEASURE = 256
"""Elements of a measure that is a 1-D tensor."""
WATCHES = "watch_forward"
"""The method whose context is entered around the forward passes of steps on which one is due."""


@define(eq=False)
class Plugin:
    """An active plugin and where it comes from."""

    name: str
    kind: str
    origin: str
    instance: Any
    order: int = 0
    is_disabled: bool = False

    @property
    def acts(self) -> bool:
        """Whether it may change numbers."""
        return self.kind == "intervention"

    @property
    def needs(self) -> tuple[str, ...]:
        """What it wants captured."""
        return tuple(getattr(self.instance, "needs", ()))

    def is_due(self, step: int) -> bool:
        """Whether its interval falls on ``step``, or its own ``is_due`` says so."""
        own = getattr(self.instance, "is_due", None)
        if own is not None:
            return bool(own(step))
        return bool(step % getattr(self.instance, "interval", 1) == 0)

    @property
    def watches(self) -> bool:
        """Whether it wants to see forward passes from within."""
        return hasattr(self.instance, WATCHES)

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.origin})"


def load_plugins(config: TrainConfig) -> list[Plugin]:
    """Load, check and configure the plugins that the run lists, in dispatch order."""
    plugins = []
    for name in config.plugins:
        entry = find(name, HOOK_KINDS)
        cls = check_class(entry.load(), entry)
        instance = build(cls, config.settings.get(name, {}), name)
        interval = getattr(instance, "interval", 1)
        if not isinstance(interval, int) or interval < 1:
            raise BadInput(f"{name}.interval: {interval!r} is not a whole number of at least 1")
        plugins.append(Plugin(name, entry.kind, entry.origin, instance))
    plugins.sort(key=lambda p: HOOK_KINDS.index(p.kind))
    for order, plugin in enumerate(plugins):
        plugin.order = order
    return plugins


def _is_raised_in(plugin: Plugin, error: Exception) -> bool:
    """Whether code of the plugin's class has part in it."""
    cls = type(plugin.instance)
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return any(
        frame.f_globals.get("__name__") == cls.__module__
        and frame.f_code.co_qualname.startswith(f"{cls.__qualname__}.")
        and frame.f_code.co_name != WATCHES  # its context is only passed
        for frame in frames
    )


def check_class(cls: Any, entry: Entry) -> type:
    """Return the plugin's class if it can be one; `BadInput` naming it and what is wrong."""
    who = f"{entry.kind} {entry.name} ({entry.origin})"
    if not (isinstance(cls, type) and attrs.has(cls)):
        raise BadInput(f"{who}: {cls!r} is not an attrs class: use @define(eq=False)")
    if cls.__eq__ is not object.__eq__:
        raise BadInput(f"{who}: use @define(eq=False): equal instances cannot be told apart")
    for name, member in inspect.getmembers(cls, callable):
        marks = getattr(member, "altcore_impl", None)
        if name == WATCHES and marks is not None:
            raise BadInput(f"{who}: {name} is a method, no hook: leave @hookimpl away")
        if marks is None:
            if name in HOOKS:
                raise BadInput(f"{who}: {name} is a hook's name but not marked with @hookimpl")
            continue
        if name not in HOOKS:
            raise BadInput(
                f"{who}: there is no hook {name!r}{nearest(name, HOOKS)}: {', '.join(HOOKS)}"
            )
        for mark in ("wrapper", "hookwrapper", "tryfirst", "trylast", "specname"):
            if marks.get(mark):
                raise BadInput(f"{who}: {name}: {mark} is refused: the user's list is the order")
    for need in getattr(cls, "needs", ()):
        if need not in NEEDS:
            raise BadInput(
                f"{who}: there is no need {need!r}{nearest(need, NEEDS)}: {', '.join(NEEDS)}"
            )
    _check_arguments(cls, who)
    return cls


def _check_arguments(cls: type, who: str) -> None:
    watches = [WATCHES] if hasattr(cls, WATCHES) else []
    for name in [*hooks_of(cls), *watches]:
        spec = getattr(HOOKSPECS, "pre_backward" if name == WATCHES else name)
        known = inspect.signature(spec).parameters
        for argument in list(inspect.signature(getattr(cls, name)).parameters)[1:]:
            if argument not in known:
                raise BadInput(
                    f"{who}: {name} has no argument {argument!r}{nearest(argument, known)}: "
                    f"it may take {', '.join(known)}"
                )


def hooks_of(cls: type) -> list[str]:
    """Return the hooks that a plugin's class implements, in the order of the step."""
    return [h for h in HOOKS if getattr(getattr(cls, h, None), "altcore_impl", None) is not None]


@define(eq=False)
class Dispatcher:
    """Calls hooks: interventions, diagnostics, reporters; in the user's order within a kind."""

    plugins: Sequence[Plugin]
    strict: bool = False
    on_broken: Callable[[Plugin, str], None] = field(default=lambda plugin, message: None)
    """Told once when a plugin that only looks is disabled."""
    _calls: dict[str, list[tuple[Plugin, Callable[..., Any], tuple[str, ...]]]] = field(init=False)
    _due: tuple[int, set[str]] | None = field(init=False, default=None)
    """A step, and the names of the plugins that are due on it."""

    def __attrs_post_init__(self) -> None:
        manager = pluggy.PluginManager("altcore")
        manager.add_hookspecs(HOOKSPECS)
        by_name = {p.name: p for p in self.plugins}
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
            self._calls[hook] = sorted(found, key=lambda c: c[0].order)

    def implements(self, hook: str) -> bool:
        """Whether any plugin has the hook."""
        return bool(self._calls[hook])

    def needs(self, step: int) -> set[str]:
        """Return what is to be captured on ``step``: the needs of the plugins that are due.

        Snapshots have an interval of their own.
        """
        return {n for p in self.plugins for n in p.needs if self._wants(p, n, step)}

    def _wants(self, plugin: Plugin, need: str, step: int) -> bool:
        return not plugin.is_disabled and (need == "snapshots" or self._is_due(plugin, step))

    def _is_due(self, plugin: Plugin, step: int) -> bool:
        """Whether an active plugin is due; all are asked once a step.

        One whose ``is_due`` raises is no longer active.
        """
        if self._due is None or self._due[0] != step:
            due = set()
            for asked in self.plugins:
                if not asked.is_disabled:
                    with self._guard(asked, "is_due"):
                        if asked.is_due(step):
                            due.add(asked.name)
            self._due = step, due
        return plugin.name in self._due[1] and not plugin.is_disabled

    def measures_on(self, step: int) -> bool:
        """Whether a plugin measures on ``step``, so that the step is recorded."""
        calls = (c for hook in MEASURING for c in self._calls[hook])
        return any(self._is_due(p, step) for p, _, _ in calls)

    def call(self, hook: str, **arguments: Any) -> list[tuple[Plugin, Any]]:
        """Call every implementation; returns who returned what, None left out.

        An intervention that raises ends the run with `PluginError`; a diagnostic or reporter is
        disabled (or, with ``strict``, ends the run).
        """
        results = []
        failure: PluginError | None = None
        thinned = hook in INTERVAL_HOOKS
        for plugin, function, names in self._calls[hook]:
            if plugin.is_disabled:
                continue
            if thinned and not self._is_due(plugin, arguments["step"].index):
                continue
            try:
                with self._guard(plugin, hook):
                    result = function(*[arguments[name] for name in names])
                    if result is not None:
                        check_return(plugin, hook, result)
                        results.append((plugin, result))
            except PluginError as error:
                # Everybody is told that the run is over.
                if hook != "run_end":
                    raise
                failure = failure or error
        if failure:
            raise failure
        return results

    def actions(self, hook: str, **arguments: Any) -> list[Proposal]:
        """Call an acting hook; returns the proposals."""
        return [Proposal(p.name, action) for p, action in self.call(hook, **arguments)]

    def measures(self, hook: str, **arguments: Any) -> dict[str, Any]:
        """Call a measuring hook; returns measures by ``plugin/measure``."""
        return {
            f"{plugin.name}/{key}": value
            for plugin, measures in self.call(hook, **arguments)
            for key, value in measures.items()
        }

    @contextmanager
    def watching(self, run: Run, step: Step) -> Iterator[None]:
        """Around a forward pass: the contexts of the plugins that are due and watch it."""
        with ExitStack() as contexts:
            for plugin in self.plugins:
                if plugin.watches and self._is_due(plugin, step.index):
                    contexts.enter_context(self._watch(plugin, run, step))
            yield

    @contextmanager
    def _watch(self, plugin: Plugin, run: Run, step: Step) -> Iterator[None]:
        inner = ExitStack()
        with self._guard(plugin, WATCHES):
            method, known = getattr(plugin.instance, WATCHES), {"run": run, "step": step}
            given = {name: known[name] for name in inspect.signature(method).parameters}
            inner.enter_context(method(**given))
        try:
            yield
        except BaseException as error:
            with suppress(Exception):  # none takes the place of this one
                inner.__exit__(type(error), error, error.__traceback__)
            # The pass cannot be finished: what looks on with care waits, by `Deferred`.
            is_own = isinstance(error, Exception) and _is_raised_in(plugin, error)
            if is_own and not isinstance(error, AltcoreError):
                text = f"{plugin} failed in the forward pass: {type(error).__name__}: {error}"
                raise PluginError(text) from error
            raise
        with self._guard(plugin, WATCHES):
            inner.close()

    @contextmanager
    def _guard(self, plugin: Plugin, doing: str) -> Iterator[None]:
        try:
            yield
        # A plugin may raise anything; what it can change decides what follows.
        except Exception as error:
            is_named = isinstance(error, AltcoreError)
            message = str(error) if is_named else f"{type(error).__name__}: {error}"
            text = f"{plugin} failed in {doing}: {message}"
            if plugin.acts or self.strict:
                raise PluginError(text) from error
            plugin.is_disabled = True
            log.warning(
                "plugin disabled for the rest of the run", plugin=str(plugin), error=message
            )
            self.on_broken(plugin, text)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the plugins that have one."""
        states = {}
        for plugin in self.plugins:
            if hasattr(plugin.instance, "state_dict") and not plugin.is_disabled:
                with self._guard(plugin, "state_dict"):
                    states[plugin.name] = check_state(plugin.instance.state_dict())
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the plugins that are in ``state``."""
        for plugin in self.plugins:
            if plugin.name in state and hasattr(plugin.instance, "load_state_dict"):
                with self._guard(plugin, "load_state_dict"):
                    plugin.instance.load_state_dict(state[plugin.name])


def check_return(plugin: Plugin, hook: str, result: Any) -> None:
    """Raise `PluginError` for a return that the hook does not allow."""
    if hook in ACTING:
        if not isinstance(result, Action):
            raise PluginError(f"it returned {type(result).__name__}, not an Action or None")
        if not plugin.acts:
            raise PluginError(
                f"it returned {type(result).__name__}: a {plugin.kind} looks, only an "
                "intervention may ask for an action"
            )
    elif hook in MEASURING:
        _check_measures(result)
    else:
        raise PluginError(f"it returned {type(result).__name__}: {hook} returns nothing")


def check_state(value: Any, where: str = "state") -> Any:
    """Return a plugin's state if a checkpoint gives it back without running code.

    `PluginError` otherwise: it would be written, and no checkpoint could be read any more.
    """
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            check_state(key, f"a key of {where}")
            check_state(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, part in enumerate(value):
            check_state(part, f"{where}[{i}]")
    elif not isinstance(value, Tensor) and type(value) not in (str, int, float, bool, NoneType):
        raise PluginError(
            f"{where} is {type(value).__name__}: it may be tensors, numbers, text, lists and dicts"
        )
    return value


def _check_measures(result: Any) -> None:
    if not isinstance(result, Mapping):
        raise PluginError(f"it returned {type(result).__name__}, not measures or None")
    for key, value in result.items():
        if not isinstance(key, str) or not key:
            raise PluginError(f"the measure's name {key!r} is not text")
        if isinstance(value, Tensor):
            if value.dim() > 1 or value.numel() > LONGEST_MEASURE or value.is_complex():
                raise PluginError(
                    f"measure {key} has shape {tuple(value.shape)}: a scalar or at most "
                    f"{LONGEST_MEASURE} numbers are possible"
                )
        elif not isinstance(value, int | float):
            raise PluginError(f"measure {key} is {type(value).__name__}, not a number or tensor")
