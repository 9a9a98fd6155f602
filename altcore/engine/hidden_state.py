"""State that a model or an optimizer keeps where its ``state_dict`` does not look: in attributes.

No checkpoint has it, and a run that goes on begins it anew: so it is named.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Set
from hashlib import sha256
from itertools import count
from numbers import Number
from operator import length_hint
from types import GeneratorType
from typing import Any

import torch
from attrs import field, fields, frozen, has
from torch import Tensor, nn
from torch.optim import Optimizer

from altcore.engine.plugins import Plugin

Known = tuple[Any, ...]
"""What an attribute is known by: equal as long as it is the same."""


@frozen
class Held:
    """An object, equal to itself alone; it is kept, so that no other takes its place."""

    itself: Any = field(eq=id)


def attributes(model: nn.Module, optimizer: Optimizer) -> dict[str, Known]:
    """Return the attributes in which state may be hidden, by what they are called.

    These are numbers, strings, arrays, tensors that are neither parameters nor buffers, random
    generators and iterators, also within mappings, sequences, sets and objects; of
    modules and optimizers that state more than torch's do, none: they know what they need. Of each
    module there are its class, and functions that take the place of its methods, too.
    """
    own = {memory(x) for x in (*model.parameters(), *model.buffers())}
    owners = {f"module {name}" if name else "the model": m for name, m in model.named_modules()}
    found: dict[str, Known] = {}
    for place, owner in {**owners, "the optimizer": optimizer}.items():
        found |= {f"{key} of {place}": _known_by(v, own) for key, v in _beside(owner).items()}
    for place, module in owners.items():
        found[f"the class of {place}"] = (type(module),)
        for key, value in vars(module).items():
            if callable(value) and not isinstance(value, nn.Module) and not is_altcores(value):
                found[f"{key} of {place}"] = (Held(value),)
    return {label: known for label, known in found.items() if known}


def plugin_attributes(plugins: Iterable[Plugin], workload: Any) -> dict[str, Known]:
    """Return the attributes in which plugins and the workload may hide state.

    A plugin with a ``state_dict`` has none. A workload seeds its generators anew for each batch.
    """
    owners = {f"{p.kind} {p.name}": p.instance for p in plugins}
    found = {
        f"{key} of {place}": _known_by(value, ())
        for place, owner in {**owners, "the workload": workload}.items()
        if not hasattr(owner, "state_dict")
        for key, value in _held_by(owner).items()
        if not key.startswith("_") and not (owner is workload and _is_generator(value))
    }
    return {label: known for label, known in found.items() if known}


def is_altcores(made: Any) -> bool:
    """Whether a function, a method or an object is of altcore's own code."""
    module = getattr(made, "__module__", None) or type(made).__module__
    return str(module).partition(".")[0] == "altcore"


def optimizer_parts(optimizer: Optimizer) -> list[str]:
    """Return the attributes of an optimizer that hold another optimizer or a generator.

    An optimizer that wraps another one, as SAM does, or has a generator has to put them into a
    `state_dict` of its own.
    """
    kinds = (Optimizer, torch.Generator)
    return [name for name, value in _beside(optimizer).items() if isinstance(value, kinds)]


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the attributes of an optimizer with tensors that are neither the model's nor state.

    Slow weights are such, if they are not in the optimizer's ``state``.
    """
    state = (optimizer.param_groups, list(optimizer.state.values()))
    known = {id(x) for x in (*model.parameters(), *model.buffers(), *_tensors(state))}
    known |= {id(p.grad) for p in model.parameters()}
    return [
        f"{name} of the optimizer"
        for name, value in _beside(optimizer).items()
        if any(id(x) not in known for x in _tensors(value))
    ]


def _beside(owner: nn.Module | Optimizer) -> dict[str, Any]:
    """Return the attributes that the state_dict of every module or optimizer leaves out.

    A name that begins with an underscore is a cache's, by convention, or torch's.
    """
    if any(_is_overridden(owner, name) for name in STATING):
        return {}
    held = vars(owner).items()
    found = {k: v for k, v in held if not k.startswith("_") and k not in OF_EVERY}
    is_torchs = type(owner).__module__.startswith("torch.")
    if is_torchs and isinstance(owner, nn.Module):  # tensors are made of parameters in each pass
        return {k: v for k, v in found.items() if type(v) in (int, float)}
    return found


STATING = ("state_dict", "get_extra_state", "_save_to_state_dict")
"""Methods with which a module or an optimizer says more than torch knows of it."""
OF_EVERY = ("training", "state", "param_groups", "defaults")


def _is_overridden(owner: nn.Module | Optimizer, name: str) -> bool:
    base = nn.Module if isinstance(owner, nn.Module) else Optimizer
    return getattr(type(owner), name, None) is not getattr(base, name, None)


def _known_by(value: Any, own: Container[int], depth: int = 4) -> Known:
    """Return what a value is known by, () if no state is in it."""
    if isinstance(value, Number | str | bytes):
        return (type(value), repr(value))
    if isinstance(value, Tensor):
        if value.grad_fn is not None or memory(value) in own:
            return ()
        return (Held(value), 0 if value.is_inference() else value._version)
    if isinstance(value, torch.Generator):
        return (bytes(value.get_state().tolist()),)
    if isinstance(value, random.Random):
        return (value.getstate(),)
    if _is_generator(value):  # of numpy
        held = getattr(value, "bit_generator", None)
        return (repr(held.state if held is not None else value.get_state(legacy=False)),)
    if type(value).__name__ == "ndarray":
        return _known_array(value)
    if isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools"):
        return _known_place(value)
    if isinstance(value, nn.Module | Optimizer) or callable(value) or is_altcores(value):
        return ()
    if hasattr(value, "__dict__") or has(type(value)):  # an object of a class of somebody's own
        value = _held_by(value)
    if isinstance(value, Mapping | list | tuple | deque | Set) and depth:
        if len(value) > LARGE:  # data
            return (len(value),)
        parts = value.values() if isinstance(value, Mapping) else value
        known = [_known_by(part, own, depth - 1) for part in parts]
        if isinstance(value, Set):  # which has no order
            known.sort(key=repr)
        return (len(known), *known) if any(known) or not known else ()
    return ()


def _is_generator(value: Any) -> bool:
    """Whether a value draws random numbers: of torch, Python or numpy."""
    is_numpys = hasattr(value, "bit_generator") or type(value).__name__ == "RandomState"
    return isinstance(value, torch.Generator | random.Random) or is_numpys


def _known_array(array: Any) -> Known:
    """Return what an array of numpy is known by: its bytes, of a large one some in each part."""
    some = array.flat[:: 1 + array.size // LARGE]
    return (str(array.dtype), array.shape, sha256(some.tobytes()).digest())


LARGE = 2**16
"""Numbers of an array, or parts of a container, above which not all are looked at."""


def _known_place(iterator: Iterator[Any]) -> Known:
    """Return how far an iterator is: a new object, equal to no other, if it does not tell."""
    if isinstance(iterator, GeneratorType):
        return (Held(iterator), iterator.gi_frame and iterator.gi_frame.f_lasti)
    if isinstance(iterator, count):
        return (repr(iterator),)
    left = length_hint(iterator, -1)
    return (Held(iterator), left if left >= 0 else object())


def _held_by(made: Any) -> dict[str, Any]:
    """Return the attributes of an object, with those in the slots of an attrs class."""
    names = [f.name for f in fields(type(made))] if has(type(made)) else []
    own = {name: getattr(made, name) for name in names if hasattr(made, name)}
    return {**own, **getattr(made, "__dict__", {})}


def memory(x: Tensor) -> int:
    """Return where the memory of a tensor begins; 0 if it has none of its own."""
    is_dense = x.layout == torch.strided and not nn.parameter.is_lazy(x)
    return x.untyped_storage().data_ptr() if is_dense else 0


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in a value: of modules, mappings and sequences, some levels deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping | list | tuple | set | deque) and depth:
        # Keys, too, as those of a weak mapping by parameter, are only names.
        for part in [*value.values()] if isinstance(value, Mapping) else [*value]:
            yield from _tensors(part, depth - 1)
