"""Errors of other people's code, with the name of whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import define
from torch import nn
from torch.optim import Optimizer

from altcore.engine.memory import is_out_of_memory
from altcore.engine.returns import check_state
from altcore.engine.state import Workload
from altcore.errors import AltcoreError, PluginError


@contextmanager
def naming(who: str, doing: str) -> Iterator[None]:
    """Let an error say whose code failed, and in what; errors of altcore's own stay as they are.

    So does a lack of memory, which is nobody's error: `memory_named` says where it was.
    """
    try:
        yield
    except AltcoreError:
        raise
    # Third parties may raise anything, or try to leave.
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise PluginError(f"{who} failed in {doing}: {type(error).__name__}: {error}") from error


@define(eq=False)
class NamedWorkload:
    """A workload whose errors name it.

    Those of ``loss`` are left to the caller: a plugin that looks on may have made them.
    """

    own: Workload
    who: str
    """Kind, name and distribution."""

    @property
    def model(self) -> nn.Module:
        """The workload's model."""
        with naming(self.who, "model"):
            return self.own.model

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """The workload's facts."""
        with naming(self.who, "facts"):
            return self.own.facts

    @property
    def items_per_batch(self) -> int:
        """Items in a micro-batch."""
        with naming(self.who, "items_per_batch"):
            return self.own.items_per_batch

    @property
    def item(self) -> str:
        """The plural by which an item is called."""
        with naming(self.who, "item"):
            return self.own.item

    def batch(self, split: str, step: int, micro: int) -> Any:
        """Return a micro-batch."""
        with naming(self.who, f"batch({split!r}, {step}, {micro})"):
            return self.own.batch(split, step, micro)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Return the loss of a batch, or the loss and measures."""
        return self.own.loss(model, batch)

    def __getattr__(self, name: str) -> Any:
        """Return what only some workloads have."""
        found = getattr(self.own, name)
        if not callable(found):
            return found

        def named(*args: Any, **kwargs: Any) -> Any:
            with naming(self.who, name):
                return found(*args, **kwargs)

        return named


def check_workload(workload: NamedWorkload) -> None:
    """Raise `PluginError` for a workload that has not what the engine needs.

    Its model's state must fit into a checkpoint.
    """
    wanted: dict[str, Any] = {"model": nn.Module, "facts": Mapping, "items_per_batch": int}
    for name, kind in (wanted | {"item": str}).items():
        found = getattr(workload, name)
        if not isinstance(found, kind):
            text = f"{name} is {type(found).__name__}, not {kind.__name__}"
            raise PluginError(f"{workload.who}: {text}")
    for name in ("batch", "loss"):
        if not callable(getattr(workload.own, name, None)):
            raise PluginError(f"{workload.who} has no method {name}")
    with naming(workload.who, "state_dict of its model"):
        _check(workload.who, "model", workload.model.state_dict())


def name_errors(optimizer: Optimizer, who: str) -> None:
    """Let errors of an optimizer's methods name it.

    Its state is checked after the first step, and whenever it is asked for: it must fit into a
    checkpoint, and nobody else finds out before the run is to go on.
    """
    step, state_dict, load = optimizer.step, optimizer.state_dict, optimizer.load_state_dict
    is_checked = False

    def named_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_checked
        with naming(who, "step"):
            done = step(*args, **kwargs)
        if not is_checked:
            named_state_dict()
            is_checked = True
        return done

    def named_state_dict() -> dict[str, Any]:
        with naming(who, "state_dict"):
            return _check(who, "optimizer", state_dict())

    def named_load(state: dict[str, Any]) -> None:
        with naming(who, "load_state_dict"):
            load(state)

    methods: dict[str, Callable[..., Any]] = {
        "step": named_step,
        "state_dict": named_state_dict,
        "load_state_dict": named_load,
    }
    for name, method in methods.items():
        setattr(optimizer, name, method)


def _check(who: str, what: str, state: Any) -> Any:
    try:
        return check_state(state, what)
    except PluginError as error:
        raise PluginError(f"{who}: no checkpoint can hold its state: {error}") from error
