"""Evaluation: the validation loss, quantized and with the same weights unquantized."""

from __future__ import annotations

import torch

from altcore.engine.state import Run


def validation_losses(run: Run) -> dict[str, float]:
    """Return ``val_loss`` and ``val_loss_float32``, in the workload's unit, under a probe.

    The second is the float32 forward of the same weights; the difference is the cost of the
    products' precision.
    """
    with run.probe(), torch.no_grad(), run.autocast():
        run.model.eval()
        quantized = plain = _mean_loss(run)
        if run.quantization.layers or run.config.compute != "float32":
            with run.quantization.off(), torch.autocast(run.device.type, enabled=False):
                plain = _mean_loss(run)
    return {"val_loss": quantized, "val_loss_float32": plain}


def _mean_loss(run: Run) -> float:
    """Return the mean over ``eval_steps`` batches, the same ones at every evaluation."""
    batches = (run.workload.batch("val", i, 0) for i in range(run.config.eval_steps))
    losses = [run.workload.loss(run.model, batch) for batch in batches]
    return float(torch.stack(losses).double().mean())
