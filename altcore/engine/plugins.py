"""The plugins that a run lists: loaded, checked, and put in the order in which they are called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from attrs import NOTHING, define, field, fields_dict

from altcore.config import TrainConfig, read_interval
from altcore.engine.flag_watch import watched
from altcore.engine.schedule import is_due
from altcore.errors import BadInput, keyed
from altcore.hooks import check_class, circle_of, make_plugin, step_settings
from altcore.registry import HOOK_KINDS, find

CONSTRUCTION = "the construction of its class"


@define(eq=False)
class Plugin:
    """An active plugin and where it comes from."""

    name: str
    kind: str
    origin: str
    """Its distribution and version."""
    instance: Any
    settings: Mapping[str, Any] = field(factory=dict)
    """Its settings as the user gave them, without those in epochs."""
    epochs: Mapping[str, Fraction] = field(factory=dict)
    """Those of its settings that are given in epochs."""
    is_disabled: bool = False
    _in_steps: Mapping[str, int] = field(factory=dict)
    """Those of ``epochs``, in the nearest number of steps."""
    _steps: Fraction | None = None

    @property
    def acts(self) -> bool:
        """Whether it may change numbers."""
        return self.kind == "intervention"

    @property
    def needs(self) -> tuple[str, ...]:
        """The tensors that it wants captured."""
        return tuple(getattr(self.instance, "needs", ()))

    @property
    def requires(self) -> tuple[str, ...]:
        """Names of the plugins whose measures it reads."""
        return tuple(getattr(self.instance, "requires", ()))

    @property
    def interval(self) -> int | Fraction:
        """Steps from one on which it is due to the next."""
        return self._steps or int(getattr(self.instance, "interval", 1))

    def count_steps(self, steps: Mapping[str, Fraction]) -> None:
        """Set the settings in epochs: the plugin, made anew, sees the nearest number of steps."""
        self._in_steps = {name: round(count) for name, count in steps.items()}
        self.instance = self.made_anew()
        self._steps = steps.get("interval")

    def made_anew(self) -> Any:
        """Return another instance with the same settings, as it is before a run."""
        settings = {**self.settings, **self._in_steps}
        with watched(str(self), CONSTRUCTION, is_observer=not self.acts):
            return make_plugin(type(self.instance), settings, self.name)

    def is_due(self, step: int) -> bool:
        """Whether its interval falls on the step; a diagnostic also measures the first one."""
        return is_due(self.interval, step) or (step == 1 and self.kind == "diagnostic")

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.origin})"


@contextmanager
def staying_here() -> Iterator[None]:
    """Put the working directory back: paths of the configuration start from it."""
    here = Path.cwd()
    try:
        yield
    finally:
        os.chdir(here)


def load_plugins(config: TrainConfig) -> list[Plugin]:
    """Load, check and configure the plugins that the run lists, in the order of their calls.

    Raises:
        BadInput: for a plugin that cannot be loaded, is set up wrongly, or requires another one
            that the run does not list.
    """
    plugins = []
    for name in config.plugins:
        with keyed("plugins", name), staying_here():
            entry = find(name, HOOK_KINDS)
            who = f"{entry.kind} {name} ({entry.origin})"
            looks = entry.kind != "intervention"
            with watched(who, "its import", is_observer=looks):
                cls = check_class(entry.load(), entry)
        known, epochs = _intervals_read(cls, config.settings_of(name), name)
        # How many steps these are, only the workload can tell: until then the defaults stand in.
        required = {key: 1 for key in epochs if fields_dict(cls)[key].default is NOTHING}
        with staying_here(), watched(who, CONSTRUCTION, is_observer=looks):
            instance = make_plugin(cls, known | required, name)
        interval = getattr(instance, "interval", 1)
        if not isinstance(interval, int) or interval < 1:
            problem = f"{interval!r} is not a whole number of at least 1"
            raise BadInput(problem, key=f"{name}.interval")
        plugins.append(Plugin(name, entry.kind, entry.origin, instance, known, epochs))
    return in_order(plugins)


def _intervals_read(
    cls: type, settings: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], dict[str, Fraction]]:
    """Return a plugin's settings without those that are given in epochs, and these."""
    known, epochs = dict(settings), {}
    for key in filter(settings.__contains__, step_settings(cls)):
        interval = read_interval(known.pop(key), f"{name}.{key}")
        if isinstance(interval, Fraction):
            epochs[key] = interval
        else:
            known[key] = interval
    return known, epochs


def in_order(plugins: Sequence[Plugin]) -> list[Plugin]:
    """Return interventions, diagnostics, reporters; each after the plugins that it requires.

    Within a kind the order is the user's. A required plugin comes forward only as far as it must.

    Raises:
        BadInput: if a required plugin is not there, or some require each other.
    """
    by_name = {p.name: p for p in plugins}
    requires = {p.name: p.requires for p in plugins}
    for name in by_name:
        if circle := circle_of(name, requires):
            raise BadInput(circle, key="plugins")
    placed: dict[str, Plugin] = {}

    def place(plugin: Plugin) -> None:
        if plugin.name in placed:
            return
        for name in plugin.requires:
            if name not in by_name:
                raise BadInput(
                    f"plugin {plugin.name} requires the plugin {name}, which is not in this run",
                    hint=f"add --plugin {name}",
                )
            place(by_name[name])
        placed[plugin.name] = plugin

    for plugin in sorted(plugins, key=lambda p: HOOK_KINDS.index(p.kind)):
        place(plugin)
    return list(placed.values())
