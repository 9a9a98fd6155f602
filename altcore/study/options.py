"""The options that both studies have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from altcore.builtin_types import digits
from altcore.config import Override, check_name
from altcore.engine import world_size
from altcore.errors import BadInput
from altcore.study.own import Own
from altcore.study.rates import checked
from altcore.study.sequential import Schedule, looks, once

STUDIES = "studies"
"""The folder of all studies, unless another is given."""


@frozen
class Options:
    """The options of a study."""

    file: str | None
    overrides: Sequence[Override]
    seeds: int = 5
    within: float = 0.05
    budget: float | None = None
    name: str | None = None
    tell: Callable[[str], None] = field(default=print)
    folder: Path = field(default=Path(STUDIES), converter=Path)
    doing: Callable[[str], None] = field(default=lambda _: None)
    """Takes what is being done, which nobody needs to read later."""
    executor: str = "local"
    """Where runs are made, as `altcore sweep run` takes it."""
    rates: Sequence[float] | None = field(default=None, converter=checked)
    """Factors of the learning rate that are tried as they are; by default they are searched for."""
    all_seeds: bool = False
    """Whether no arm stops before its last seed."""
    own: Own = field(factory=Own)
    """A model, data and a loss of the caller's own."""
    null: bool = True
    """Whether the null arm runs, which says what can be detected."""

    def __attrs_post_init__(self) -> None:
        if world_size() > 1:
            raise BadInput(
                f"{world_size()} processes were started, and a study makes its runs in one",
                hint="start it without torchrun",
            )
        if self.seeds < 2:
            raise _refused("seeds", self.seeds, "an interval needs at least two")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise _refused("budget", self.budget, "minutes above 0 are needed")
        if not 0 <= self.within < math.inf:
            raise _refused("within", self.within, "a distance is a number from 0 up")
        if self.name is not None:
            check_name(self.name, "--name")
        if self.own.names and self.executor != "local":
            raise BadInput(
                f"a study of your own {', '.join(self.own.names)} makes its runs in this process",
                key="executor",
                part=self.executor,
                hint="leave it out",
            )

    @property
    def schedule(self) -> Schedule:
        """After how many seeds an arm may stop."""
        return once if self.all_seeds else looks

    @property
    def shares(self) -> Mapping[int, float]:
        """The numbers of seeds at which the study looks, and the share of the error of each."""
        return self.schedule(self.seeds)


def _refused(option: str, value: float, problem: str) -> BadInput:
    return BadInput(problem, key=f"--{option}", part=digits(value))
