"""What the tests of plugins share: classes made of functions, and a run that is only told."""

from types import FunctionType, SimpleNamespace

from attrs import define
from torch import nn

from altcore import hookimpl
from altcore.engine.plugins import Plugin, load_plugins


def load(shelf, start, cls, kind="diagnostic", **settings):
    """Install a class as a plugin and load it as a run would."""
    name = shelf.install(kind, "tried", cls, "acme-tried", "9.9")
    return load_plugins(start.config([name], **{f"tried__{k}": v for k, v in settings.items()}))


def make(hooks, **options):
    """An attrs class with hooks that are plain functions."""
    copies = {n: FunctionType(f.__code__, f.__globals__, n) for n, f in hooks.items()}
    body = {n: hookimpl(**options)(f) for n, f in copies.items()}
    return define(eq=False)(type("Made", (), body))


def plugin(cls, kind="intervention", name="p"):
    """A plugin as `load_plugins` would give it."""
    return Plugin(name, kind, "acme 1", cls() if isinstance(cls, type) else cls)


class Told:
    """A run, as far as a dispatcher tells it of broken plugins."""

    def __init__(self):
        self.degraded, self.reports, self.events = [], [], []
        self.step, self.lr_scale, self.model = 0, 1.0, nn.Module()
        self.optimizer = SimpleNamespace(param_groups=[])

    def _write_event(self, kind, **data):
        self.events.append((kind, data))


def acting(shelf, act, on=3):
    """Install an intervention that does something to the run's directory in a step."""

    @define(eq=False)
    class Acts:
        @hookimpl
        def pre_step(self, run, step):
            if step.index == on:
                act(run.directory)

    shelf.install("intervention", "acts", Acts)
