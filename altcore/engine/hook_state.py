"""The hooks of modules and optimizers, and the state that they keep in their variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from attrs import field, frozen
from torch import nn
from torch.optim import Optimizer

from altcore.engine.called_state import variables_of_hook
from altcore.engine.fingerprints import Fingerprint, fingerprint, is_altcores
from altcore.engine.hidden_state import changed_in, is_no_state, own_of, owners_in
from altcore.engine.labels import parameter_names


def hooks_of(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[tuple[str, int], Any]:
    """Return the hooks on modules, parameters and optimizers that are not altcore's own.

    By the name of what each is on, and its id.
    """
    owners, names = owners_in(modules, optimizers), parameter_names(modules)
    held = [
        (n, x) for n, owner in owners.items() for key, x in vars(owner).items() if "hooks" in key
    ]
    for p in chain.from_iterable(module.parameters() for module in modules.values()):
        on_tensor = (p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None))
        held += [(names[id(p)], hooks) for hooks in on_tensor]
    return {
        (name, id(hook)): hook
        for name, hooks in held
        for hook in (hooks.values() if isinstance(hooks, Mapping) else ())
        if not is_altcores(hook)
    }


@frozen(eq=False)
class Hooks:
    """The hooks of modules and optimizers at one moment, and what their variables were."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    kept: Sequence[Any] = ()
    """What checkpoints have besides."""
    held: Mapping[tuple[str, int], Any] = field(init=False)
    known: Mapping[str, Fingerprint] = field(init=False)
    _labels: dict[tuple[int, str], str] = field(init=False, factory=dict)
    """Of a variable: the owner's id and its name."""

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "held", hooks_of(self.modules, self.optimizers))
        object.__setattr__(self, "known", self._variables(self.held))

    def late(self) -> list[str]:
        """Return what has other hooks now."""
        now = hooks_of(self.modules, self.optimizers)
        return sorted({name for name, _ in now.keys() - self.held.keys()})

    def changed(self) -> list[str]:
        """Return the variables that changed in those hooks that are still there."""
        now = hooks_of(self.modules, self.optimizers)
        still = {place: hook for place, hook in self.held.items() if place in now}
        return changed_in(self.known, self._variables(still))

    def _variables(self, hooks: Mapping[tuple[str, int], Any]) -> dict[str, Fingerprint]:
        """Return what variables of hooks are known by: of one that many hooks have, once."""
        owners = owners_in(self.modules, self.optimizers)
        own = own_of(owners.values(), self.kept)
        found: dict[str, Fingerprint] = {}
        seen: set[tuple[int, str]] = set()
        for (place, _), hook in hooks.items():
            for name, value, owner, _ in variables_of_hook(hook, own):
                key = (id(owner), name)
                speakers = (owner, hook, *self.modules.values(), *self.optimizers.values())
                if key in seen or any(is_no_state(name, who) for who in speakers):
                    continue
                seen.add(key)
                new = f"{name} of the hook {name_of_hook(hook)} on {place}"
                label = self._labels.setdefault(key, new)
                found[label] = (*found.get(label, ()), *fingerprint(value, own))
        return {label: known for label, known in found.items() if known}


def name_of_hook(hook: Any) -> str:
    """Return the name of a hook's function, or of its class."""
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))
