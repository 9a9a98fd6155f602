"""What `run_start` does again in a run that goes on, of which the checkpoint has the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from altcore.engine.labels import MODEL
from altcore.engine.model_state import flags_of, put_model, set_flags
from altcore.engine.optimizer_loading import load_optimizer
from altcore.engine.run_state import RunState
from altcore.engine.shared_memory import shared_in
from altcore.engine.snapshots import copied


@contextmanager
def as_restored(state: RunState) -> Iterator[None]:
    """Let model, optimizer and quantization be afterwards as they are now.

    They wait in the memory of the CPU. What is new, as a buffer, stays.
    """
    model, optimizer, q = state.run.model, state.run.optimizer, state.run.quantization
    weights, moments = copied(model.state_dict(), "cpu"), copied(optimizer.state_dict(), "cpu")
    buffers = copied(state.buffers.changed(weights), "cpu")
    scales, flags = q.state_dict(), flags_of(model)
    shared = shared_in({MODEL: model})
    yield
    state.built.check()
    weights = {**model.state_dict(), **weights}
    kept = {"model": weights, "buffers": buffers, "shared": shared, "quantization": scales}
    put_model(model, q, kept)
    set_flags(model, flags)
    load_optimizer(optimizer, moments)
