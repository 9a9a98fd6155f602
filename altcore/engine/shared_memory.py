"""Which tensors of models share their memory, so that those that are restored share it likewise.

What a checkpoint holds is copied into the tensors of models that were built. Two that share their
memory there, as buffers that begin as one tensor, need not have shared it any more when they were
saved: the second would overwrite the first. Others may have come to share it since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from altcore.engine.labels import within

Shared = dict[str, list[str]]
"""Of each tensor that shares its memory with an earlier one: the name of the first of them, and
which part of the memory is its own, "" if all that the first one has."""

Place = tuple[int, list[int], list[int], str]
"""Address, shape, strides and type."""


@frozen(eq=False)
class _Held:
    tensor: Tensor
    move: Callable[[Tensor], None]
    """Gives it another memory: a parameter stays the one that the optimizer has."""


def shared_in(modules: Mapping[str, nn.Module]) -> Shared:
    """Return which parameters and buffers of modules share their memory now."""
    held = _tensors(modules)
    order = {name: i for i, name in enumerate(held)}
    spans = sorted((*_span(x.tensor), name) for name, x in held.items() if _has_memory(x.tensor))
    groups: list[list[str]] = []
    last, end = "", 0
    for device, start, stop, name in spans:
        if device != last or start >= end:
            groups.append([])
            last, end = device, 0
        groups[-1].append(name)
        end = max(end, stop)
    shared: Shared = {}
    for group in groups:
        first, *others = sorted(group, key=order.__getitem__)
        known = _place(held[first].tensor)
        for name in others:
            own = _place(held[name].tensor)
            shared[name] = [first, "" if own == known else _apart(own, known)]
    return shared


@contextmanager
def shared_as(modules: Mapping[str, nn.Module], shared: Shared | None) -> Iterator[None]:
    """Let tensors of modules, into which others are copied now, share memory as those did.

    None of an earlier altcore, which did not record it.
    """
    if shared is not None:
        _part_from(modules, shared)
    yield
    if shared is not None:
        _join(modules, shared)


def not_joined(built: Shared, now: Shared) -> list[str]:
    """Return the names of tensors that share memory now as no build makes it, nor a restore."""
    return [name for name, (_, part) in now.items() if part and built.get(name) != now[name]]


def _part_from(modules: Mapping[str, nn.Module], shared: Shared) -> None:
    """Give a memory of its own to what shares that of another now, and did not."""

    def group(name: str) -> str:
        return shared[name][0] if name in shared else name

    held = _tensors(modules)
    for name, (first, _) in shared_in(modules).items():
        if group(name) != group(first):
            held[name].move(held[name].tensor.detach().clone())


def _join(modules: Mapping[str, nn.Module], shared: Shared) -> None:
    """Give the memory of another to what does not share it now, and did."""
    held, now = _tensors(modules), shared_in(modules)
    firsts: dict[str, str] = {}
    for name, (first, part) in shared.items():
        one = firsts.setdefault(first, first if first in held else name)
        if part or name not in held or name == one or now.get(name) == [one, ""]:
            continue
        own, other = held[name].tensor, held[one].tensor
        if (own.shape, own.dtype, own.device) == (other.shape, other.dtype, other.device):
            held[name].move(other)


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


def _place(x: Tensor) -> Place:
    return x.data_ptr(), [*x.shape], [*x.stride()], str(x.dtype)


def _span(x: Tensor) -> tuple[str, int, int]:
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return str(x.device), x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def _apart(own: Place, first: Place) -> str:
    """Return which part of a memory a tensor has that is not the first one in it."""
    return " ".join(map(str, (own[0] - first[0], *own[1:])))
