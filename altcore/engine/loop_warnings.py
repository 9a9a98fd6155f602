"""What a loop of your own is warned of when it saves: what its checkpoint has not, and values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import define

from altcore.engine.global_hooks import about_global_hooks
from altcore.engine.hidden_state import warn_of_hidden
from altcore.log import log


@define
class LoopWarnings:
    """Warns of the same once, as long as it stays so."""

    _hidden: Sequence[str] = ()
    _around: Sequence[str] = ()
    _is_value_told: bool = False

    def tell(self, hidden: Sequence[str]) -> None:
        """Warn of the ``hidden`` state, and of hooks and modes of the whole process."""
        if self._hidden != hidden:
            warn_of_hidden(hidden)
        around = about_global_hooks("the checkpoint")
        if self._around != around:
            for line in around:
                log.warning(line)
        self._hidden, self._around = hidden, around

    def finite(self, value: float | None, step: int) -> float | None:
        """Return a value by which checkpoints are compared; None, with a warning, if not finite."""
        if value is None or math.isfinite(value):
            return value
        if not self._is_value_told:
            log.warning(f"value is {value}, by which no checkpoint is the best one", step=step)
        self._is_value_told = True
        return None
