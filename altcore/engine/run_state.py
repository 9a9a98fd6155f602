"""All that the rest of a run depends on, as checkpoints hold it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, define, field

from altcore.engine.as_built import AsBuilt, UnsavedBuffers
from altcore.engine.collapse import Detector
from altcore.engine.dispatch import Dispatcher
from altcore.engine.gradients import GradientNorms
from altcore.engine.history import RunHistory
from altcore.engine.labels import MODEL, OPTIMIZER, parameter_names
from altcore.engine.model_state import put_model, set_flags
from altcore.engine.modes import Modes
from altcore.engine.optimizer_checks import layout_of
from altcore.engine.optimizer_loading import load_optimizer
from altcore.engine.randomness import random_state, set_random_state
from altcore.engine.ranks import Ranks
from altcore.engine.shared_memory import shared_in
from altcore.engine.snapshots import Snapshot
from altcore.engine.state import Run
from altcore.engine.state_tensors import left_on_cpu, placed_states
from altcore.engine.step_record import StepRecord


@define(eq=False)
class RunState:
    """Gathers and restores the state of a run: tensors and plain data."""

    run: Run
    dispatch: Dispatcher
    detector: Detector
    history: RunHistory
    record: StepRecord
    gradients: GradientNorms
    ranks: Ranks
    built: AsBuilt = field(init=False)
    """The model and the optimizer as a resume builds them."""
    buffers: UnsavedBuffers = field(init=False)
    modes: Modes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.buffers = UnsavedBuffers.of(self.run.model)
        self.modes = Modes(self.run.model, self.run.quantization)
        self.built = AsBuilt({MODEL: self.run.model}, {OPTIMIZER: self.run.optimizer})

    def state_dict(self) -> dict[str, Any]:
        """Return the state, but for the snapshots."""
        run = self.run
        self.ranks.check_replicas(run.model)
        plugins = self.dispatch.state_dict(run)
        own = {
            "plugins": plugins,
            "left_on_cpu": left_on_cpu(plugins, run.device),
            "held_records": self.record.held,
            "random": random_state(run.device),
        }
        ranks, errors = zip(*self.ranks.gather((own, self.dispatch.boundary.errors)), strict=True)
        self.dispatch.disable_broken(run, errors)
        optimizer, weights = run.optimizer.state_dict(), run.model.state_dict()
        names, built = parameter_names({MODEL: run.model}), self.built.of(run.model)
        return {
            "step": run.step,
            "model": weights,
            "buffers": self.buffers.changed(weights),
            "buffer_forms": built.forms(weights),
            "shared": shared_in({MODEL: run.model}),
            "requires_grad": built.flags(),
            "in_evaluation": self.modes.frozen,
            "optimizer": optimizer,
            "optimizer_layout": layout_of(optimizer, run.optimizer, names),
            "quantization": run.quantization.state_dict(),
            "ranks": list(ranks),
            "degraded": list(run.degraded),
            "detector": self.detector.state_dict(),
            "dead_steps": self.gradients.dead_steps,
            "lr_scale": run.lr_scale,
            "shifts": run.shifts,
            "reports": run.reports,
            "history": asdict(self.history),
        }

    def load_state_dict(
        self, state: Mapping[str, Any], snapshots: Sequence[Mapping[str, Any]]
    ) -> None:
        """Restore what `state_dict` returned; the next step is the one after."""
        run = self.run
        run.step = state["step"]
        put_model(run.model, run.quantization, state)
        set_flags(run.model, state["requires_grad"])
        self.modes.put_back(state["in_evaluation"])
        load_optimizer(run.optimizer, state["optimizer"])
        run.degraded[:] = state["degraded"]
        known = state["ranks"][run.rank : run.rank + 1]  # nothing if there are more ranks now
        plugins = {}
        for own in known:
            plugins = placed_states(own["plugins"], own["left_on_cpu"], run.device)
        self.dispatch.load_state_dict(run, plugins)
        for own in known:
            self.record.held = own["held_records"]
            set_random_state(own["random"], run.device)
        self.detector.load_state_dict(state["detector"])
        self.gradients.dead_steps = state["dead_steps"].to(run.device)
        run.lr_scale = state["lr_scale"]
        run.shifts[:], run.reports[:] = state["shifts"], state["reports"]
        run.snapshots = deque(Snapshot(**snapshot) for snapshot in snapshots)
        self.history.restore(state["history"])
