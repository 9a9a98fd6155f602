"""What an observer may not touch, as it is now: compared with later, and put back.

An observer looks. Whatever else it does to the model, the optimizer, random states or the process
changes the result of the run, so each thing that it could reach is one `Possession` here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from attrs import fields
from torch import Tensor

from altcore.engine.randomness import random_state, set_random_state

PLAIN = (bool, int, float, str, bytes, type(None), tuple)


class Possession(Protocol):
    """One thing that is not an observer's to change."""

    @property
    def label(self) -> str:
        """What it is; once it is changed, perhaps with what of it."""

    @property
    def of_pass(self) -> bool:
        """Whether a context around a pass of the model may hold it changed, as hooks."""

    def is_changed(self) -> bool:
        """Whether it is not as it was."""

    def put_back(self) -> bool:
        """Make it as it was, if that is possible; returns whether it is."""


def _same(before: Any, now: Any) -> bool:
    return now is before or (
        isinstance(before, PLAIN) and type(now) is type(before) and bool(now == before)
    )


class Value:
    """Something with a way to read it and one to set it."""

    of_pass = False

    def __init__(self, label: str, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        self.label, self._read, self._write = label, read, write
        self._before = read()

    def is_changed(self) -> bool:
        """Whether it is not the same object, or not the same plain value."""
        return not _same(self._before, self._read())

    def put_back(self) -> bool:
        """Set it."""
        self._write(self._before)
        return not self.is_changed()


def attribute(label: str, owner: Any, name: str) -> Value:
    """Return an attribute as a possession."""
    return Value(label, lambda: getattr(owner, name, None), lambda x: setattr(owner, name, x))


class Entries:
    """The entries of a mapping or the items of a list, by identity."""

    def __init__(
        self, label: str, held: Any, *, of_pass: bool = False, says_which: bool = False
    ) -> None:
        self._label, self.of_pass, self._says_which = label, of_pass, says_which
        self._held, self._before = held, copy.copy(held)

    @property
    def label(self) -> str:
        """What it is, with the keys that changed if these have names."""
        keys = map(str, self._keys()) if self._says_which else ()
        return " of ".join(filter(None, (", ".join(keys), self._label)))

    def _keys(self) -> list[Any]:
        now, before = self._held, self._before
        return [
            k
            for k in {**before, **now}
            if k not in before or k not in now or not _same(before[k], now[k])
        ]

    def is_changed(self) -> bool:
        """Whether an entry is new, gone or another one."""
        now, before = self._held, self._before
        if not now and not before:  # as most mappings of hooks
            return False
        if isinstance(now, dict):
            return bool(self._keys())
        return len(now) != len(before) or not all(map(_same, before, now))

    def put_back(self) -> bool:
        """Fill it with what it held."""
        self._held.clear()
        if isinstance(self._held, dict):
            self._held.update(self._before)
        else:
            self._held.extend(self._before)
        return True


class Bindings:
    """What names of an owner are bound to; a class says which names, and what counts."""

    of_pass = False

    def __init__(self, place: str, owner: Any) -> None:
        self._place, self._owner, self._before = place, owner, self._now(owner)

    def _now(self, owner: Any) -> dict[str, Any]:
        return dict(vars(owner))

    def _changed(self) -> list[str]:
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Which names, and of what."""
        return f"{', '.join(self._changed())} of {self._place}"

    def is_changed(self) -> bool:
        """Whether a name is bound to another thing."""
        return bool(self._changed())

    def put_back(self) -> bool:
        """Bind the names again."""
        for name in self._changed():
            if name in self._before:
                setattr(self._owner, name, self._before[name])
            else:
                delattr(self._owner, name)
        return True


class Names(Bindings):
    """The names of a module or class: none may be bound to something else, or be gone.

    Nor may a class get a method that hides one of its bases.
    """

    def __init__(self, owner: Any) -> None:
        super().__init__(owner.__name__, owner)

    def _changed(self) -> list[str]:
        now, before = vars(self._owner), self._before
        hiding = [k for k in now.keys() - before.keys() if callable(now[k]) and self._hides(k)]
        return [*(k for k, v in before.items() if not _same(v, now.get(k))), *hiding]

    def _hides(self, name: str) -> bool:
        bases = self._owner.__mro__[1:] if isinstance(self._owner, type) else ()
        return any(name in vars(base) for base in bases)


class TensorValue:
    """A tensor's values, by version and memory; with a copy also by value, and put back."""

    of_pass = False

    def __init__(self, label: str, tensor: Tensor, *, by_value: bool) -> None:
        self.label, self._tensor = label, tensor
        self._memory = tensor.detach()
        self._counter = None
        if by_value and not tensor.is_inference():
            self._counter = torch.autograd._unsafe_preserve_version_counter(tensor)  # type: ignore[attr-defined] # torch exports it nowhere
        self._facts = self._now()
        self._copy = self._memory.clone() if by_value else None

    def _now(self) -> tuple[Any, ...]:
        t = self._tensor
        return (version(t), address(t), t.dtype, t.shape, t.requires_grad)

    def is_changed(self) -> bool:
        """Whether it was written to, or has another memory, type or need of a gradient."""
        now, before = self._now(), self._facts
        if self._copy is None or now[1:] != before[1:]:
            return now != before
        return not same_bits(self._copy, self._tensor.detach())

    def put_back(self) -> bool:
        """Give it its memory, and the values that are known."""
        before, requires_grad = self._facts[0], self._facts[-1]
        is_written = version(self._tensor) != before
        if self._now()[1:4] != self._facts[1:4]:
            self._tensor.data = self._memory
        if self._tensor.requires_grad != requires_grad and self._tensor.is_leaf:
            self._tensor.requires_grad_(requires_grad)
        if self._copy is not None:
            self._memory.data.copy_(self._copy)
            if self._counter is not None:  # what knows the tensor by its version knows it again
                self._counter.__exit__(None, None, None)
        return self._copy is not None or not is_written


def version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; -1 if torch does not count."""
    return -1 if tensor.is_inference() else tensor._version


def address(tensor: Tensor) -> int:
    """Return where the memory of a tensor is."""
    # Wrapped and fake tensors have no memory of their own.
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return id(tensor)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, type and bits; known of dense ones alone."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout is not torch.strided or a.is_quantized:
        return True  # known by their version alone
    own, other = (t.reshape(-1).contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(own, other)


class RandomStates:
    """The random states of Python, NumPy, torch and its devices."""

    of_pass = False

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, random_state(device)

    @property
    def label(self) -> str:
        """Which of them moved."""
        return f"the random state of {' and '.join(self._changed())}"

    def _changed(self) -> list[str]:
        now, before = random_state(self._device), self._before
        names = {self._device.type: "torch on a device", "cpu": "torch"}
        return [names.get(k, k) for k in before if k in now and not _state_equal(before[k], now[k])]

    def is_changed(self) -> bool:
        """Whether somebody has drawn or seeded."""
        return bool(self._changed())

    def put_back(self) -> bool:
        """Restore all of them."""
        set_random_state(self._before, self._device)
        return True


def _state_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list) and a and isinstance(a[0], Tensor):
        return len(a) == len(b) and all(map(torch.equal, a, b))
    return bool(a == b)


class Configuration:
    """The run's configuration: what its keys hold, at every depth."""

    label = "the configuration"
    of_pass = False

    def __init__(self, config: Any) -> None:
        self._config = config
        self._values = {a.name: getattr(config, a.name) for a in fields(type(config))}
        self._copies = {k: copy.deepcopy(v) for k, v in self._values.items() if isinstance(v, dict)}

    def is_changed(self) -> bool:
        """Whether a key, or something in its value, is not as it was."""
        return any(
            getattr(self._config, name) is not value or self._copies.get(name, value) != value
            for name, value in self._values.items()
        )

    def put_back(self) -> bool:
        """Set every key; a frozen class is no hindrance, as it was none for the plugin."""
        for name, value in self._values.items():
            if name in self._copies:
                value.clear()
                value.update(copy.deepcopy(self._copies[name]))
            object.__setattr__(self._config, name, value)
        return True
