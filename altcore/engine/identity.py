"""What a run is known by when it is built, and whether another one may go on with its checkpoints.

The identity as data, and its comparison, are in `altcore.runs`.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altcore.engine.arithmetic import platform_on
from altcore.engine.building import Built
from altcore.engine.module_kinds import kinds_of
from altcore.engine.randomness import random_state, set_random_state
from altcore.engine.state import Workload
from altcore.recipes import formats_in
from altcore.runs import MODULES, NAME, identity_of

DIGEST = "sha256"
"""The fact of a workload that digests its data."""


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
        batch = workload.batch("train", 1, 0)
    finally:
        set_random_state(random, device)
    found = hashlib.sha256()
    _add(found, batch)
    return {"sha256": found.hexdigest(), "of": "first batch"}


def _add(found: Any, value: Any) -> None:
    """Add tensors, numbers and text at any depth of lists and mappings to a digest."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().to_dense().contiguous()
        found.update(f"{plain.dtype} {tuple(plain.shape)}\n".encode())
        # Without numpy, which need not be installed, this is how bytes come out of a tensor.
        found.update(ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.numel() else b"")
    elif isinstance(value, Mapping):
        _add(found, [part for item in value.items() for part in item])
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)} parts\n".encode())
        for part in value:
            _add(found, part)
    elif isinstance(value, str | int | float | bytes | bool | None):
        found.update(f"{value!r}\n".encode())
    else:
        found.update(f"{type(value).__qualname__}\n".encode())


def digest_of_weights(model: nn.Module) -> str:
    """Return a digest of a model's parameters and buffers, by name; those without numbers lack."""
    found = hashlib.sha256()
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        _add(found, [name, None if nn.parameter.is_lazy(x) or x.is_meta else x])
    return found.hexdigest()


def given_in(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that names what came from Python."""
    plugins = identity.get("plugin")
    found = plugins.items() if isinstance(plugins, Mapping) else ()
    return {k: v for k, v in found if isinstance(v, Mapping) and "distribution" not in v}


def given_from_python(model: object, batch: object, loss: object = None) -> dict[str, str]:
    """Return what the caller gave in the place of the workload's own, by name."""
    is_module = isinstance(model, nn.Module)
    given = {"model": type(model) if is_module else model, "data": batch, "loss": loss}
    return {
        name: f"{getattr(thing, '__qualname__', type(thing).__qualname__)}, given from Python"
        for name, thing in given.items()
        if thing is not None
    }


def identity_given(model: nn.Module | None, batch: object, loss: object) -> dict[str, Any]:
    """Return what the caller gave as an identity holds it; a model with the kinds of its modules.

    Of a model that is not quantized yet.
    """
    names = given_from_python(model, batch, loss)
    found: dict[str, Any] = {part: {NAME: name} for part, name in names.items()}
    if model is not None:
        found["model"][MODULES] = kinds_of(model)
    return found
