"""Errors of other people's code, with the name of whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from altcore.engine.memory import is_out_of_memory
from altcore.engine.returns import check_state
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
            return check_savable(who, "optimizer", state_dict())

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


def check_savable(who: str, what: str, state: Any) -> Any:
    """Return the state of ``what``; `PluginError` of ``who`` if no checkpoint can hold it."""
    try:
        return check_state(state, what)
    except PluginError as error:
        raise PluginError(f"{who}: no checkpoint can hold its state: {error}") from error
