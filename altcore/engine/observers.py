"""Whether observers only look: each hook of each once, or every call with ``check_observers``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from attrs import define, field

from altcore.engine.plugins import Plugin
from altcore.engine.possessions import possessions
from altcore.engine.state import Run, Step
from altcore.engine.trespass import Possession, RandomStates
from altcore.log import log

OUTSIDE = ("run_start", "findings", "run_end")
"""Hooks in which random numbers may be drawn, as imports do: no step depends on them."""
SHOWN = 4
"""Changes that a message names."""


@define(eq=False)
class ObserverCheck:
    """Decides which calls of diagnostics and reporters are looked at."""

    is_on: bool = False
    """Whether every call is, with copies of all tensors."""
    _seen: set[tuple[str, str]] = field(init=False, factory=set)
    _is_told: bool = field(init=False, default=False)

    def before(
        self, plugin: Plugin, doing: str, run: Run, step: Step | None, *, again: bool = False
    ) -> Before | None:
        """Return what is there before a call, None if the call is not looked at.

        With ``again`` it is, whatever was looked at before.
        """
        if plugin.acts:
            return None
        if not (self.is_on or again):
            if (plugin.name, doing) in self._seen:
                return None
            self._seen.add((plugin.name, doing))
        with self._looking() as looking:
            found = possessions(run, step, plugin.kind, by_value=self.is_on)
            looking.all = [
                p for p in found if doing not in OUTSIDE or not isinstance(p, RandomStates)
            ]
        return looking

    @contextmanager
    def _looking(self) -> Iterator[Before]:
        """Give up what nobody asked for if a model or optimizer cannot be looked at."""
        before = Before(self)
        try:
            yield before
        except Exception as error:
            if self.is_on:
                raise
            before.all = []
            if not self._is_told:
                self._is_told = True
                problem = f"{type(error).__name__}: {error}"
                log.warning(f"observers are not checked for what they change ({problem})")


@define(eq=False)
class Before:
    """Everything as it was before a call."""

    check: ObserverCheck
    all: list[Possession] = field(init=False, factory=list)

    @torch.no_grad()
    def put_back(self, *, is_in_pass: bool = False, only_of_pass: bool = False) -> str:
        """Put back what changed; returns in words what that was, "" if nothing.

        ``is_in_pass`` leaves alone what a context may change for the length of a pass, as hooks,
        and ``only_of_pass`` everything else.
        """
        kinds = (False,) if is_in_pass else (True,) if only_of_pass else (False, True)
        changed: list[str] = []
        lost: list[str] = []
        with self.check._looking():
            for possession in self.all:
                if possession.of_pass in kinds and possession.is_changed():
                    changed.append(possession.label)
                    lost += [] if possession.put_back() else [changed[-1]]
        if not changed:
            return ""
        text = f"it may not change {_some(changed)}"
        return f"{text}; {_some(lost)} could not be put back" if lost else text


def _some(labels: list[str]) -> str:
    shown = list(dict.fromkeys(labels))
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return f"{', '.join(shown[:SHOWN])}{more}"
