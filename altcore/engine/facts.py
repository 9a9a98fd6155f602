"""The facts of a run, known before its first step: its parts, and the share that is quantized."""

from __future__ import annotations

from typing import Any

from altcore.engine.building import Built
from altcore.engine.losses import loss_and_measures, who_is
from altcore.engine.memory import memory_named
from altcore.engine.named_errors import naming
from altcore.engine.probe import probing


def facts_of(built: Built) -> dict[str, Any]:
    """Return what environment.json, the first event and the summary say of a run.

    If anything is quantized the model runs, as `coverage_facts` says.
    """
    config, quantization = built.config, built.quantization
    formats = sorted(quantization.formats)
    return {
        "format": config.format.name if config.format else ", ".join(formats) or "none",
        "first_formats": formats,
        "recipe": config.recipe_name,
        "compute": quantization.compute,
        "optimizer": config.optimizer,
        "workload": config.workload,
        "workload_facts": dict(built.workload.facts),
        "seed": config.seed,
        "max_steps": config.max_steps,
        **coverage_facts(built),
    }


def coverage_facts(built: Built) -> dict[str, Any]:
    """Return the shares of the model that are quantized.

    If anything is quantized, the model runs for it: one micro-batch, forward and backward, in a
    probe.
    """
    q, model, workload = built.quantization, built.model, built.workload
    if q.layers:
        batch = built.ranks.share(workload, workload.batch("train", 1, 0))
        named = naming(who_is(workload), "loss")
        with memory_named(model), named, probing(model, q, built.device):
            q.count_flops(lambda: loss_and_measures(workload, model, batch)[0].backward())
    coverage = q.coverage()
    return {
        "parameter_share": coverage.parameter_share,
        "flop_share": coverage.flop_share if q.layers else 0.0,
        "flop_share_by_operand": dict(coverage.flop_share_by_operand),
        "head": coverage.head,
        "left_out": coverage.left_out,
    }
