"""The hooks that a plugin may implement, as pluggy specifications.

`altcore.engine.loop` writes out when each is called. A plugin is an attrs class made with
``@define(eq=False)`` whose methods are marked with ``@hookimpl``; it may leave out arguments
that it does not need. Hooks run interventions first, then diagnostics, then reporters, and
within a kind in the order in which the user lists them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import pluggy

from altcore.hooks.actions import Action
from altcore.hooks.nonfinite import NonFinite

Measures: TypeAlias = Mapping[str, Any]
Finding: TypeAlias = str | Mapping[str, str | int | float | None]
Run: TypeAlias = Any
"""`altcore.engine.Run`: the engine lies above its contract, which cannot name its types."""
Step: TypeAlias = Any
"""`altcore.engine.Step`, likewise."""

hookspec = pluggy.HookspecMarker("altcore")
hookimpl = pluggy.HookimplMarker("altcore")

ACTING = ("pre_backward", "pre_step", "on_nan", "on_collapse")
"""Hooks that may return an Action, or several in a list, from interventions."""
MEASURING = ("post_backward", "post_step")
"""Hooks that may return measures: plain names to scalars or short 1-D tensors."""
WATCHING = ("watch_forward", "watch_backward")
"""Hooks that return a context manager, which is entered around a pass of the model."""
OBSERVING = ("findings",)
"""Hooks of those who only look: an intervention that has one is refused."""
OBSERVING_ARGUMENTS = ("timings",)
"""Arguments that interventions may not take: what they decide must not depend on the clock."""
BEFORE_OPTIMIZER = (*WATCHING, "pre_backward", "post_backward", "pre_step")
"""Hooks that are called between a step's beginning and its host read."""
ON_DUE_STEPS = (*BEFORE_OPTIMIZER, "post_step")
"""Hooks that are called only on steps on which the plugin is due."""

NEEDS = {
    "weights_before": "parameters before the optimizer's step, by name",
    "weights_proposed": "parameters after the optimizer, before the grid of stored formats",
    "gradients": "raw gradients, unscaled and before any clipping, by parameter name",
    "gradients_final": "gradients as the optimizer gets them, by parameter name",
    "activations": "inputs of the quantized layers in the last micro-batch, by layer name",
    "output_gradients": "gradients of those layers' outputs, by layer name",
    "errors": "sums of the quantizers' squared errors, in run.quantization.counters.errors",
    "snapshots": "recent states of the run in memory, for Rollback",
}
"""Captures that a plugin may ask for in ``needs``: made once, only on steps on which it is due."""


@hookspec
def run_start(run: Run) -> None:
    """Everything is built; the first step has not begun."""


@hookspec
def is_due(run: Run, step: Step) -> bool:
    """Say whether the plugin has anything to do in a step; asked once, as the step begins.

    Takes the place of the setting ``interval``. Only ``step.index`` is known. On a step that is
    not due the plugin costs nothing: the hooks of `ON_DUE_STEPS` are not called, and its ``needs``
    are not captured.
    """
    return True


@hookspec
def watch_backward(run: Run, step: Step) -> AbstractContextManager[Any] | None:
    """Return a context that is entered before a micro-batch's forward pass, left after backward.

    The place for whatever acts in the backward pass: backward hooks of modules, which torch
    prepares in the forward pass, hooks of parameters, and dispatch modes. A forward hook belongs
    in `watch_forward`: activation checkpointing runs parts of the forward pass again in backward.
    """


@hookspec
def watch_forward(run: Run, step: Step) -> AbstractContextManager[Any] | None:
    """Return a context that is entered around the forward pass of a micro-batch.

    The place for modules' forward hooks, removed at its end. Evaluations and probes are not
    watched.
    """


@hookspec
def pre_backward(run: Run, step: Step) -> Action | None:
    """The loss of a micro-batch is computed. May change ``step.loss`` and ``step.loss_scale``.

    Called once a micro-batch. Interventions may return an Action.
    """


@hookspec
def post_backward(run: Run, step: Step) -> Measures | None:
    """The raw gradients of all micro-batches are there, unscaled. May change nothing.

    Returns measures or None; they stay on the device until the step is recorded.
    """


@hookspec
def pre_step(run: Run, step: Step) -> Action | None:
    """The optimizer comes next: here clippers change gradients in place.

    The engine's own ``grad_clip`` follows. Interventions may return an Action.
    """


@hookspec
def post_step(run: Run, step: Step) -> Measures | None:
    """Weights are updated and, if their format is stored, on their grids.

    Not called for a discarded step. Returns measures or None.
    """


@hookspec
def on_nan(run: Run, step: Step, where: NonFinite) -> Action | None:
    """Something is not finite, and the optimizer has not touched a weight yet.

    ``where`` says what was non-finite first. With no Action the step is discarded.
    """


@hookspec
def on_collapse(run: Run, step: Step, evidence: Mapping[str, Any]) -> Action | None:
    """The detector says that training no longer learns; once per cause until it clears.

    ``evidence`` holds ``cause``, ``reason`` and the numbers they rest on. With no Action the run
    stops if NaN patience is spent; any other collapse is recorded, and the run goes on.
    """


@hookspec
def on_record(
    run: Run, step: Step, metrics: Mapping[str, Any], timings: Mapping[str, float]
) -> None:
    """A line was written to metrics.jsonl; ``metrics`` is exactly that line, as host numbers.

    ``timings`` holds the step's ``step_time_ms`` and ``items_per_second``, without evaluation and
    checkpoint, and ``training_steps``, ``training_seconds`` and ``training_items``: the same of all
    steps so far, recorded or not. Interventions cannot take it.

    The line of a step is complete, its post-step measures included, at the next host read: it
    comes during the following step, or at once if the engine waits anyway (evaluation,
    checkpoint, collapse, the end). ``metrics["step"]`` says which step it belongs to.
    Interventions get it as the second step after it begins, whatever the engine waits for, so
    that what they decide depends on no interval of checkpoints and on no resume. So those of the
    last two steps reach them only if the run goes on. They are not told of lines that only a
    diagnostic or reporter gave rise to.
    """


@hookspec
def on_event(run: Run, event: Mapping[str, Any]) -> None:
    """A line was written to events.jsonl; ``event`` is exactly that line.

    Interventions are told of what a step met and what was done about it: ``nan``, ``collapse``,
    ``verdict``, ``recipe`` and ``rollback``. All other events depend on intervals of checkpoints,
    on resumes and on who looks on.
    """


@hookspec
def on_eval(run: Run, step: Step, metrics: Mapping[str, Any]) -> None:
    """An evaluation is done; ``metrics`` is its line in metrics.jsonl: losses and measures.

    Interventions are not told of one that is made only because the run is over.
    """


@hookspec
def findings(run: Run, history: Sequence[Mapping[str, Any]]) -> Sequence[Finding] | None:
    """Say what the plugin found over the run, for the summary; called once, at the end.

    ``history`` holds the plugin's own measures, by their names without the plugin's, and the
    ``step``, of each step on which it measured; earlier sessions of a resumed run are included.
    Not called for a plugin that measured nothing. Interventions cannot have this hook.

    Returns a few findings: each is a line of text, or a row of a table, by column. See
    `altcore.plugin.early_and_late` for a row.
    """


@hookspec
def run_end(run: Run, summary: Mapping[str, Any]) -> None:
    """The run is over: always called, after errors and interrupts too."""


HOOKS = (
    "run_start",
    "is_due",
    "watch_backward",
    "watch_forward",
    "pre_backward",
    "post_backward",
    "pre_step",
    "post_step",
    "on_nan",
    "on_collapse",
    "on_record",
    "on_event",
    "on_eval",
    "findings",
    "run_end",
)
"""All hooks, in the order of the step."""

DECISIONS = ("nan", "collapse", "verdict", "recipe", "rollback")
"""The events that interventions are told of."""

HOOKSPECS = sys.modules[__name__]
"""This module, off which pluggy reads the specifications."""
