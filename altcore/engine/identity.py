"""What a run is known by when it is built, and whether another one may go on with its checkpoints.

The identity as data, and its comparison, are in `altcore.runs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from altcore.engine.arithmetic import platform_on
from altcore.engine.batch_digests import batch_digest
from altcore.engine.building import Built
from altcore.engine.randomness import random_state, set_random_state
from altcore.engine.state import Workload
from altcore.recipes import formats_in, some
from altcore.runs import (
    BITS,
    DECIDES,
    INITIAL_WEIGHTS,
    NOTED,
    UNKNOWN,
    Change,
    Checkpoint,
    identity_of,
)

DIGEST = "sha256"
"""The fact of a workload that digests its data."""
FIRST_BATCH = "first batch"
MOST_NAMED = 8
"""Parts of a batch without a digest that a manifest names."""


def run_identity(built: Built) -> dict[str, Any]:
    """Return the identity of a run that is built."""
    device = built.device
    return identity_of(
        built.config,
        owners=built.owners,
        formats=formats_in(built.quantization.plan),
        data=data_of(built.workload, device, "data" in built.given),
        where=platform_on(device),
        given=built.given,
        world_size=built.ranks.world_size,
    )


def data_of(workload: Workload, device: torch.device, is_given: bool) -> dict[str, Any]:
    """Return what the data are known by: the workload's own digest, or that of the first batch.

    A workload's own digest says nothing of batches that the caller gave.
    """
    own = workload.facts.get(DIGEST)
    if isinstance(own, str) and not is_given:
        return {"sha256": own, "of": "workload"}
    random = random_state(device)
    try:
        digest, unknown = batch_digest(workload.batch("train", 1, 0))
    finally:
        set_random_state(random, device)
    # A large batch may have very many; the warning names few.
    about = {UNKNOWN: unknown[:MOST_NAMED]} if unknown else {}
    return {"sha256": digest, "of": FIRST_BATCH, **about}


def first_batch(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first batch's digest as environment.json holds it, if data are known by it."""
    data = identity["data"]
    return {"first_batch": data[DIGEST]} if data.get("of") == FIRST_BATCH else {}


def about_unknown(identity: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell what a resume cannot compare."""
    parts = identity["data"].get(UNKNOWN)
    blind = "a resume does not notice if it changed"
    return [f"of the data, {some(parts, 3)} cannot be digested: {blind}"] if parts else []


def changed_weights(found: Checkpoint, weights: str, others: Sequence[Change] = ()) -> list[Change]:
    """Return the change of the weights that the seed gives, if a checkpoint is of these alone.

    That is the one of step 0. ``weights`` is the digest of those that are built now: they may be
    others if something else changed, and are told then. An earlier altcore recorded none.
    """
    was = found.manifest.get(INITIAL_WEIGHTS)
    if found.state is not None or was in (None, weights):
        return []
    has_cause = any(change.severity != NOTED for change in others)
    severity = BITS if has_cause else DECIDES
    return [Change(INITIAL_WEIGHTS, INITIAL_WEIGHTS, was, weights, severity)]
