"""Carrying out actions: what the engine does when a verdict is given."""

from __future__ import annotations

from typing import Any

from altcore.engine.state import Run, restore_snapshot
from altcore.errors import AltcoreError, BadInput, PluginError
from altcore.hooks import (
    KEEP,
    Action,
    ChangeRecipe,
    Proposal,
    Rollback,
    ScaleLearningRate,
    Verdict,
    describe_action,
)
from altcore.recipes import change


def carry_out(run: Run, verdict: Verdict) -> bool:
    """Carry out what was chosen; returns whether the state or its formats were changed.

    Stop and SkipStep are the loop's own business and change nothing here.
    """
    changed = False
    for proposal in verdict.chosen:
        try:
            changed |= _carry_out(run, proposal.action, proposal)
        except AltcoreError as error:
            if type(error) not in (AltcoreError, BadInput):
                raise
            what = type(proposal.action).__name__
            raise PluginError(f"{what} by {proposal.plugin} cannot be done: {error}") from error
    return changed


def _carry_out(run: Run, action: Action, by: Proposal) -> bool:
    if isinstance(action, ChangeRecipe):
        change_recipe(run, action, by.plugin)
        return action.format != KEEP
    if isinstance(action, ScaleLearningRate):
        run.lr_scale *= action.factor
        return False
    if isinstance(action, Rollback):
        taken_at = restore_snapshot(run, action.steps)
        run.emit("rollback", plugin=by.plugin, to=taken_at, reason=action.reason)
        if action.then is not None:
            _carry_out(run, action.then, by)
        return True
    return False


def change_recipe(run: Run, action: ChangeRecipe, plugin: str) -> None:
    """Change the recipe from the next step on, and record the error that re-encoding made."""
    parts: dict[str, Any] = {
        part: value
        for part in ("format", "scaling", "rounding")
        if (value := getattr(action, part)) != KEEP
    }
    before = formats_in(run)
    errors = run.quantization.change(
        change(run.quantization.plan, action.layers, action.roles, **parts)
    )
    shift = {
        "step": run.step,
        "plugin": plugin,
        "from": before,
        "to": formats_in(run),
        "reason": action.reason,
    }
    compute = run.quantization.compute
    run.emit(
        "recipe", **shift, change=describe_action(action), compute=compute, stored_error=errors
    )
    if "format" in parts:
        run.shifts.append(shift)


def formats_in(run: Run) -> list[str]:
    """Return the names of the formats that the current plan uses, sorted."""
    casts = [c for layer in run.quantization.plan.values() for c in layer.values() if c]
    return sorted({c.format.name for c in casts})
