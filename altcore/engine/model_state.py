"""The tensors of a model in a checkpoint: what its ``state_dict`` has, and the buffers it lacks.

A resume builds model and optimizer anew, and then puts the checkpoint into them. Buffers may have
come, gone or grown since, as caches and running tables do: the checkpoint gives them back. All else
has to be as it was built, and `as_built` says so when a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from altcore.builtin_types import nested_too_deeply
from altcore.engine.buffers import is_expanded
from altcore.engine.labels import MODEL
from altcore.engine.shared_memory import shared_as
from altcore.engine.trespass import address, same_bits
from altcore.errors import InvalidCheckpoint
from altcore.quantization import FSDP_MARK, Quantization

Form = list[Any]
"""Shape and type of a tensor, as plain data."""


def form_of(x: Tensor | None) -> Form | None:
    """Return the shape and type of a tensor, None if it has none yet."""
    return None if x is None or is_lazy(x) else [list(x.shape), str(x.dtype)]


def unsaved_buffers(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """Return the buffers that a model's state does not have; None for one that is not set.

    These are the ones that are not persistent, and those that a ``state_dict`` of its own omits.
    """
    return {name: buffer for name, buffer in buffers_in(model) if name not in weights}


def misstated(
    model: nn.Module, weights: Mapping[str, Any], elsewhere: Container[int] = ()
) -> str | None:
    """Return what is wrong with the state that a model states, None if all is right.

    A ``state_dict`` of its own may omit one, rename it or round it: it would not be restored.
    Parameters with an id that is ``elsewhere`` are stated there.
    """
    if problem := nested_too_deeply(weights):
        return f"the state_dict of the model {problem}"
    for name, p in model.named_parameters():
        if not p.requires_grad or is_lazy(p) or id(p) in elsewhere:
            continue
        if not isinstance(kept := weights.get(name), Tensor):
            return f"the state_dict of the model leaves out the parameter {name}"
        is_it = address(kept) == address(p) and form_of(kept) == form_of(p)
        if not is_it and not same_bits(kept.to(p.device), p.detach()):
            return f"the state_dict of the model has other numbers than the parameter {name}"
    return None


def flags_of(model: nn.Module) -> dict[str, bool]:
    """Return the ``requires_grad`` of each parameter, by name."""
    return {name: p.requires_grad for name, p in model.named_parameters()}


def buffers_in(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the name of each buffer, and the buffer; None for one that is not set."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key in tuple(module._buffers.keys()):
            yield f"{prefix}.{key}" if prefix else key, module._buffers[key]


def set_flags(model: nn.Module, flags: Mapping[str, bool]) -> None:
    """Set the ``requires_grad`` of parameters, by name."""
    for name, flag in flags.items():
        model.get_parameter(name).requires_grad_(flag)


def without_numbers(model: nn.Module) -> str | None:
    """Return the name of a tensor of a model that is on the device meta, None if there is none."""
    named = (*model.named_parameters(), *model.named_buffers())
    return next((name for name, x in named if x.is_meta), None)


def without_memory(model: nn.Module) -> str | None:
    """Return what is wrong with a tensor of a model that is no single memory, None if all are."""
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        # Such classes wrap other tensors, or none, as a DTensor or a torchao weight does.
        is_wrapper = type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
        if is_wrapper or x.is_nested or x.is_mkldnn:
            other = "nested tensor" if x.is_nested else "mkldnn tensor"
            kind = type(x).__name__ if is_wrapper else other
            is_shard = kind == "DTensor"
            use = "save by torch.distributed.checkpoint" if is_shard else "use an ordinary tensor"
            return f"{name} is a {kind}, which no checkpoint of altcore holds: {use}"
    for name, module in model.named_modules():
        if FSDP_MARK in vars(module):  # its parameters are parts of what FSDP1 made of them
            return (
                f"FullyShardedDataParallel gives each rank a part of {name or 'it'}, which no "
                "checkpoint of altcore holds: save by torch.distributed.checkpoint, and shard by "
                "fully_shard (FSDP2) to quantize"
            )
    return None


# What a checkpoint has goes into a model that was built -------------------------------------------


def may_differ(name: str, state: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether a tensor of a state is of a buffer that came, went or grew since the build.

    Not if the model that was built is another one: with a buffer of another form than it had then.
    """
    forms, place = state["buffer_forms"], _place(name, model)
    if place is None or not (name in forms or name in state["buffers"]):
        return False
    own = form_of(_held(*place))
    return own is None or name not in forms or forms[name] == own


def check_buffers(buffers: Mapping[str, Any], model: nn.Module) -> None:
    """Raise `InvalidCheckpoint` if `put_buffers` has no place for one."""
    for name, kept in buffers.items():
        if _place(name, model) is None:
            raise InvalidCheckpoint(f"the model has no place for the buffer {name}")
        if not isinstance(kept, Tensor | None):
            raise InvalidCheckpoint(f"{name} is {type(kept).__name__}, not a tensor")


def put_model(model: nn.Module, q: Quantization | None, state: Mapping[str, Any]) -> None:
    """Put the model of a checked state into one that was built, with its quantization if any."""
    with shared_as({MODEL: model}, state.get("shared")):
        make_room(model, state["model"])
        if q is None:
            model.load_state_dict(state["model"])
        else:
            q.load_state_dict(state["quantization"], state["model"])
        put_buffers(model, state["buffers"])


def make_room(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Let a model have the buffers that a checked state has, in the form that they have there.

    ``load_state_dict`` takes no others.
    """
    own = model.state_dict()
    other = {
        name: x
        for name, x in weights.items()
        if isinstance(x, Tensor) and (name not in own or not _is_alike(own[name], x))
    }
    put_buffers(model, dict.fromkeys(own.keys() - weights), is_persistent=True)
    put_buffers(model, other, is_persistent=True)


@torch.no_grad()
def put_buffers(
    model: nn.Module, buffers: Mapping[str, Tensor | None], *, is_persistent: bool = False
) -> None:
    """Put buffers that were checked into a model; what is new there may be persistent."""
    first = next(model.parameters(), None)
    for name, kept in buffers.items():
        if (place := _place(name, model)) is None:
            continue
        module, key = place
        own = _held(module, key)
        like = first if own is None else own
        moved = kept if kept is None or like is None else kept.to(like.device, copy=True)
        if own is not None and moved is not None and _is_alike(own, moved):
            own.copy_(moved)
        elif key in module._buffers:
            module._buffers[key] = moved
        else:
            module.register_buffer(key, moved, persistent=is_persistent)


def drop_buffers(model: nn.Module, names: Iterable[str]) -> None:
    """Take away buffers that appeared later, as a cache does in a forward pass."""
    for name in names:
        if (place := _place(name, model)) is not None:
            module, key = place
            del module._buffers[key]
            module._non_persistent_buffers_set.discard(key)


def _place(name: str, model: nn.Module) -> tuple[nn.Module, str] | None:
    """Return the module of a buffer and its name there, None if there can be none."""
    prefix, _, key = name.rpartition(".")
    module: Any = model
    for part in filter(None, prefix.split(".")):  # a ScriptModule has no get_submodule
        module = getattr(module, part, None)
    if not isinstance(module, nn.Module):
        return None
    return None if key not in module._buffers and hasattr(module, key) else (module, key)


def _held(module: nn.Module, key: str) -> Tensor | None:
    # What a ScriptModule holds them in has no get.
    return module._buffers[key] if key in module._buffers else None  # noqa: SIM401


def _is_alike(own: Tensor, kept: Tensor) -> bool:
    """Whether one can be copied into the other: no element of which is another's."""
    is_own = own.layout == torch.strided and not is_expanded(own)
    return is_own and (own.shape, own.dtype) == (kept.shape, kept.dtype)
