"""What models and optimizers were when they were built: a build makes them so again.

All else has to be in a checkpoint, or is named when one is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from altcore.engine.called_state import variables_of_methods
from altcore.engine.fingerprints import Fingerprint
from altcore.engine.hidden_state import (
    attributes,
    changed_in,
    optimizer_tensors,
    own_of,
    owners_in,
)
from altcore.engine.hook_state import Hooks
from altcore.engine.labels import parameter_names
from altcore.engine.model_state import Form, buffers_in, flags_of, form_of, unsaved_buffers
from altcore.engine.module_hooks import hook_identity
from altcore.engine.optimizer_checks import groups_of
from altcore.engine.shared_memory import Shared, not_joined, shared_in
from altcore.engine.trespass import same_bits
from altcore.errors import AltcoreError
from altcore.recipes import some


@frozen(eq=False)
class ModuleAsBuilt:
    """A module as it was built."""

    module: nn.Module
    parameters: dict[str, Form] = field(init=False)
    is_trained: dict[str, bool] = field(init=False)
    """Of each parameter, its ``requires_grad``."""
    buffers: dict[str, Form | None] = field(init=False)
    modules: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        module = self.module
        found = {
            "parameters": _forms(module),
            "is_trained": flags_of(module),
            "buffers": {name: form_of(x) for name, x in buffers_in(module)},
            "modules": frozenset(n for n, _ in module.named_modules(remove_duplicate=False)),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def forms(self, weights: Mapping[str, Tensor]) -> dict[str, Form | None]:
        """Return the form of each buffer in a module's state when it was built, None of a new one.

        Of a module that is built again, such a buffer may take another form.
        """
        in_state = [name for name, _ in buffers_in(self.module) if name in weights]
        return {name: self.buffers.get(name) for name in in_state}

    def flags(self) -> dict[str, bool]:
        """Return the ``requires_grad`` of parameters for which it is another now."""
        now = flags_of(self.module)
        return {n: flag for n, flag in now.items() if self.is_trained.get(n, flag) != flag}

    def problem(self, label: str) -> str | None:
        """Return what another build would not have, None if nothing; the module is called so."""
        now = _forms(self.module)
        for what, names in (
            ("were added since it was built", now.keys() - self.parameters),
            ("are not there any more", self.parameters.keys() - now),
            ("are of another shape or type", {n for n in now if now[n] != self.parameters.get(n)}),
        ):
            if names:
                return f"parameters of {label} {what} ({some(sorted(names))})"
        places = {name.rpartition(".")[0] for name, _ in buffers_in(self.module)}
        if late := sorted(places - self.modules):
            return f"modules with buffers were added to {label} since it was built ({some(late)})"
        return None


@frozen(eq=False)
class UnsavedBuffers:
    """The buffers that a module's state lacked when it was built."""

    module: nn.Module
    built: Mapping[str, tuple[Tensor | None, int, Tensor | None]]
    """The tensor of each, its version, which a change in place counts up, and a copy."""

    @classmethod
    def of(cls, module: nn.Module) -> UnsavedBuffers:
        """Copy them as they are now."""
        found = unsaved_buffers(module, module.state_dict())
        copies = {name: None if x is None else x.detach().clone() for name, x in found.items()}
        return cls(module, {name: (x, _version(x), copies[name]) for name, x in found.items()})

    def changed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Return the buffers that a module's state lacks, and another build has not as they are."""
        now = unsaved_buffers(self.module, weights)
        return {name: x for name, x in now.items() if not self._is_as_built(name, x)}

    def _is_as_built(self, name: str, x: Tensor | None) -> bool:
        own, version, kept = self.built.get(name, (None, 0, None))
        if name not in self.built or own is not x or version != _version(x):
            return False
        # A write to its `data` moves no version.
        return x is None or kept is None or same_bits(kept, x)


@frozen(eq=False)
class AsBuilt:
    """Modules and optimizers as they were built, by what they are called."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    kept: Sequence[Any] = ()
    """What checkpoints have besides."""
    built: dict[str, ModuleAsBuilt] = field(init=False)
    groups: dict[str, list[list[str | None]]] = field(init=False)
    """The parameters of each optimizer's groups, by name."""
    options: dict[str, list[set[str]]] = field(init=False)
    """The names of the options in each optimizer's groups."""
    attributes: dict[str, Fingerprint] = field(init=False)
    """Those in which state may be hidden, and variables of methods."""
    hooks: Hooks = field(init=False)
    """Those on modules, parameters and optimizers."""
    known_hooks: dict[str, dict[str, Any]] = field(init=False)
    """What those of each module and optimizer are known by in another process."""
    shared: Shared = field(init=False)
    """Which parameters and buffers share their memory."""

    def __attrs_post_init__(self) -> None:
        found = {
            "built": {label: ModuleAsBuilt(module) for label, module in self.modules.items()},
            "groups": self._groups(),
            "options": self._options(),
            "attributes": self._attributes(),
            "hooks": Hooks(self.modules, self.optimizers, self.kept),
            "known_hooks": {label: hook_identity(x) for label, x in self.modules.items()}
            | {label: hook_identity(x) for label, x in self.optimizers.items()},
            "shared": shared_in(self.modules),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def of(self, module: nn.Module) -> ModuleAsBuilt:
        """Return what a module was; as it is now, if it came since."""
        known = (built for built in self.built.values() if built.module is module)
        return next(known, None) or ModuleAsBuilt(module)

    def hidden(self) -> list[str]:
        """Return the attributes of modules and optimizers with state that no checkpoint has."""
        owners = owners_in(self.modules, self.optimizers)
        changed = changed_in(self.attributes, self._attributes())
        apart = [f"memory of {x}" for x in not_joined(self.shared, shared_in(self.modules))]
        return list(dict.fromkeys([*optimizer_tensors(owners), *changed, *apart]))

    def _attributes(self) -> dict[str, Fingerprint]:
        owners = owners_in(self.modules, self.optimizers)
        of_methods = variables_of_methods(owners.values(), own_of(owners.values(), self.kept))
        return {**attributes(owners, self.kept), **of_methods}

    def check(self) -> None:
        """Raise `AltcoreError` if a build would not make what a checkpoint's state goes into."""
        if problem := self.problem():
            raise AltcoreError(
                f"{problem}: no run could go on from its checkpoints, which build the model and "
                "the optimizer anew. Build them as they are to be"
            )

    def problem(self) -> str | None:
        """Return what another build would not have, None if nothing."""
        for label, built in self.built.items():
            if problem := built.problem(label):
                return problem
        for label, groups in self._groups().items():
            before = self.groups[label]
            for i, (was, group) in enumerate(zip(before, groups, strict=False)):
                if was != group:
                    names = dict.fromkeys([*group, *was])
                    odd = [str(n) for n in names if (n in was) != (n in group)]
                    told = some(odd) if odd else "their number"
                    return f"group {i} of {label} has other parameters than it had ({told})"
            if len(groups) != len(before):
                return f"{label} has {len(groups)} groups, and was built with {len(before)}"
        return self.lost_option()

    def lost_option(self) -> str | None:
        """Return which option of an optimizer was deleted from a group of it, None if none was."""
        for label, groups in self._options().items():
            for i, (was, now) in enumerate(zip(self.options[label], groups, strict=False)):
                if lost := sorted(was - now):
                    return f"group {i} of {label} has no {some(lost)} any more"
        return None

    def _options(self) -> dict[str, list[set[str]]]:
        return {
            label: [made.defaults.keys() & group.keys() for group in made.param_groups]
            for label, made in self.optimizers.items()
        }

    def _groups(self) -> dict[str, list[list[str | None]]]:
        names = parameter_names(self.modules)
        return {label: groups_of(made, names) for label, made in self.optimizers.items()}


def _forms(module: nn.Module) -> dict[str, Form]:
    named = module.named_parameters(remove_duplicate=False)
    return {name: form_of(p) or [] for name, p in named}


def _version(x: Tensor | None) -> int:
    return 0 if x is None or x.is_inference() else x._version
