"""A digest of an object that changes whenever the object's state does, at every depth.

Pickle knows what the state of an object is: slots, keys, partial functions, and what the object
itself says of it. Here it writes nothing: what it would write is hashed.
"""

from __future__ import annotations

import copyreg
import ctypes
import io
import marshal
import pickle
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import count
from operator import length_hint
from types import FunctionType, GeneratorType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Fingerprint = tuple[Any, ...]
"""Of an object: equal as long as its state is the same."""
MOST = 2**23
"""Bytes of an object that are hashed; of a larger one these and the lengths of its parts."""
LOOKED_UP = "looked up"
LARGE = 2**16
"""Elements of a tensor or an array above which not all are looked at."""
_news = count()


def fingerprint(value: Any, own: Container[int] = ()) -> Fingerprint:
    """Return what a value is known by, () for one that is ``own``.

    Args:
        value: anything; tensors and arrays are known by their elements, functions by their code and
            the variables in it, generators and iterators by how far they are.
        own: the ids of objects and the addresses of memory that checkpoints have.
    """
    if type(value) in (int, float, str, bool, type(None)):
        return (type(value), repr(value))
    if is_own(value, own):
        return ()
    file = _Hash()
    try:
        _Walk(file, own).dump(value)
    except Exception as error:  # others' code is called
        return (type(error), file.sha256.hexdigest(), length_hint(value), *_lengths(value))
    return (LOOKED_UP if _holds_only(value, own) else None, file.sha256.hexdigest())


def is_own(value: Any, own: Container[int]) -> bool:
    """Whether a value is altcore's, or checkpoints have it, by its id or its memory's address."""
    is_kept = type(value) in TENSORS and memory(value) in own
    return is_kept or id(value) in own or is_altcores(value)


def _holds_only(value: Any, own: Container[int], depth: int = 4) -> bool:
    """Whether a value is a collection of what checkpoints have, as of a model's parameters."""
    if not isinstance(value, list | tuple | set | dict) or not value or not depth:
        return False
    parts = value.values() if isinstance(value, dict) else value
    return all(is_own(part, own) or _holds_only(part, own, depth - 1) for part in parts)


def is_looked_up(before: Fingerprint | None, now: Fingerprint) -> bool:
    """Whether None gave way to a collection of what checkpoints have: looked up once, and kept."""
    return before == fingerprint(None) and now[0] == LOOKED_UP


def _lengths(value: Any) -> list[int]:
    return [length_hint(held) for held in getattr(value, "__dict__", {}).values()]


def is_altcores(made: Any) -> bool:
    """Whether a function, a method or an object is of altcore's own code."""
    module = getattr(made, "__module__", None) or type(made).__module__
    return str(module).partition(".")[0] == "altcore"


def memory(x: Tensor) -> int:
    """Return where the memory of a tensor begins; 0 if it has none, or several."""
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # sparse, lazy, or a wrapper of others
        return 0


TENSORS = (Tensor, nn.Parameter)
LIBRARIES = sys.stdlib_module_names | {"altcore", "numpy", "torch"}
"""Whose functions keep no state of a run in their variables."""


class _Hash:
    """A file of which only the hash is kept."""

    def __init__(self) -> None:
        self.sha256, self.left = sha256(), MOST

    def write(self, data: Any) -> None:
        self.sha256.update(data)
        self.left -= memoryview(data).nbytes
        if self.left < 0:
            raise OverflowError


Reduced = tuple[Any, ...]


class _Walk(pickle.Pickler):
    """Says of each object what it is made of, and never that it cannot be pickled."""

    def __init__(self, file: Any, own: Container[int]) -> None:
        super().__init__(file, protocol=4)
        self._own = own

    def reducer_override(self, value: Any) -> Any:
        if value is str or value is tuple or type(value) in copyreg.dispatch_table:
            return NotImplemented
        if id(value) in self._own or isinstance(value, type | ModuleType) or is_altcores(value):
            return _named(value, id(value))
        for kind, reduce in KINDS:
            if isinstance(value, kind) and (reduced := reduce(value, self._own)) is not None:
                return reduced
        if type(value).__name__ == "ndarray" and not value.dtype.hasobject:
            some = value.flat[:: 1 + value.size // LARGE]
            return _named(value, str(value.dtype), value.shape, state=some.tobytes())
        with suppress(Exception):
            reduced = value.__reduce_ex__(4)
            return _named(value, reduced) if isinstance(reduced, str) else reduced
        held = getattr(value, "__dict__", None)
        return _named(value, None if held else id(value), state=held or None)


def _named(value: Any, *about: Any, state: Any = None) -> Reduced:
    """Return what pickle writes: what an object is, and then what it holds, itself perhaps."""
    owner = value if isinstance(value, type | FunctionType) else type(value)
    name = f"{owner.__module__}.{owner.__qualname__} {about!r}"
    return (str, (name,)) if state is None else (str, (name,), state)


def _of_tensor(x: Tensor, own: Container[int]) -> Reduced:
    about = (x.dtype, x.shape, x.device.type)
    with suppress(RuntimeError, NotImplementedError):
        if memory(x) in own:
            return _named(x, *about, memory(x), x.storage_offset())
        if type(x) in TENSORS and x.layout == torch.strided and not x.is_meta:
            some = x.detach().reshape(-1)[:: 1 + x.numel() // LARGE]
            some = some.resolve_conj().resolve_neg().cpu().contiguous()
            held = ctypes.string_at(some.data_ptr(), some.numel() * some.element_size())
            return _named(x, *about, _version(x) if x.numel() > LARGE else 0, state=held)
    return _named(x, *about, _version(x))


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _of_generator_of_torch(generator: torch.Generator, _: Container[int]) -> Reduced:
    return _named(generator, state=bytes(generator.get_state().tolist()))


def _of_view(view: memoryview, _: Container[int]) -> Reduced:
    return _named(view, state=view.tobytes())


def _of_function(function: FunctionType, _: Container[int]) -> Reduced:
    if str(function.__module__).partition(".")[0] in LIBRARIES:
        return _named(function)
    code, of_module = function.__code__, function.__globals__
    cells = [_held_in(cell) for cell in function.__closure__ or ()]
    named = [of_module[name] for name in code.co_names if name in of_module]
    variables = [x for x in named if not (callable(x) or isinstance(x, ModuleType))]
    defaults = (function.__defaults__, function.__kwdefaults__, vars(function))
    # Version 2 of marshal writes the same for the same code.
    return _named(function, state=(marshal.dumps(code, 2), cells, variables, defaults))


def _held_in(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


def _of_generator(generator: GeneratorType[Any, Any, Any], _: Container[int]) -> Reduced:
    frame = generator.gi_frame
    held = frame and (frame.f_lasti, dict(frame.f_locals), generator.gi_yieldfrom)
    return _named(generator, generator.__qualname__, state=held)


def _of_iterator(iterator: Iterator[Any], _: Container[int]) -> Reduced | None:
    """Return how far it is: a new one, equal to no other, if it does not tell."""
    if isinstance(iterator, count):
        return _named(iterator, repr(iterator))
    if type(iterator).__module__ not in ("builtins", "itertools"):
        return None
    left = length_hint(iterator, -1)
    return _named(iterator, id(iterator), left if left >= 0 else next(_news))


def _of_file(file: io.IOBase, _: Container[int]) -> Reduced:
    """Return where in an open file it is; new if it does not tell, as one that is iterated."""
    with suppress(OSError, ValueError):
        return _named(file, id(file), file.tell())
    return _named(file, id(file), file.closed or next(_news))


KINDS: tuple[tuple[type, Callable[[Any, Container[int]], Reduced | None]], ...] = (
    (Tensor, _of_tensor),
    (torch.Generator, _of_generator_of_torch),
    (memoryview, _of_view),
    (FunctionType, _of_function),
    (GeneratorType, _of_generator),
    (io.IOBase, _of_file),
    (Iterator, _of_iterator),
)
