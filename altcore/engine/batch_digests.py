"""The digest of a batch, the same in every process, and what in a batch has none.

Tensors, arrays, numbers and text are known by their contents, at any depth of lists and mappings.
Another object is known by what pickle would write of it.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from attrs import define, field
from torch import Tensor, nn

MOST = 1 << 16
"""Objects in a batch that are looked at, beside tensors, numbers, text, lists and mappings."""
PLAIN = (str, int, float, bytes, type(None))
Part = tuple[Any, str]
"""A part of a batch, and its place in it."""


def batch_digest(batch: Any) -> tuple[str, list[str]]:
    """Return the digest of a batch, and the places and types of its parts that have none.

    Only what the batch holds decides it, so that another process can compare it.
    """
    found = _Digest()
    found.add(batch, "batch")
    return found.sha256.hexdigest(), found.unknown


def digest_of_weights(model: nn.Module) -> str:
    """Return a digest of a model's parameters and buffers, by name; those without numbers lack."""
    named = (*model.named_parameters(), *model.named_buffers())
    digest, _ = batch_digest(
        {name: None if nn.parameter.is_lazy(x) or x.is_meta else x for name, x in named}
    )
    return digest


@define(eq=False)
class _Digest:
    """What was added so far."""

    sha256: Any = field(factory=hashlib.sha256)
    unknown: list[str] = field(factory=list)
    within: dict[int, int] = field(factory=dict)
    """The ids of the parts that hold the one being added, and how deep each lies."""
    left: int = field(factory=lambda: MOST)

    def add(self, value: Any, place: str) -> None:
        """Add a value at any depth of the batch."""
        if isinstance(value, PLAIN):
            self._write(repr(value))
        elif id(value) in self.within:
            self._write(f"the part at level {self.within[id(value)]}")
        else:
            self.within[id(value)] = len(self.within)
            try:
                self._add(value, place)
            except Exception:  # others' code is called, and what holds it may lie too deep
                self._refuse(value, place)
            finally:
                del self.within[id(value)]

    def _write(self, text: str) -> None:
        self.sha256.update(f"{text}\n".encode())

    def _refuse(self, value: Any, place: str) -> None:
        self._write(_name_of(type(value)))
        self.unknown.append(f"{place} ({_name_of(type(value))})")

    def _add(self, value: Any, place: str) -> None:
        if isinstance(value, Tensor):
            self._add_tensor(value, place)
        elif is_array(value):
            self._add_array(value, place)
        elif isinstance(value, Mapping):
            self._add_all(_entries(value, place, "[{!r:.40}]"))
        elif isinstance(value, list | tuple):
            self._add_all((part, f"{place}[{i}]") for i, part in enumerate(value))
        elif isinstance(value, set | frozenset):
            self._add_set(value, place)
        elif isinstance(value, memoryview):
            self._add_all([(value.format, place), (value.shape, place), (value.tobytes(), place)])
        elif isinstance(value, type | FunctionType) or _is_of_module(value):
            self._add_name(value, place)
        else:
            self._add_object(value, place)
        # A class of its own that is a list or a dictionary may hold more beside its entries.
        if isinstance(value, list | tuple | dict) and (more := getattr(value, "__dict__", None)):
            self._add_all(_entries(more, place, ".{}"))

    def _add_all(self, parts: Iterable[Part]) -> None:
        listed = list(parts)
        self._write(f"{len(listed)} parts")
        for part, place in listed:
            self.add(part, place)

    def _add_tensor(self, value: Tensor, place: str) -> None:
        if value.is_nested:
            self.add(list(value.unbind()), place)
            return
        plain = value.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous()
        self._write(f"{plain.dtype} {tuple(plain.shape)}")
        # Without numpy, which need not be installed, this is how bytes come out of a tensor.
        held = ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.numel() else b""
        self.sha256.update(held)

    def _add_array(self, value: Any, place: str) -> None:
        self._write(f"{value.dtype} {value.shape}")
        if value.dtype.hasobject:
            self.add(value.tolist(), place)
        else:
            self.sha256.update(value.tobytes())

    def _add_set(self, value: Iterable[Any], place: str) -> None:
        found = sorted(batch_digest(part) for part in value)
        self._write(f"{[own for own, _ in found]}")
        self.unknown += [name.replace("batch", place, 1) for _, names in found for name in names]

    def _add_name(self, value: Any, place: str) -> None:
        """Add a function or a class, which are known by where they are."""
        if "<" in value.__qualname__:  # that is nowhere
            self._refuse(value, place)
        else:
            self._write(_name_of(value))

    def _add_object(self, value: Any, place: str) -> None:
        self.left -= 1
        if self.left < 0:
            self._refuse(value, place)
            return
        self._write(_name_of(type(value)))
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            self._write(reduced)
            return
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        others = (make, arguments, items and list(items), pairs and list(pairs))
        self._add_all((part, place) for part in others)
        # With slots, it is a tuple of attributes that lie in a dictionary and those that do not.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self._add_all(_entries(part, place, ".{}"))
            else:
                self.add(part, place)


def _entries(held: Mapping[Any, Any], place: str, form: str) -> Iterator[Part]:
    for key, part in held.items():
        yield key, place
        yield part, place + form.format(key)


def _is_of_module(value: Any) -> bool:
    """Whether it is a function in C, and no method of an object."""
    return isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, ModuleType)


def _name_of(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}".removeprefix("builtins.")


def is_array(value: Any) -> bool:
    """Whether it is an array or a number of numpy, and nothing more, as a masked array is."""
    numpy = sys.modules.get("numpy")  # if there are arrays, somebody imported it
    return numpy is not None and (type(value) is numpy.ndarray or isinstance(value, numpy.generic))
