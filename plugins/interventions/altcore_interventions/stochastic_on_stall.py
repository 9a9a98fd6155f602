"""The intervention ``stochastic-on-stall``: lets small updates of stored weights through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import and_, ge, le

from altcore.plugin import ChangeRecipe, hookimpl, setting
from altcore_interventions.stall_threshold import warn_of_threshold

if TYPE_CHECKING:
    from altcore.plugin import Run


@attrs.define(eq=False)
class StochasticOnStall:
    """Round stored weights stochastically once their updates stall and the loss stands still.

    Under rounding to nearest an update smaller than half a grid step is lost each time. Rounded
    stochastically it moves the weight with the probability that it is of a step, so that the
    mean is right (Gupta et al., arXiv:1502.02551). It acts on a collapse called ``stalled``, as
    the detector judges it (after warm-up, over a window, with neither the loss nor validation
    better), whose stall rate is above ``stall_threshold``; once, and for all stored weights:
    format and scaling stay as they are, and so do products.
    """

    stall_threshold: float = setting(
        0.5,
        help="stall rate of a collapse above which rounding becomes stochastic",
        validator=and_(ge(0.0), le(1.0)),
    )
    name: str = attrs.field(init=False, default="stochastic-on-stall")
    has_acted: bool = attrs.field(init=False, default=False)

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Say so if no weight is stored on a grid by rounding to nearest."""
        warn_of_threshold(run, self.name, self.stall_threshold)
        if not self.has_acted and not self._layers(run):
            run.emit(
                "warning",
                message=f"{self.name} will change nothing: no stored weight is rounded "
                "in another way than stochastically",
            )

    @hookimpl
    def on_collapse(self, run: Run, evidence: Mapping[str, Any]) -> ChangeRecipe | None:
        """Change the rounding of stored weights when they stalled."""
        rate, layers = evidence.get("rate"), self._layers(run)
        is_stall = evidence["cause"] == "stalled" and rate is not None
        if not is_stall or rate <= self.stall_threshold or not layers:
            return None
        return ChangeRecipe(
            layers=layers,
            roles=("stored_weight",),
            rounding="stochastic",
            reason=f"{rate:.1%} of the updates of stored weights stalled (threshold "
            f"{self.stall_threshold:g}): they are rounded stochastically from now on",
        )

    @hookimpl
    def on_event(self, event: Mapping[str, Any]) -> None:
        """Keep that the change was carried out."""
        self.has_acted |= event["event"] == "recipe" and event["plugin"] == self.name

    def state_dict(self) -> dict[str, Any]:
        """Return whether it has acted: in a run that goes on then, nothing is left to change."""
        return {"has_acted": self.has_acted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.has_acted = state["has_acted"]

    def _layers(self, run: Run) -> tuple[str, ...]:
        """The layers whose stored weight can still change."""
        stored = ((name, casts["stored_weight"]) for name, casts in run.quantization.plan.items())
        return tuple(name for name, cast in stored if cast and cast.rounding != "stochastic")
