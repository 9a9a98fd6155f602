"""What ranks must have to make a run: one configuration, and batches that they can share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from altcore.config import TrainConfig
from altcore.engine.plugins import Plugin
from altcore.engine.ranks import Ranks
from altcore.engine.shares import Drawn, check_drawn
from altcore.errors import BadInput, shown


def check_alike(config: TrainConfig, ranks: Ranks) -> None:
    """Raise `BadInput` unless all ranks have the same configuration."""
    own = config.to_plain()
    for rank, other in enumerate(ranks.gather(own)):
        for key in own:
            if other[key] != own[key]:
                problem = f"{shown(own[key])} on rank {ranks.rank}, {shown(other[key])} on {rank}"
                raise BadInput(problem, key=key, hint="processes of one run have one configuration")


def check_shares(workload: Any, ranks: Ranks) -> None:
    """Raise `BadInput` unless ranks can share micro-batches: the first, and an epoch's last.

    Raises `AltcoreError` if they drew different ones, or another first batch of an evaluation.
    """
    if ranks.world_size > 1:
        for index in {1, getattr(workload, "steps_per_epoch", None) or 1}:
            ranks.share(workload, workload.batch("train", index, 0))
        ranks.check_batches()
        # They take turns at an evaluation's batches, of which each has to mean the same to all.
        check_drawn(ranks.gather([str(Drawn.of(workload.batch("val", 0, 0)))]))


def of_rank(plugins: Sequence[Plugin], ranks: Ranks) -> list[Plugin]:
    """Return the plugins that run on this rank: rank 0 alone has reporters."""
    return [p for p in plugins if p.kind != "reporter" or ranks.rank == 0]
