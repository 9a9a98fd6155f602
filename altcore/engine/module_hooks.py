"""Hooks, and functions in the place of methods: what another process compares of them.

They change what a model computes or how it is trained, and no checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import partial
from hashlib import sha256
from importlib.util import MAGIC_NUMBER
from typing import Any

from torch import nn
from torch.optim import Optimizer

from altcore.engine.called_state import WATCHERS
from altcore.engine.function_identity import function_identity
from altcore.engine.hook_state import name_of_hook
from altcore.log import log
from altcore.quantization import PatchedForward
from altcore.recipes import some
from altcore.runs import CODE, HOOKS

OTHERS = WATCHERS | {"altcore", "torch"}
"""Whose hooks come with what they do, as a quantization or a weight norm, or change nothing."""


def hook_identity(whole: nn.Module | Optimizer, own: Container[int] = ()) -> dict[str, Any]:
    """Return the names of hooks by their kind and place, and the digest of the code of all.

    Args:
        whole: whose hooks they are.
        own: ids and addresses of what the model has, as of `function_identity`.
    """
    names: dict[str, list[str]] = {}
    codes: list[str] = []
    for place, called in _called_in(whole):
        if _module_of(called).partition(".")[0] not in OTHERS:
            names.setdefault(place, []).append(name_of_hook(called))
            codes += function_identity(called, own)[CODE].values()
    code = sha256("\n".join(codes).encode()).hexdigest()
    return {
        HOOKS: {place: ", ".join(found) for place, found in names.items()},
        CODE: {MAGIC_NUMBER.hex(): code} if codes else {},
    }


def warn_of_other_hooks(was: Mapping[str, Any], now: Mapping[str, Any], label: str) -> None:
    """Warn if a model has other hooks than the one whose state was saved."""
    old, new = was[HOOKS], now[HOOKS]
    others = [
        f"{place} were {old.get(place, 'none')}, and are {new.get(place, 'none')}"
        for place in dict.fromkeys([*old, *new])
        if old.get(place) != new.get(place)
    ]
    versions = was[CODE].keys() & now[CODE].keys()
    if not others and any(was[CODE][v] != now[CODE][v] for v in versions):
        others = [f"the code of {some(sorted(new))} is another one"]
    if others:
        told = f"hooks of {label} are not those with which the state was saved"
        log.warning(told, hooks=some(others))


def _called_in(whole: nn.Module | Optimizer) -> Iterator[tuple[str, Any]]:
    """Yield what is called beside the methods of the classes, and by what.

    Of an optimizer hooks alone: schedulers put functions in the place of its methods.
    """
    if isinstance(whole, Optimizer):
        yield from _hooks_of(whole, "it")
        return
    for name, module in whole.named_modules():
        where = name or "the model"
        yield from _hooks_of(module, where)
        yield from _replaced_in(module, where)
    for name, p in whole.named_parameters():
        for hooks in (p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None)):
            yield from ((f"hooks of {name}", hook) for hook in (hooks or {}).values())


def _hooks_of(owner: nn.Module | Optimizer, where: str) -> Iterator[tuple[str, Any]]:
    for key, held in vars(owner).items():
        if "hooks" in key and isinstance(held, Mapping):
            kind = f"{key.strip('_')} of {where}"
            yield from ((kind, hook) for hook in held.values() if callable(hook))


def _replaced_in(module: nn.Module, where: str) -> Iterator[tuple[str, Any]]:
    for key, held in vars(module).items():
        method = getattr(type(module), key, None)
        if callable(held) and callable(method):
            own = held.layer.own_forward if isinstance(held, PatchedForward) else held
            if getattr(own, "__func__", None) is not method:
                yield f"{key} of {where}", own


def _module_of(called: Any) -> str:
    while isinstance(called, partial):
        called = called.func
    return str(getattr(called, "__module__", None) or type(called).__module__)
