"""The intervention ``skip-nonfinite``: skips steps that are not finite, and does not count them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field
from attrs.validators import ge

from altcore.plugin import SkipStep, hookimpl, setting
from altcore_interventions.nonfinite import Streak

if TYPE_CHECKING:
    from altcore.plugin import NonFinite, Step


@attrs.define(eq=False)
class SkipNonfinite:
    """Skip a step that is not finite without counting it towards the run's ``nan_patience``.

    The engine discards such a step anyway, and ends the run after ``nan_patience`` in a row. This
    plugin lets the run wait until the trouble has passed, for at most ``most_consecutive`` steps
    in a row; the next one it leaves to the engine, which begins to count. It cures nothing: where
    the weights themselves are not finite no step will be, and ``rollback`` is what helps.
    """

    most_consecutive: int = setting(
        100, help="non-finite steps in a row that are skipped uncounted", validator=ge(1)
    )
    nonfinite: Streak = field(init=False, factory=Streak)

    @hookimpl
    def on_nan(self, step: Step, where: NonFinite) -> SkipStep | None:
        """Skip the step while there are not too many of them."""
        count = self.nonfinite.add(step)
        if count > self.most_consecutive:
            return None
        return SkipStep(
            counts=False,
            reason=f"{where}; skipped uncounted ({count} of {self.most_consecutive} in a row)",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the count, as plain data."""
        return attrs.asdict(self.nonfinite)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.nonfinite = Streak(**state)
