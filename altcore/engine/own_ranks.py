"""What a checkpoint has of one rank alone, in a loop of your own whose ranks train together.

A manager does not know whether the other ranks save, too, so it sends them nothing. Whoever
restores another rank's checkpoint takes what all ranks share, and is told of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from altcore.engine.randomness import seed_all, set_random_state
from altcore.log import log
from altcore.quantization import random_key, this_rank

HINT = (
    "let each rank save into a folder of its own for the same bits; draw what is to be the same on "
    "all ranks, as an order of samples, from a generator of its own"
)


def put_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the random states if this rank saved them; a warning tells of another's.

    This rank is then seeded by them and its own number: a dropout that is the same on all ranks
    would be another training.
    """
    saver, rank = state.get("rank", 0), this_rank()  # earlier checkpoints do not say
    if rank == saver:
        set_random_state(state["random"], device)
        return
    drawn = hashlib.sha256(bytes(state["random"]["cpu"].tolist())).hexdigest()
    seed_all(random_key(0, state["step"], 0, f"{drawn} rank {rank}"))
    told = f"rank {saver} saved, and the random states of rank {rank} are in no checkpoint: it goes"
    told += " on with other random numbers than those of a loop that never stopped"
    if taken := _may_differ(state):
        told += f"; as rank {saver} had them it takes {', '.join(taken)}"
    log.warning(told, hint=HINT)


def _may_differ(state: Mapping[str, Any]) -> list[str]:
    """Name what else in a state need not be the same on each rank."""
    histories = (state["quantization"] or {}).get("histories")
    own = {"delayed scales": histories, "gradients": state["gradients"]}
    return [*(name for name, held in own.items() if held), *(f"also.{k}" for k in state["also"])]
