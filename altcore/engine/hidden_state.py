"""State that a model or an optimizer keeps where its ``state_dict`` does not look: in attributes.

No checkpoint has it, and a run that goes on begins it anew: so it is named.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from itertools import islice
from types import MemberDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from altcore.engine.fingerprints import (
    LIBRARIES,
    Fingerprint,
    fingerprint,
    is_altcores,
    is_looked_up,
    memory,
)
from altcore.engine.labels import within
from altcore.log import log
from altcore.recipes import some

MANY = 1000
"""How many objects are looked at within what a loop keeps."""
NOT_STATE = "not_state"
"""The attribute by which somebody says what is made anew."""
HOOKS = "hooks"
"""What hooks are called as part of an owner; they are no attribute."""


def no_state(labels: Sequence[str]) -> str:
    """Return how to say that the first of these is no state; nothing if none is an attribute.

    >>> no_state(["aux of the model"])[-69:]
    'say so on the function, the object or its class: not_state = ("aux",)'
    >>> no_state(["hooks of the model", "a scheduler"])
    ''
    """
    for label in labels:
        name, _, owner = label.partition(" of ")
        if owner and name.isidentifier() and name != HOOKS:
            said = f'not_state = ("{name}",)'
            when = f"If each step writes {label} before it reads it"
            whom = "the function, the object or its class"
            return f"{when}, say so on {whom}: {said}"
    return ""


def warn_of_hidden(labels: Sequence[str]) -> None:
    """Warn of the state of a loop that no checkpoint has, if there is some."""
    if labels:
        told = f"state that no checkpoint has begins anew, so keep it yourself: {some(labels)}"
        hint = no_state(labels)
        log.warning(told, names=labels, **({"hint": hint} if hint else {}))


def owners_in(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, nn.Module | Optimizer]:
    """Return modules, with those in them, and optimizers by what they are called: each once."""
    found: dict[int, tuple[str, nn.Module | Optimizer]] = {}
    for label, whole in modules.items():
        for name, module in whole.named_modules():
            place = within(f"module {name}", label) if name else label
            found.setdefault(id(module), (place, module))
    return {**dict(found.values()), **optimizers}


def attributes(
    owners: Mapping[str, nn.Module | Optimizer], kept: Iterable[Any] = ()
) -> dict[str, Fingerprint]:
    """Return the attributes in which state may be hidden, by what they are called.

    These are all that hold something else than the owners, their parameters and buffers, and what
    is ``kept`` besides; of modules and optimizers that state more than torch's do, none: they know
    what they need. Of each module there are its class, with the attributes of the class, and
    functions that take the place of its methods, too.
    """
    own = own_of(owners.values(), kept)
    found = {
        f"{key} of {place}": fingerprint(value, own)
        for place, owner in owners.items()
        for key, value in _beside(owner).items()
    }
    modules = {place: x for place, x in owners.items() if isinstance(x, nn.Module)}
    for place, module in modules.items():
        found[f"the class of {place}"] = fingerprint(type(module))
        found |= _attributes_of_tensors(place, module, own)
    found |= _attributes_of_classes(owners.values(), own)
    return {label: known for label, known in found.items() if known}


def own_of(owners: Iterable[nn.Module | Optimizer], kept: Iterable[Any] = ()) -> set[int]:
    """Return the ids and the addresses of what checkpoints have, wherever it is met.

    ``kept`` is what they have besides: with what it holds.
    """
    held = [*owners]
    parts = [x for x in reached(kept).values() if not isinstance(x, REPLACED)]
    tensors = {memory(x) for x in (*_tensors_of(held), *tensors_in(parts))} - {0}
    return tensors | {id(x) for x in (*held, *parts)}


def _tensors_of(owners: Iterable[nn.Module | Optimizer]) -> Iterator[Tensor]:
    """Yield the parameters and the buffers that are a module's own."""
    for owner in owners:
        if isinstance(owner, nn.Module):
            yield from (*owner.parameters(recurse=False), *owner.buffers(recurse=False))


def attributes_of_others(
    owners: Mapping[str, Any], own: Set[int], *, with_generators: bool = True
) -> dict[str, Fingerprint]:
    """Return the attributes in which plugins and the workload may hide state.

    Whoever has a ``state_dict`` hides none. Their classes may have some, too.
    """
    hiding = {place: owner for place, owner in owners.items() if not hasattr(owner, "state_dict")}
    found = {
        f"{key} of {place}": fingerprint(value, own)
        for place, owner in hiding.items()
        for key, value in held_by(owner).items()
        if not is_no_state(key, owner) and (with_generators or not is_generator(value))
    }
    found |= _attributes_of_classes(hiding.values(), own)
    return {label: known for label, known in found.items() if known}


def _attributes_of_tensors(place: str, module: nn.Module, own: Set[int]) -> dict[str, Fingerprint]:
    """Return what hangs on a module's parameters and buffers, such as ``p.ema``."""
    kinds = (("parameter", module.named_parameters), ("buffer", module.named_buffers))
    return {
        f"{key} of {kind} {name} of {place}": fingerprint(value, own)
        for kind, named in kinds
        for name, tensor in named(recurse=False)
        for key, value in vars(tensor).items()
        if not (key.startswith("_dynamo") or is_no_state(key, tensor))  # torch.compile's own
    }


def _attributes_of_classes(owners: Iterable[Any], own: Set[int]) -> dict[str, Fingerprint]:
    found: dict[tuple[type, str], Fingerprint] = {}
    for owner in owners:
        for cls in type(owner).__mro__:
            for key, value in of_class(cls).items():
                if not ((cls, key) in found or is_no_state(key, owner)):
                    found[cls, key] = fingerprint(value, own)
    return {f"{key} of class {cls.__name__}": known for (cls, key), known in found.items()}


def changed_in(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> list[str]:
    """Return the attributes that are new, or other ones."""
    return [
        label
        for label, known in now.items()
        if known != before.get(label) and not is_looked_up(before.get(label), known)
    ]


def is_no_state(name: str, owner: Any) -> bool:
    """Whether an attribute is said to be made anew: by its name, or by ``not_state`` beside it."""
    said = getattr(owner, NOT_STATE, ())
    names = said if isinstance(said, tuple | list | Set) else (said,)
    return "cache" in name.lower() or name == NOT_STATE or name in names


def optimizer_parts(optimizer: Optimizer) -> list[str]:
    """Return the attributes of an optimizer that hold another optimizer or a generator.

    An optimizer that wraps another one, as SAM does, or has a generator has to put them into a
    `state_dict` of its own.
    """
    kinds = (Optimizer, torch.Generator)
    return [name for name, value in _beside(optimizer).items() if isinstance(value, kinds)]


def optimizer_tensors(owners: Mapping[str, nn.Module | Optimizer]) -> list[str]:
    """Return the attributes of optimizers with tensors that are neither a module's nor state.

    Slow weights are such, if they are not in the optimizer's ``state``.
    """
    own = [*_tensors_of(owners.values())]
    optimizers = {label: x for label, x in owners.items() if isinstance(x, Optimizer)}
    state = [(x.param_groups, list(x.state.values())) for x in optimizers.values()]
    known = {id(x) for x in (*own, *tensors_in(state, depth=5))}
    known |= {id(x.grad) for x in own if x.is_leaf}
    return [
        f"{name} of {label}"
        for label, optimizer in optimizers.items()
        for name, value in _beside(optimizer).items()
        if any(id(x) not in known for x in tensors_in(value))
    ]


def _beside(owner: nn.Module | Optimizer) -> dict[str, Any]:
    """Return the attributes that the state_dict of every module or optimizer leaves out."""
    held = {k: v for k, v in vars(owner).items() if k not in _of_every()}
    held = {k: v for k, v in held.items() if not is_no_state(k, owner)}
    if isinstance(owner, Optimizer):
        held.pop("step", None)  # a scheduler's, which counts the calls
    is_module, is_torchs = isinstance(owner, nn.Module), _is_torchs(type(owner))
    functions = {k: v for k, v in held.items() if is_module and callable(v)}
    if states_more(owner):
        return functions
    if is_torchs and is_module:  # tensors are made of parameters in each pass
        held = {k: v for k, v in held.items() if isinstance(v, PLAIN)} | functions
    return {k: v for k, v in held.items() if not (is_torchs and k.startswith("_"))}


def of_class(cls: type) -> dict[str, Any]:
    """Return the values in the attributes of a class of somebody's own; none of a library's."""
    if cls.__module__.partition(".")[0] in LIBRARIES:
        return {}
    return {
        key: value
        for key, value in vars(cls).items()
        if not (key.startswith("__") or hasattr(value, "__get__"))
    }


def _is_torchs(cls: type) -> bool:
    if cls.__module__ == parametrize.__name__ and cls.__name__.startswith("Parametrized"):
        cls = cls.__bases__[0]  # torch makes a class of the module's own
    return cls.__module__.partition(".")[0] == "torch"


PLAIN = (int, float, str, bool)
REPLACED = (*PLAIN, complex, bytes, tuple, type, type(None))
"""What is never changed in its place: one may be in several places."""
STATING = ("state_dict", "get_extra_state", "_save_to_state_dict")
"""Methods with which a module or an optimizer says more than torch knows of it."""
ADDED = {"_opt_called", "_step_count", "_wrapped_by_lr_sched", "_need_device_dtype_check_for_fused"}
"""Attributes that optimizers and schedulers of torch add."""


@cache  # the first optimizer of a process imports torch._dynamo, which takes a second
def _of_every() -> set[str]:
    """Return the attributes of every module or optimizer."""
    return {*vars(nn.Module()), *vars(torch.optim.SGD([torch.zeros(1)])), *ADDED}


def states_more(owner: Any) -> bool:
    """Whether a module, an optimizer or anything else says itself what its state is."""
    if not isinstance(owner, nn.Module | Optimizer):
        return hasattr(owner, "state_dict")
    return any(_is_overridden(owner, name) for name in STATING)


def _is_overridden(owner: nn.Module | Optimizer, name: str) -> bool:
    base = nn.Module if isinstance(owner, nn.Module) else Optimizer
    return getattr(type(owner), name, None) is not getattr(base, name, None)


def is_generator(value: Any) -> bool:
    """Whether a value draws random numbers: of torch, Python or numpy."""
    is_numpys = hasattr(value, "bit_generator") or type(value).__name__ == "RandomState"
    return isinstance(value, torch.Generator | random.Random) or is_numpys


def held_by(made: Any) -> dict[str, Any]:
    """Return the attributes of an object, with those in its slots."""
    slots = {
        name
        for cls in type(made).__mro__
        for name, value in vars(cls).items()
        if isinstance(value, MemberDescriptorType) and not name.startswith("__")
    }
    own = {name: getattr(made, name) for name in sorted(slots) if hasattr(made, name)}
    return {**own, **getattr(made, "__dict__", {})}


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in a value: of modules, mappings and sequences, some levels deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping | list | tuple | set | deque) and depth:
        # Keys, too, as those of a weak mapping by parameter, are only names.
        for part in [*value.values()] if isinstance(value, Mapping) else [*value]:
            yield from tensors_in(part, depth - 1)


def reached(parts: Iterable[Any]) -> dict[int, Any]:
    """Return objects and what they hold, in attributes and containers, by id: the first `MANY`.

    What optimizers, modules, tensors and altcore's own objects hold is left out.
    """
    found: dict[int, Any] = {}
    left = deque(islice(parts, MANY))
    while left and len(found) < MANY:
        part = left.popleft()
        if id(part) not in found:
            found[id(part)] = part
            left.extend(islice(_within(part), MANY))
    return found


def _within(part: Any) -> Iterable[Any]:
    if isinstance(part, Mapping):
        return part.values()
    if isinstance(part, list | tuple | set | deque):
        return part
    is_leaf = isinstance(part, Optimizer | nn.Module | Tensor | type)
    return () if is_leaf or is_altcores(part) else held_by(part).values()
