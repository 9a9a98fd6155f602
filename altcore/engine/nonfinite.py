"""Finding the first value that was not finite. Reads the device freely, since it runs only then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import evolve

from altcore.engine.finite import first_nonfinite
from altcore.engine.state import Run, Step
from altcore.hooks import NonFinite

SHARED = ("weights", "buffer")
"""What all ranks have alike."""


def locate_nonfinite(run: Run, step: Step, host: Mapping[str, Any]) -> NonFinite:
    """Return the first thing that was not finite, in the order in which a step computes.

    ``host`` holds the step's read: bad_state, loss, grad_norm, final_norm, loss_scale and
    bad_ranks, by `Ranks.agree`.
    """
    by = ", ".join(dict.fromkeys(step._scaled_by)) or None
    found = _first(run, host)
    is_of_rank = run.world_size > 1 and host["bad_ranks"] and found.what not in SHARED
    rank = run.world_size - int(host["bad_ranks"]) if is_of_rank else None
    return evolve(found, loss_scale=float(host["loss_scale"]), scaled_by=by, rank=rank)


def _first(run: Run, host: Mapping[str, Any]) -> NonFinite:
    bad: NonFinite | None = host["bad_state"]
    if bad is not None and bad.arose is not None:
        return bad
    met = [
        (row["layer"], row["operand"])
        for row in run.quantization.stats()
        if row.get("nonfinite", 0) > 0
    ]
    forward = [m for m in met if not m[1].startswith(("gradient", "weight_gradient"))]
    if not math.isfinite(host["loss"]):  # what the backward pass met follows from it
        return NonFinite("loss", *(forward or [(None, None)])[0], value=host["loss"])
    # The backward pass meets the layers in the reverse of the order in which they are listed.
    first = (forward or met[::-1] or [(None, None)])[0]
    if not math.isfinite(host["grad_norm"]):
        return _gradient(run, "gradient", host["grad_norm"], first)
    if not math.isfinite(host["final_norm"]):
        return _gradient(run, "final gradient", host["final_norm"], (None, None))
    if bad is not None:
        return bad
    return NonFinite("quantizer", *first)


def _gradient(run: Run, what: str, norm: float, met: tuple[str | None, str | None]) -> NonFinite:
    named = [(n, p.grad) for n, p in run.model.named_parameters() if p.grad is not None]
    for name, gradient in reversed(named):
        if (bad := first_nonfinite(gradient)) is not None:
            return NonFinite(what, name, met[1], value=bad)
    # Every element is finite and the norm is not: float32 cannot hold the sum of squares, of which
    # the largest gradient makes the most.
    largest = max(named, key=lambda item: float(item[1].double().norm()))
    return NonFinite(what, largest[0], None, value=norm)


def layer_evidence(run: Run) -> dict[str, Any]:
    """Return the evidence by layer for a collapse: quantizers, stored weights and gradients."""
    gradients = {
        name: {
            "zero_share": float((p.grad == 0).double().mean()),
            "norm": float(p.grad.double().norm()),
        }
        for name, p in run.model.named_parameters()
        if p.grad is not None
    }
    rows = run.quantization.stats()
    for row in rows:
        cast = run.quantization.plan[row["layer"]].get(row["operand"])
        if row["operand"] == "stored_weight" and cast is not None:
            row["rounding"] = cast.rounding
    return {"layers": rows, "gradients": gradients}
