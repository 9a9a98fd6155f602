"""What came from Python in the place of the workload's own, as the identity of a run holds it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from altcore.engine.batch_digests import batch_digest
from altcore.engine.function_identity import function_identity
from altcore.engine.hidden_state import own_of
from altcore.engine.model_state import unsaved_buffers
from altcore.engine.module_hooks import hook_identity
from altcore.engine.module_kinds import kinds_of, options_of
from altcore.runs import (
    BUFFERS,
    CHANGES,
    CODE,
    DIGITS,
    HOOKS,
    MODULES,
    NAME,
    OPTIONS,
    VALUES,
    given_in,
)


def given_from_python(model: object, batch: object, loss: object = None) -> dict[str, str]:
    """Return what the caller gave in the place of the workload's own, by name."""
    is_module = isinstance(model, nn.Module)
    given = {"model": type(model) if is_module else model, "data": batch, "loss": loss}
    return {
        name: f"{_name_of(thing)}, given from Python"
        for name, thing in given.items()
        if thing is not None
    }


def _name_of(thing: object) -> str:
    if isinstance(thing, partial):
        return f"{_name_of(thing.func)} (partial)"
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def identity_given(model: nn.Module | None, batch: object, loss: object) -> dict[str, Any]:
    """Return what the caller gave as an identity holds it.

    Modules have their kinds, and a model its hooks and the buffers that no checkpoint would have; a
    function has its code, and the values of its variables. Of a model that is not quantized yet.
    """
    names = given_from_python(model, batch, loss)
    found: dict[str, Any] = {part: {NAME: name} for part, name in names.items()}
    if model is not None:
        found["model"][BUFFERS] = _buffers_of(model)
    own = own_of(model.modules()) if model is not None else ()
    if model is not None:
        found["model"] |= hook_identity(model, own)
    for part, thing in (("model", model), ("data", batch), ("loss", loss)):
        if isinstance(thing, nn.Module):
            found[part] |= {MODULES: kinds_of(thing), OPTIONS: options_of(thing)}
        if part in found and part != "model":
            found[part] |= function_identity(thing, own)
    return found


def _buffers_of(model: nn.Module) -> dict[str, str]:
    """Return the digests of the buffers that a model's state lacks; of those that hold numbers."""
    found = unsaved_buffers(model, model.state_dict())
    held = {n: x for n, x in found.items() if not (x is None or is_lazy(x) or x.is_meta)}
    return {n: f"{[*x.shape]} {batch_digest(x)[0][:DIGITS]}" for n, x in held.items()}


def names_given(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what processes of one run have alike of what they were given: names and modules.

    A function, a hook or a buffer may know its rank. The code of a loss is compared by itself.
    """
    of_rank = (CODE, VALUES, BUFFERS, HOOKS)
    return {
        key: {k: v for k, v in part.items() if k not in of_rank}
        if isinstance(part, Mapping)
        else part
        for key, part in given.items()
    }


def without_changing(identity: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    """Return an identity without the values of functions that changed as the run trained.

    Args:
        identity: of the run.
        hidden: what was found to change, as the warning of it says.
    """
    plugins = {**(identity.get("plugin") or {})}
    for part, given in given_in(identity).items():
        if VALUES in given:
            found = {n for n in given[VALUES] if f"{n} of the function {part}" in hidden}
            plugins[part] = {**given, VALUES: given[VALUES] | dict.fromkeys(found, CHANGES)}
    return {**identity, "plugin": plugins}


def without_saved(identity: Mapping[str, Any], buffers: Collection[str]) -> dict[str, Any]:
    """Return an identity without the buffers that a checkpoint has, as they changed since."""
    given = given_in(identity).get("model", {})
    if not (buffers and BUFFERS in given):
        return {**identity}
    own = given[BUFFERS] | dict.fromkeys(buffers, CHANGES)
    return {**identity, "plugin": {**identity["plugin"], "model": {**given, BUFFERS: own}}}
