"""The stall rate above which an intervention acts on a collapse called ``stalled``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from altcore.plugin import Run


def warn_of_threshold(run: Run, plugin: str, own: float) -> None:
    """Warn of a threshold that is not the run's, at which a stall is told, and only once."""
    told = run.config.bit_stall_threshold
    if own == told:
        return
    if own > told:
        why = "may never be reached: a stall is told once, as its rate passes"
    else:
        why = "lets it act no sooner: no stall is told up to"
    message = f"{plugin}: stall_threshold {own:g} {why} bit_stall_threshold {told:g}"
    run.emit("warning", message=message)
