"""Which tensors of models share their memory, so that those that are restored share it likewise.

What a checkpoint holds is copied into the tensors of models that were built. Two that share their
memory there, as buffers that begin as one tensor, need not have shared it any more when they were
saved: the second would overwrite the first. Others may have come to share it since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from altcore.engine.labels import within

Shared = dict[str, list[Any]]
"""Of each tensor that shares its memory with an earlier one: the name of the first of them, and its
offset there with its strides; None if it is no part of the first."""


@frozen(eq=False)
class _Held:
    tensor: Tensor
    move: Callable[[Tensor], None]
    """Gives it another memory: a parameter stays the one that the optimizer has."""


def shared_in(modules: Mapping[str, nn.Module]) -> Shared:
    """Return which parameters and buffers of modules share their memory now."""
    tensors = {name: held.tensor for name, held in _tensors(modules).items()}
    return {
        name: [first, _part(tensors[name], tensors[first])]
        for first, *others in _in_one_memory(tensors)
        for name in others
    }


@contextmanager
def shared_as(modules: Mapping[str, nn.Module], shared: Shared | None) -> Iterator[None]:
    """Let tensors of modules, into which others are copied now, share memory as those did.

    None of an earlier altcore, which did not record it.
    """
    if shared is not None:
        _split(modules, shared)
    yield
    if shared is not None:
        _join(modules, shared)


def not_joined(built: Shared, now: Shared) -> list[str]:
    """Return the names of tensors that share memory now as no build makes it, nor a restore."""
    return [name for name, (_, part) in now.items() if part is None and name not in built]


def overlapping(tensors: Mapping[str, Tensor], others: Iterable[Tensor]) -> list[str]:
    """Return the names of tensors that share their memory with one of the others."""
    every: dict[Any, Tensor] = {**dict(enumerate(others)), **tensors}
    groups = [group for group in _in_one_memory(every) if group[0] not in tensors]
    found = {name for group in groups for name in group}
    return [name for name in tensors if name in found]


def _in_one_memory(tensors: Mapping[Any, Tensor]) -> Iterator[list[Any]]:
    """Yield the names of tensors whose memory overlaps, in their order."""
    order = {name: i for i, name in enumerate(tensors)}
    spans = sorted((*_span(x), order[name], name) for name, x in tensors.items() if _has_memory(x))
    group: list[Any] = []
    last, end = "", 0
    for device, start, stop, _, name in spans:
        if device != last or start >= end:
            yield from [sorted(group, key=order.__getitem__)] if len(group) > 1 else ()
            group, last, end = [], device, 0
        group.append(name)
        end = max(end, stop)
    yield from [sorted(group, key=order.__getitem__)] if len(group) > 1 else ()


def _split(modules: Mapping[str, nn.Module], shared: Shared) -> None:
    """Give a memory of its own to what shares that of another now, and did not."""

    def group(name: str) -> str:
        return str(shared[name][0]) if name in shared else name

    held = _tensors(modules)
    for name, (first, _) in shared_in(modules).items():
        if group(name) != group(first):
            held[name].move(held[name].tensor.detach().clone())


def _join(modules: Mapping[str, nn.Module], shared: Shared) -> None:
    """Give the memory of another to what does not share it now, and did."""
    held, now = _tensors(modules), shared_in(modules)
    for name, (first, part) in shared.items():
        if not (part and name in held and first in held) or now.get(name) == [first, part]:
            continue
        own, other, (offset, strides) = held[name].tensor, held[first].tensor, part
        is_like = own.dtype == other.dtype and own.device == other.device
        if is_like and [0, own.shape, strides] == [offset, other.shape, [*other.stride()]]:
            held[name].move(other)
        elif is_like and offset + _reach(own.shape, strides) <= _reach(other.shape, other.stride()):
            place = other.storage_offset() + offset
            held[name].move(other.detach().as_strided(own.shape, strides, place))


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, _Held]:
    """Return the parameters, and then the buffers, by name; tied parameters are one."""
    held: dict[str, _Held] = {}
    seen: set[int] = set()
    for label, module in modules.items():
        for name, p in module.named_parameters():
            if id(p) not in seen:
                seen.add(id(p))
                held[within(name, label)] = _Held(p, _setter(p))
    for label, module in modules.items():
        for prefix, part in module.named_modules(remove_duplicate=False):
            for key in tuple(part._buffers.keys()):
                x = part._buffers[key]
                name = within(f"{prefix}.{key}" if prefix else key, label)
                if x is not None:
                    held[name] = _Held(x, _binder(part._buffers, key))
    return held


def _setter(p: Tensor) -> Callable[[Tensor], None]:
    def move(to: Tensor) -> None:
        p.data = to.detach()

    return move


def _binder(buffers: dict[str, Tensor | None], key: str) -> Callable[[Tensor], None]:
    def move(to: Tensor) -> None:
        buffers[key] = to.detach() if isinstance(to, nn.Parameter) else to

    return move


def _has_memory(x: Tensor) -> bool:
    if is_lazy(x) or x.is_meta or x.is_nested or x.layout != torch.strided or not x.numel():
        return False
    try:
        return x.data_ptr() != 0
    except RuntimeError:  # wrapped and fake tensors have none of their own
        return False


def _span(x: Tensor) -> tuple[str, int, int]:
    size = _reach(x.shape, x.stride()) * x.element_size()
    return str(x.device), x.data_ptr(), x.data_ptr() + size


def _reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements of memory there are from the first to the last of a tensor."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _part(own: Tensor, first: Tensor) -> list[Any] | None:
    offset, rest = divmod(own.data_ptr() - first.data_ptr(), own.element_size())
    end = offset + _reach(own.shape, own.stride())
    is_part = own.dtype == first.dtype and not rest and offset >= 0
    is_part = is_part and end <= _reach(first.shape, first.stride())
    return [offset, [*own.stride()]] if is_part else None
