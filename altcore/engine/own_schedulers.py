"""The learning-rate schedulers of a loop's optimizers that no checkpoint has."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Set
from itertools import chain
from weakref import ref

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from altcore.engine.hidden_state import reached
from altcore.engine.own_loop import OwnLoop


class SchedulerWatch:
    """Finds schedulers, by identity: to look through all objects takes a tenth of a second.

    A scheduler holds its optimizer, so there is no new one while as many hold that as before.
    """

    def __init__(self) -> None:
        self._holders: list[int] = []
        self._found: list[ref[LRScheduler]] = []

    def unkept(self, loop: OwnLoop) -> list[str]:
        """Name the schedulers of the optimizers of a loop that it does not keep."""
        kept = reached(x for x in loop.also.values() if not isinstance(x, Optimizer))
        parts = chain([loop.optimizer], loop.also.values(), kept.values())
        optimizers = {id(x): x for x in parts if isinstance(x, Optimizer)}
        schedulers = self._of(optimizers)
        unkept = [x for x in schedulers if id(x) not in kept]
        within = reached(part for x in unkept for part in vars(x).values())
        named = [type(x).__name__ for x in unkept if id(x) not in within]
        known = {id(x.optimizer) for x in schedulers} | kept.keys()
        named += ["initial_lr" for x in optimizers.values() if _is_planned(x, known)]
        return [f"a learning-rate scheduler ({name})" for name in sorted({*named})]

    def _of(self, optimizers: Mapping[int, Optimizer]) -> list[LRScheduler]:
        holders = [sys.getrefcount(x) for x in optimizers.values()]
        if holders != self._holders or None in [known() for known in self._found]:
            alive = (x for x in gc.get_objects() if issubclass(type(x), LRScheduler))
            of_these = [x for x in alive if id(getattr(x, "optimizer", None)) in optimizers]
            self._holders, self._found = holders, [ref(x) for x in of_these]
        return [made for known in self._found if (made := known()) is not None]


def _is_planned(optimizer: Optimizer, known: Set[int]) -> bool:
    """Whether a scheduler was at an optimizer that is not ``known`` to have one."""
    is_known = any(id(x) in known for x in (optimizer, *optimizer.param_groups))
    return not is_known and any("initial_lr" in group for group in optimizer.param_groups)
