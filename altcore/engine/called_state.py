"""State in what is called: the variables of hooks, and of a loss and batches that were given.

These are variables of closures, globals that the code names, defaults, and attributes of whoever is
called: no checkpoint has them.
"""

from __future__ import annotations

import dis
import io
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from attrs import define, field
from torch import nn
from torch.optim import Optimizer

from altcore.engine.fingerprints import LIBRARIES, Fingerprint, fingerprint, is_own
from altcore.engine.hidden_state import (
    held_by,
    is_generator,
    is_no_state,
    of_class,
    own_of,
    reached,
    states_more,
    tensors_in,
)
from altcore.quantization import bare_model

TRACKERS = {"aim", "clearml", "comet_ml", "mlflow", "neptune", "swanlab", "trackio", "wandb"}
WATCHERS = TRACKERS | {"logging", "loguru", "rich", "structlog", "tensorboardX", "tqdm"}
"""Libraries that show or keep what they are told: their counts change no training."""
PLAIN = (int, float, str, bool, complex, bytes, type(None))
"""What is replaced, and never changed in its place."""
FUNCTIONS = (FunctionType, MethodType, partial)
NOT_HELD = (type, ModuleType, BuiltinMethodType)
NAMED = (type, FunctionType, BuiltinMethodType)


class Variable(NamedTuple):
    """One that a function or an object holds, as a report calls it."""

    name: str
    value: Any
    owner: Any
    """Who may say that it is no state."""
    is_global: bool = False


@define
class _Code:
    """What code names: of globals, of attributes, and of both and its closure what it sets."""

    reads: set[str] = field(factory=set)
    attributes: set[str] = field(factory=set)
    sets: set[str] = field(factory=set)

    def add(self, other: _Code) -> None:
        """Take the names of other code, too."""
        self.reads |= other.reads
        self.attributes |= other.attributes
        self.sets |= other.sets


@cache
def _named_in(code: CodeType) -> _Code:
    found = _Code()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):
            found.reads.add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR"):
            found.attributes.add(step.argval)
        if step.opname in ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR"):
            found.sets.add(step.argval)
        if isinstance(step.argval, CodeType):
            found.add(_named_in(step.argval))
    return found


def variables(called: Any, own: Container[int]) -> list[Variable]:
    """Return all that a function, a method, a module or another object holds when it is called."""
    held = _Held(called, own)
    return [*held.variables, *(v for owner in held.owners for v in _attributes(owner))]


def variables_of_hook(hook: Any, own: Container[int]) -> list[Variable]:
    """Return what a hook keeps: of objects that hold more only what its code names.

    A method may be of whoever holds the whole loop. A number that it reads, and never sets, is the
    loop's own, as the step.
    """
    held = _Held(hook, own)
    whole = {id(v.value): v for v in held.variables if _is_object(v.value)}
    objects = [*held.owners, *(v.value for v in whole.values())]
    code = held.code_with_methods(objects)
    found = [v for v in held.variables if id(v.value) not in whole]
    for owner in objects:
        named = [v for v in _attributes(owner) if v.name in code.attributes]
        is_named = bool(named) or any(hasattr(type(owner), n) for n in code.attributes)
        found += named if is_named or id(owner) not in whole else [whole[id(owner)]]
    return [v for v in found if type(v.value) not in PLAIN or v.name in code.sets]


class Called(NamedTuple):
    """The parts of something that can be called."""

    functions: list[FunctionType]
    """Those that run, as far as they are of the caller's own module."""
    names: set[str]
    """Of functions and classes that these name or hold."""
    variables: list[Variable]
    """What these hold; of objects only what their code names, of modules all."""
    sets: set[str]
    """The names of variables and attributes that their code sets."""


def parts_of(called: Any, own: Container[int]) -> Called:
    """Return the parts of a function, a method, a module or another object that can be called."""
    held = _Held(called, own)
    code = held.code_with_methods(held.owners)
    of_owners = [v for owner in held.owners for v in _attributes(owner)]
    more = [v for v in of_owners if v.name in code.attributes or isinstance(v.owner, nn.Module)]
    return Called(held.functions, held.names, [*held.variables, *more], code.sets)


class _Held:
    """The functions that are called, what they hold, and the objects whose methods they are."""

    def __init__(self, called: Any, own: Container[int]) -> None:
        self.variables: list[Variable] = []
        self.owners: list[Any] = []
        self.functions: list[FunctionType] = []
        self.names: set[str] = set()
        self.code, self._own = _Code(), own
        left, seen = deque([called]), set[int]()
        while left:
            if id(part := left.popleft()) not in seen:
                seen.add(id(part))
                left.extend(self._look_at(part))

    def _look_at(self, part: Any) -> list[Any]:
        """Note what one holds; returns what it calls."""
        if isinstance(part, partial):
            self._note({"args": part.args, **part.keywords}, part)
            held = (*part.args, *part.keywords.values())
            self._name(held)
            return [part.func, *(x for x in held if isinstance(x, FUNCTIONS))]
        if isinstance(part, MethodType):
            self._note_owner(part.__self__)
            return [part.__func__]
        if isinstance(part, FunctionType):
            if _is_librarys(_module_of(part)):  # as what torch.compile returns
                return [part.__wrapped__] if hasattr(part, "__wrapped__") else []
            return self._look_at_function(part)
        if isinstance(part, BuiltinMethodType):  # as the append of a list
            self._note({type(part.__self__).__name__: part.__self__}, part)
            return []
        self._note_owner(part)
        calls = [type(part).__call__]
        if isinstance(part, nn.Module):
            calls = [type(x).forward for x in part.modules() if not is_own(x, self._own)]
        return [call for call in calls if isinstance(call, FunctionType)]

    def _look_at_function(self, function: FunctionType) -> list[Any]:
        code, named = function.__code__, _named_in(function.__code__)
        self.functions.append(function)
        self.code.add(named)
        of_module = {k: v for k, v in function.__globals__.items() if k in named.reads}
        arguments = code.co_varnames[: code.co_argcount][::-1]
        defaults = zip(arguments, (function.__defaults__ or ())[::-1], strict=False)
        held = {**dict(defaults), **(function.__kwdefaults__ or {}), **vars(function)}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # nothing yet
                held[name] = cell.cell_contents
        self._note({k: v for k, v in of_module.items() if k not in held}, function, is_global=True)
        self._note(held, function)
        self._name((*of_module.values(), *held.values()))
        helpers = [x for x in of_module.values() if _module_of(x) == _module_of(function)]
        return [x for x in (*held.values(), *helpers) if isinstance(x, FUNCTIONS)]

    def _note(self, held: Mapping[str, Any], owner: Any, *, is_global: bool = False) -> None:
        for name, value in held.items():
            if not (isinstance(value, FUNCTIONS + NOT_HELD) or self._is_kept(value)):
                self.variables.append(Variable(name, value, owner, is_global))

    def _name(self, held: Iterable[Any]) -> None:
        self.names |= {x.__qualname__ for x in held if isinstance(x, NAMED)}

    def _note_owner(self, owner: Any) -> None:
        if not (isinstance(owner, type) or self._is_kept(owner)):
            parts = owner.modules() if isinstance(owner, nn.Module) else [owner]
            self.owners += [part for part in parts if not is_own(part, self._own)]

    def _is_kept(self, value: Any) -> bool:
        """Whether checkpoints have it, or nobody trains with it."""
        bare = bare_model(value) if isinstance(value, nn.Module) else value
        return is_own(bare, self._own) or _is_watcher(value)

    def code_with_methods(self, objects: Collection[Any]) -> _Code:
        """Return what the functions name, and the methods of these objects that they call."""
        code, left = self.code, deque(self.code.attributes)
        seen = set(left)
        while left:
            name = left.popleft()
            for method in {getattr(type(x), name, None) for x in objects}:
                if isinstance(method, FunctionType) and not _is_librarys(_module_of(method)):
                    more = _named_in(method.__code__)
                    self.functions.append(method)
                    code.add(more)
                    left.extend(more.attributes - seen)
                    seen |= more.attributes
        return code


def _attributes(owner: Any) -> list[Variable]:
    """Return what an object holds, with what the classes of it that are somebody's own hold."""
    held = {k: v for cls in reversed(type(owner).__mro__) for k, v in of_class(cls).items()}
    held |= held_by(owner)
    if isinstance(owner, nn.Module):  # whose own modules are owners themselves
        held = {k: v for k, v in held.items() if k not in vars(nn.Module())}
        held |= {**owner._parameters, **owner._buffers}
    return [Variable(k, v, owner) for k, v in held.items()]


def _is_object(value: Any) -> bool:
    """Whether it is of a class of somebody's own, that holds attributes."""
    return not _is_librarys(type(value).__module__) and hasattr(value, "__dict__")


def _module_of(part: Any) -> str | None:
    """Return the module in which a function was written, None for what is no function."""
    return part.__globals__.get("__name__") if isinstance(part, FunctionType) else None


def _is_librarys(module: str | None) -> bool:
    return str(module).partition(".")[0] in LIBRARIES | WATCHERS


def _is_watcher(value: Any) -> bool:
    if isinstance(value, io.IOBase):
        return "r" not in str(getattr(value, "mode", "r"))  # it is only written
    module = str(type(value).__module__)
    return module.partition(".")[0] in WATCHERS or module.startswith("torch.utils.tensorboard")


def variables_in(called: Mapping[str, Any], own: Container[int]) -> dict[str, Fingerprint]:
    """Return what the variables of functions, by place, are known by; None is no function."""
    found: dict[str, Fingerprint] = {}
    for place, function in called.items():
        for name, value, owner, _ in [] if function is None else variables(function, own):
            if not (is_no_state(name, owner) or is_no_state(name, function)):
                label = f"{name} of {place}"
                found[label] = (*found.get(label, ()), *fingerprint(value, own))
    return {label: known for label, known in found.items() if known}


def variables_of_methods(
    owners: Iterable[Any], own: Container[int], *, with_generators: bool = True
) -> dict[str, Fingerprint]:
    """Return what methods of somebody's own classes keep as hooks do, by what it is called.

    A class that a function makes may keep its state in the function's variables, and any class in
    globals. Whoever states more than torch's modules and optimizers do keeps none.
    """
    found: dict[str, Fingerprint] = {}
    seen: set[int] = set()
    stating = [owner for owner in owners if not states_more(owner)]
    classes = {cls: owner for owner in stating for cls in type(owner).__mro__}
    for cls, whole in classes.items():
        if _is_librarys(cls.__module__):
            continue
        for method in _methods(cls):
            for name, value, owner, _ in variables_of_hook(method, own):
                if id(value) in seen or (is_generator(value) and not with_generators):
                    continue
                if any(is_no_state(name, said_by) for said_by in (owner, cls, whole)):
                    continue
                if type(value) not in PLAIN:  # several methods may have it
                    seen.add(id(value))
                label = f"{name} of {cls.__name__}.{method.__name__}"
                found[label] = (*found.get(label, ()), *fingerprint(value, own))
    return {label: known for label, known in found.items() if known}


def _methods(cls: type) -> Iterator[FunctionType]:
    for value in vars(cls).values():
        for function in (getattr(value, "__func__", value), getattr(value, "fget", None)):
            if isinstance(function, FunctionType):
                yield function


def untrained(loss: Any, model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the names of what gets gradients in a loss, and no optimizer has."""
    if loss is None:
        return []
    groups = (group["params"] for group in optimizer.param_groups)
    own = {id(p) for params in (model.parameters(), *groups) for p in params}
    found = (
        name
        for name, value, *_ in variables(loss, own_of([*model.modules(), optimizer]))
        for x in tensors_in([*reached([value]).values()])
        if id(x) not in own and x.is_leaf and x.grad is not None
    )
    return list(dict.fromkeys(found))
