"""Evaluation: loss and measures of the validation split, quantized and not; what is best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from altcore.config import TrainConfig, as_cost
from altcore.engine.losses import (
    check_same_measures,
    loss_and_measures,
    mean_over_items,
    who_is,
)
from altcore.engine.named_errors import naming
from altcore.engine.probe import probing
from altcore.engine.ranks import Ranks
from altcore.engine.state import Run, Step, Workload
from altcore.errors import BadInput, nearest
from altcore.quantization import Quantization

LOSSES = ("val_loss", "val_loss_float32")


def evaluate(run: Run, ranks: Ranks, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Return loss and measures of the validation split, under a probe.

    ``val_loss_float32`` is of the float32 forward of the same weights; its difference to
    ``val_loss`` is the cost of the products' precision. ``val_loss_error`` is the standard error of
    ``val_loss`` over the batches, None of a single one. ``val_items`` items were looked at, which
    are the whole split if ``val_is_whole``; otherwise ``eval_steps`` batches were drawn, the same
    ones at every evaluation. Ranks take turns at the batches, and find what one process does.

    ``between`` is called before each batch, and may raise to leave.
    """
    named = naming(who_is(run.workload), "its loss, in an evaluation")
    with named, run.probe(), torch.no_grad(), run.autocast():
        run.model.eval()
        quantized, items, error = _means(run, ranks, between)
        plain = quantized
        if run.quantization.layers or run.config.compute != "float32":
            with run.quantization.off(), torch.autocast(run.device.type, enabled=False):
                plain, _, _ = _means(run, ranks, between)
    return {
        "val_loss": quantized["loss"],
        "val_loss_float32": plain["loss"],
        "val_loss_error": error,
        **{f"val_{name}": value for name, value in quantized.items() if name != "loss"},
        "val_items": items,
        "val_is_whole": _whole_split(run.workload) is not None,
    }


def _means(
    run: Run, ranks: Ranks, between: Callable[[], None]
) -> tuple[dict[str, float], int, float | None]:
    """Return the means of loss and measures over the items, how many there are, and the error."""
    found: list[dict[str, torch.Tensor]] = []
    items = []
    for i in range(ranks.rank, count_batches(run), ranks.world_size):
        between()
        batch = run.workload.batch("val", i, 0)
        loss, measures = loss_and_measures(run.workload, run.model, batch, before=found)
        found.append({"loss": loss, **measures})
        items.append(items_in(run.workload, batch))
    names = list(found[0]) if found else []
    rows = [torch.stack([own[name] for own in found]).double() for name in names]
    # Measures may be on the CPU while the loss is on a GPU.
    values = torch.stack([row.to(run.device) for row in rows]) if rows else None
    if ranks.world_size > 1:
        names, values, items = _of_all(run, ranks, names, values, items)
    assert values is not None
    means = mean_over_items(values, items)
    error = None
    if len(items) > 1:
        # The mean over n items has an n-th of an item's variance: weights estimate that, too.
        squares = (values[0] - means[0]) ** 2
        error = float((mean_over_items(squares, items) / (len(items) - 1)).sqrt())
    return dict(zip(names, means.tolist(), strict=True)), sum(items), error


def _of_all(
    run: Run, ranks: Ranks, names: list[str], values: torch.Tensor | None, items: list[int]
) -> tuple[list[str], torch.Tensor, list[int]]:
    """Put the batches of all ranks together, in their order; a rank may have had none."""
    # Each rank may have them in an order of its own; the loss is the first.
    order = sorted(range(len(names)), key=lambda i: (names[i] != "loss", names[i]))
    names = [names[i] for i in order]
    rows = [] if values is None else values[order].T.tolist()
    parts = ranks.gather((names, list(zip(rows, items, strict=True))))
    check_same_measures(who_is(run.workload), [names for names, batches in parts if batches])
    turns = itertools.zip_longest(*(own for _, own in parts))
    together = [batch for turn in turns for batch in turn if batch is not None]
    table = torch.tensor([row for row, _ in together], dtype=torch.float64, device="cpu").T
    return parts[0][0], table.contiguous(), [count for _, count in together]


def count_batches(run: Run) -> int:
    """Return how many batches an evaluation looks at."""
    return _whole_split(run.workload) or run.config.eval_steps


def _whole_split(workload: Workload) -> int | None:
    """Return the batches of a finite validation split, None for one that is drawn from."""
    return getattr(workload, "validation_batches", None)


def items_in(workload: Workload, batch: Any) -> int:
    """Return how many items a batch has."""
    count: Callable[[Any], int] | None = getattr(workload, "items", None)
    return workload.items_per_batch if count is None else count(batch)


def is_better(config: TrainConfig, now: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether an evaluation is better than the best one before.

    One whose value or loss is not finite never is.
    """
    value, other = now[config.monitor], best.get(config.monitor)
    if not (math.isfinite(value) and math.isfinite(now["val_loss"])):
        return False
    if other is None:
        return True
    return as_cost(value, config.direction) < as_cost(other, config.direction)


def warn_of_nonfinite(
    run: Run, step: Step, now: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    """Warn of values that are not finite although the training loss is, once until they are."""
    new = [k for k in now if _is_broken(k, now) and not _is_broken(k, before)]
    if new and step.loss is not None and not step.discarded and step.loss.isfinite():
        message = f"not finite, although the training loss is: {', '.join(new)}"
        run.emit("warning", message=message)


def _is_broken(name: str, evaluation: Mapping[str, Any]) -> bool:
    """Whether a loss or measure is not finite; the error is not, wherever its loss is not."""
    value = evaluation.get(name)
    return isinstance(value, float) and not math.isfinite(value) and name != "val_loss_error"


def check_monitor(
    config: TrainConfig, workload: Workload, quantization: Quantization, device: torch.device
) -> None:
    """Raise `BadInput` if evaluations do not have what ``monitor`` names, or its best is unclear.

    For another value than the losses the model runs, to name the workload's measures.
    """
    if config.monitor in LOSSES:
        return
    model = workload.model
    with probing(model, quantization, device), quantization.off(), torch.no_grad():
        _, measures = loss_and_measures(workload, model.eval(), workload.batch("val", 0, 0))
    known = [*LOSSES, *(f"val_{name}" for name in measures)]
    if config.monitor not in known:
        raise BadInput(
            f"evaluations have no {config.monitor!r}",
            key="monitor",
            meant=nearest(config.monitor, known),
            hint=f"they have {', '.join(known)}",
        )
    if config.monitor_mode is None and "loss" not in config.monitor.split("_"):
        raise BadInput(
            f"monitor is {config.monitor}, which is no loss: say which values are best",
            key="monitor_mode",
            hint="max for the highest, min for the lowest",
        )
