"""The buffers of a model, such as the running statistics of a batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from altcore.errors import InvalidCheckpoint


@define(eq=False)
class Buffers:
    """Finds the buffers of a model, and keeps them as they were before a step.

    A forward pass changes them, before it is known whether the step is discarded. The copies lie on
    the device and are written over by the next step's; a model without buffers costs nothing.
    """

    model: nn.Module
    places: dict[str, tuple[dict[str, Tensor | None], str]] = field(init=False)
    """Where each lies, by its name: the model may put another tensor there."""
    kept: dict[str, Tensor | None] = field(init=False, factory=dict)
    """The tensors that lay there before the step."""
    copies: dict[str, Tensor] = field(init=False, factory=dict)
    """What they held."""
    by_type: list[tuple[list[Tensor], list[Tensor]]] = field(init=False, factory=list)
    """Tensors and copies of one type: these are copied in one launch."""

    def __attrs_post_init__(self) -> None:
        self.places = {
            f"{prefix}.{key}" if prefix else key: (module._buffers, key)
            for prefix, module in self.model.named_modules()
            for key in tuple(module._buffers.keys())
        }

    def now(self) -> dict[str, Tensor | None]:
        """Return each buffer as it is; None for one that is not set."""
        # What a ScriptModule holds them in has no get.
        return {n: held[k] if k in held else None for n, (held, k) in self.places.items()}  # noqa: SIM401

    def keep(self) -> None:
        """Copy them all, on the device."""
        if not self.places:
            return
        now = self.now()
        if [*map(id, now.values())] != [*map(id, self.kept.values())]:
            self.kept = now
            self.copies = {n: torch.empty_like(b) for n, b in now.items() if b is not None}
            self.by_type = _grouped(self.kept, self.copies)
        for tensors, copies in self.by_type:
            torch._foreach_copy_(copies, tensors)

    def was_finite(self, name: str | None) -> bool:
        """Whether one was finite before the step; a host read."""
        return name in self.copies and bool(torch.isfinite(self.copies[name]).all())

    def put_back(self) -> None:
        """Let them be as `keep` found them."""
        for name, tensor in self.kept.items():
            held, key = self.places[name]
            if key not in held or held[key] is not tensor:
                held[key] = tensor
        with torch.no_grad():
            for tensors, copies in self.by_type:
                torch._foreach_copy_(tensors, copies)


def _grouped(
    tensors: Mapping[str, Tensor | None], copies: Mapping[str, Tensor]
) -> list[tuple[list[Tensor], list[Tensor]]]:
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name, copy in copies.items():
        tensor = tensors[name]
        assert tensor is not None  # or it had no copy
        own, of_own = groups.setdefault(copy.dtype, ([], []))
        own.append(tensor.detach())
        of_own.append(copy)
    return list(groups.values())


# Those that a model's state leaves out ------------------------------------------------------------


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers that are not persistent, by name; None for one that is not set."""
    return {
        f"{prefix}.{key}" if prefix else key: module._buffers[key]
        for prefix, module in model.named_modules()
        for key in sorted(getattr(module, "_non_persistent_buffers_set", ()))
        if key in module._buffers
    }


@frozen(eq=False)
class FreshBuffers:
    """The buffers that are not persistent, as they were built: a build makes these again."""

    model: nn.Module
    built: dict[str, tuple[Tensor | None, int]] = field(init=False)
    """The tensor of each, and its version, which each change in place counts up."""

    def __attrs_post_init__(self) -> None:
        built = {name: (x, _version(x)) for name, x in unsaved_buffers(self.model).items()}
        object.__setattr__(self, "built", built)

    def changed(self) -> dict[str, Tensor | None]:
        """Return those that another build would not have as they are."""
        return {
            name: x
            for name, x in unsaved_buffers(self.model).items()
            if name not in self.built
            or self.built[name][0] is not x
            or self.built[name][1] != _version(x)
        }


def _version(x: Tensor | None) -> int:
    return 0 if x is None or x.is_inference() else x._version


def check_buffers(buffers: Mapping[str, Any], model: nn.Module) -> None:
    """Raise `InvalidCheckpoint` if `put_buffers` has no place for one."""
    modules = dict(model.named_modules())
    for name, kept in buffers.items():
        prefix, _, key = name.rpartition(".")
        module = modules.get(prefix)
        if module is None or (key not in module._buffers and hasattr(module, key)):
            raise InvalidCheckpoint(f"the model has no place for the buffer {name}")
        if not isinstance(kept, Tensor | None):
            raise InvalidCheckpoint(f"{name} is {type(kept).__name__}, not a tensor")


@torch.no_grad()
def put_buffers(model: nn.Module, buffers: Mapping[str, Tensor | None]) -> None:
    """Put buffers that are not persistent, and were checked, into a model."""
    modules = dict(model.named_modules())
    first = next(model.parameters(), None)
    for name, kept in buffers.items():
        prefix, _, key = name.rpartition(".")
        module = modules[prefix]
        own = module._buffers[key] if key in module._buffers else None  # noqa: SIM401
        like = first if own is None else own
        moved = kept if kept is None or like is None else kept.to(like.device)
        if own is not None and moved is not None and _is_alike(own, moved):
            own.copy_(moved)
        elif key in module._buffers:
            module._buffers[key] = moved
        else:
            module.register_buffer(key, moved, persistent=False)


def _is_alike(own: Tensor, kept: Tensor) -> bool:
    """Whether one can be copied into the other: no element of which is another's."""
    is_own = own.layout == torch.strided and 0 not in own.stride()
    return is_own and (own.shape, own.dtype) == (kept.shape, kept.dtype)
