"""Hooks that torch calls for all modules, optimizers and tensors of a process, and its modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from altcore.engine.fingerprints import is_altcores
from altcore.engine.hook_state import name_of_hook
from altcore.engine.trespass import Entries

OWNERS = ((modules, "_global_", "modules"), (optimizers, "_global_optimizer_", "optimizers"))


def registries() -> Iterator[tuple[str, str, dict[int, Any]]]:
    """Yield each dictionary of global hooks: their kind, whose they are, and the hooks by id."""
    for owner, prefix, whose in OWNERS:
        for name, held in vars(owner).items():
            if name.startswith(prefix) and isinstance(held, dict):
                yield name.removeprefix(prefix).replace("_", " "), f"of all {whose}", held


class GlobalHooks(Entries):
    """Hooks of all modules or optimizers, without altcore's own: loops may add or drop these."""

    def __init__(self, label: str, held: dict[int, Any]) -> None:
        super().__init__(label, held, of_pass=True)
        self._before = self._others(held)

    def _others(self, held: dict[int, Any]) -> dict[int, Any]:
        return {key: hook for key, hook in held.items() if not is_altcores(hook)}

    def is_changed(self) -> bool:
        """Whether one is new, gone or another one."""
        return bool(self._held or self._before) and self._others(self._held) != self._before

    def put_back(self) -> bool:
        """Fill it with what it held, in that order, and with altcore's own."""
        own = {key: hook for key, hook in self._held.items() if is_altcores(hook)}
        self._held.clear()
        self._held.update(self._before | own)
        return True


def about_global_hooks(whole: str = "the run") -> list[str]:
    """Tell of hooks and modes that the process has, and neither torch nor altcore brought.

    They are no part of the ``whole``.
    """
    found = [(f"{kind} {whose}", list(held.values())) for kind, whose, held in registries()]
    saving = torch._C._autograd._top_saved_tensors_default_hooks(True) or ()
    found += [
        ("hooks of saved tensors", list(saving)),
        ("function modes", _get_current_function_mode_stack()),
        ("dispatch modes", _get_current_dispatch_mode_stack()),
    ]
    named = {
        kind: dict.fromkeys(name_of_hook(hook) for hook in held if _is_users(hook))
        for kind, held in found
    }
    told = [f"{kind} ({', '.join(names)})" for kind, names in named.items() if names]
    if not told:
        return []
    return [
        f"torch has hooks or modes of the process that are no part of {whole}: {', '.join(told)}: "
        "a process without them may compute other bits"
    ]


def _is_users(hook: Any) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    is_torchs = str(module).partition(".")[0] == "torch"
    return not (isinstance(hook, bool) or is_torchs or is_altcores(hook))
