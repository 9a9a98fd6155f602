"""The stall rate by which a run is judged: only updates that are lost for good count."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from altcore.quantization import Quantization

STOCHASTIC = "stochastic"
"""Under this rounding stall is expected: an update smaller than the grid's interval moves a weight
with a matching probability, so the mean is right."""


def lost_stall_rate(q: Quantization) -> dict[str, Tensor]:
    """Return the stall rate of the stored weights that are not rounded stochastically.

    It is called ``lost_stall_rate``, and is empty unless some are and some are not: otherwise the
    rate of all says it.
    """
    kept = [i for i, w in enumerate(q.stored.values()) if w.cast.rounding != STOCHASTIC]
    if q.counters.stored_moves is None or not 0 < len(kept) < len(q.stored):
        return {}
    updates, stalled = q.counters.stored_moves[kept].sum(0)[:2]
    return {"lost_stall_rate": stalled.double() / updates.clamp(min=1)}


def judged_stall(rates: Mapping[str, float | None], q: Quantization) -> tuple[str, float] | None:
    """Return whose stall counts (``stored`` or ``view``) and its rate; None if none does.

    ``rates`` are those of the last recorded update. A run with stored weights is judged by them,
    any other by its views.
    """
    if rates.get("stored") is None:
        view = rates.get("view")
        return None if view is None else ("view", view)
    roundings = {w.cast.rounding for w in q.stored.values()}
    if roundings == {STOCHASTIC}:
        return None
    rate = rates.get("lost" if STOCHASTIC in roundings else "stored")
    return None if rate is None else ("stored", rate)
