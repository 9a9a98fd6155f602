"""Carrying out the actions of a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altcore.engine.state import Run
from altcore.errors import AltcoreError, BadInput, PluginError
from altcore.formats import AnyFormat
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
from altcore.recipes import ResolvedRecipe, change, formats_in, has_overflow, some


def carry_out(run: Run, verdict: Verdict) -> bool:
    """Carry out the chosen actions; returns whether they changed the state or its formats.

    Stop and SkipStep are left to the loop, and change nothing here.
    """
    changed = False
    for proposal in verdict.chosen:
        try:
            changed |= _carry_out(run, proposal.action, proposal)
        except AltcoreError as error:
            if type(error) not in (AltcoreError, BadInput):
                raise
            action = type(proposal.action).__name__
            raise PluginError(f"{action} by {proposal.plugin} cannot be done: {error}") from error
    return changed


def emit_verdict(run: Run, verdict: Verdict, cause: str | None) -> None:
    """Write the chosen and the refused proposals to the events; ``cause`` is that of a collapse."""
    run.emit(
        "verdict",
        cause=cause,
        chosen=[{"plugin": p.plugin, **describe_action(p.action)} for p in verdict.chosen],
        refused=[
            {"plugin": r.proposal.plugin, **describe_action(r.proposal.action), "why": r.why}
            for r in verdict.refused
        ],
        outcome=_outcome(verdict, cause),
    )


def stop_of(verdict: Verdict, step: int) -> dict[str, Any]:
    """Return who stopped the run, when and why."""
    by = ", ".join(p.plugin for p in verdict.chosen)
    reason = "; ".join(p.action.reason for p in verdict.chosen)
    return {"step": step, "plugin": by, "reason": reason or f"{by} stopped the run"}


def _outcome(verdict: Verdict, cause: str | None) -> str:
    if verdict.kind is not None:
        by = ", ".join(p.plugin for p in verdict.chosen)
        return f"{verdict.kind.__name__} by {by}"
    return "the run stops" if cause == "nan_patience" else "recorded; the run goes on"


def _carry_out(run: Run, action: Action, by: Proposal) -> bool:
    if isinstance(action, ChangeRecipe):
        return change_recipe(run, action, by.plugin)
    if isinstance(action, ScaleLearningRate):
        run.lr_scale *= action.factor
        return False
    if isinstance(action, Rollback):
        plan = run.quantization.plan
        taken_at = roll_back(run, action.steps)
        run.emit("rollback", plugin=by.plugin, to=taken_at, reason=action.reason)
        if run.quantization.plan != plan:
            reason = f"back to the recipe of step {taken_at}"
            _note_change(run, action, by.plugin, plan, reason, {})
        if action.then is not None:
            _carry_out(run, action.then, by)
        return True
    return False


def roll_back(run: Run, steps: int) -> int:
    """Restore the newest snapshot verified finite that is at least ``steps`` old.

    Returns:
        The step after which it was taken.

    Raises:
        AltcoreError: if there is no such snapshot.
    """
    for snapshot in reversed(run.snapshots):
        if snapshot.step <= run.step - steps and snapshot.is_finite():
            snapshot.restore(run.optimizer, run.quantization)
            while run.snapshots[-1].step > snapshot.step:
                run.snapshots.pop()
            return snapshot.step
    kept = ", ".join(str(s.step) for s in run.snapshots) or "none (a plugin must need 'snapshots')"
    raise AltcoreError(
        f"no finite snapshot is at least {steps} steps old at step {run.step}: kept are {kept}"
    )


def change_recipe(run: Run, action: ChangeRecipe, plugin: str) -> bool:
    """Change the recipe from the next step on, and record the error that re-encoding made.

    Returns whether any format is another one now.
    """
    parts: dict[str, Any] = {
        part: value
        for part in ("format", "scaling", "rounding")
        if (value := getattr(action, part)) != KEEP
    }
    plan = run.quantization.plan
    errors = run.quantization.change(
        change(run.quantization.plan, action.layers, action.roles, **parts)
    )
    _tell_saturation(run, plan)
    return _note_change(run, action, plugin, plan, action.reason, errors)


def _tell_saturation(run: Run, before: ResolvedRecipe) -> None:
    """Warn of operands that saturate since their new format lacks the code of an overflow."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, casts in run.quantization.plan.items():
        for operand, cast in casts.items():
            was = before[name][operand]
            if was and cast and not has_overflow(cast.format, was.overflow):
                found.setdefault((was.overflow, cast.format.name), []).append(f"{name}:{operand}")
    for (rule, fmt), places in found.items():
        which = f"{some(places, 4)} saturate from now on"
        message = f"{fmt} has no code for the overflow rule {rule!r}: {which}"
        run.emit("warning", message=message)


def _note_change(
    run: Run,
    action: Action,
    plugin: str,
    plan: ResolvedRecipe,
    reason: str,
    errors: Mapping[str, float],
) -> bool:
    """Record that another recipe follows the one of ``plan``, from the next step on.

    Returns whether any format is another one.
    """
    now = names_of_formats(run)
    shift = {"plugin": plugin, "from": _names(plan), "to": now, "reason": reason}
    compute = run.quantization.compute
    run.emit(
        "recipe", **shift, change=describe_action(action), compute=compute, stored_error=errors
    )
    is_shift = _formats(run.quantization.plan) != _formats(plan)
    if is_shift:
        run.shifts.append({"step": run.step, **shift})
    return is_shift


def _formats(plan: ResolvedRecipe) -> dict[str, dict[str, AnyFormat | None]]:
    return {
        name: {operand: cast.format if cast else None for operand, cast in casts.items()}
        for name, casts in plan.items()
    }


def take_recipe(run: Run, by: str) -> dict[str, Any]:
    """Take the configuration's own recipe and format from the next step on.

    Returns the data of the event ``recipe``.
    """
    before, q = names_of_formats(run), run.quantization
    errors = q.change_recipe(run.config.make_recipe())
    shift = {"plugin": by, "from": before, "to": names_of_formats(run)}
    shift["reason"] = "changed when the run went on"
    run.shifts.append({"step": run.step, **shift})
    return {**shift, "compute": q.compute, "stored_error": errors}


def names_of_formats(run: Run) -> list[str]:
    """Return the names of the formats that the current plan uses, sorted."""
    return _names(run.quantization.plan)


def _names(plan: ResolvedRecipe) -> list[str]:
    return sorted({fmt.name for fmt in formats_in(plan)})
