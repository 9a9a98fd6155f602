"""Errors of other people's code, with the name of whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from altcore.engine.flag_watch import watched
from altcore.engine.memory import is_out_of_memory
from altcore.engine.returns import check_state
from altcore.errors import AltcoreError, PluginError, described
from altcore.signals import is_from_signal


@contextmanager
def naming(who: str, doing: str, *, is_one_call: bool = True) -> Iterator[None]:
    """Let an error say whose code failed, and in what; errors of altcore's own stay as they are.

    So does a lack of memory, which is nobody's error: `memory_named` says where it was. A single
    call that does not end is reported with its stack.
    """
    try:
        with watched(who, doing) if is_one_call else nullcontext():
            yield
    except AltcoreError:
        raise
    # Third parties may raise anything, or try to leave.
    except BaseException as error:
        if is_out_of_memory(error) or is_from_signal(error):
            raise
        raise PluginError(f"{who} failed in {doing}: {described(error)}") from error


def check_savable(who: str, what: str, state: Any) -> Any:
    """Return the state of ``what``; `PluginError` of ``who`` if no checkpoint can hold it."""
    try:
        return check_state(state, what)
    except PluginError as error:
        raise PluginError(f"{who}: no checkpoint can hold its state: {error}") from error
