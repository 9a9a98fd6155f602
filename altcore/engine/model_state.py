"""The tensors of a model in a checkpoint: what its ``state_dict`` has, and the buffers it lacks.

A resume builds model and optimizer anew, and then puts the checkpoint into them. Buffers may have
come, gone or grown since, as caches and running tables do: the checkpoint gives them back. All else
has to be as it was built, and `AsBuilt` says so when a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from altcore.builtin_types import nested_too_deeply
from altcore.engine.buffers import is_expanded
from altcore.engine.fingerprints import Fingerprint, is_altcores
from altcore.engine.hidden_state import attributes, changed_in, optimizer_tensors
from altcore.engine.optimizer_checks import groups_of
from altcore.engine.trespass import address, same_bits
from altcore.errors import AltcoreError, InvalidCheckpoint
from altcore.quantization import Quantization
from altcore.recipes import some

Form = list[Any]
"""Shape and type of a tensor, as plain data."""


def form_of(tensor: Tensor) -> Form:
    """Return the shape and type of a tensor."""
    return [list(tensor.shape), str(tensor.dtype)]


def unsaved_buffers(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """Return the buffers that a model's state does not have; None for one that is not set.

    These are the ones that are not persistent, and those that a ``state_dict`` of its own omits.
    """
    return {name: buffer for name, buffer in _buffers(model) if name not in weights}


def misstated(model: nn.Module, weights: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the state that a model states, None if all is right.

    A ``state_dict`` of its own may omit one, rename it or round it: it would not be restored.
    """
    if problem := nested_too_deeply(weights):
        return f"the state_dict of the model {problem}"
    for name, p in model.named_parameters():
        if not p.requires_grad or nn.parameter.is_lazy(p):
            continue
        if not isinstance(kept := weights.get(name), Tensor):
            return f"the state_dict of the model leaves out the parameter {name}"
        is_it = address(kept) == address(p) and form_of(kept) == form_of(p)
        if not is_it and not same_bits(kept.to(p.device), p.detach()):
            return f"the state_dict of the model has other numbers than the parameter {name}"
    return None


@frozen(eq=False)
class AsBuilt:
    """A model and its optimizer as they were built: a build makes them so again."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: dict[str, Form] = field(init=False)
    is_trained: dict[str, bool] = field(init=False)
    """Of each parameter, its ``requires_grad``."""
    buffers: dict[str, tuple[Tensor | None, int, Form | None]] = field(init=False)
    """The tensor of each, its version, which each change in place counts up, and its form."""
    modules: frozenset[str] = field(init=False)
    groups: list[list[str | None]] = field(init=False)
    """The parameters of the optimizer's groups, by name."""
    attributes: dict[str, Fingerprint] = field(init=False)
    """Those in which state may be hidden."""
    hooks: Set[tuple[str, int]] = field(init=False)
    """Those on modules, parameters and the optimizer."""

    def __attrs_post_init__(self) -> None:
        found = {
            "parameters": _forms(self.model),
            "is_trained": flags_of(self.model),
            "buffers": {n: (x, _version(x), _form(x)) for n, x in _buffers(self.model)},
            "modules": frozenset(n for n, _ in self.model.named_modules(remove_duplicate=False)),
            "groups": groups_of(self.optimizer, self.model),
            "attributes": attributes(self.model, self.optimizer),
            "hooks": hooks_of(self.model, self.optimizer).keys(),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def changed(self, weights: Mapping[str, Any]) -> dict[str, Tensor | None]:
        """Return the buffers that a model's state lacks, and another build has not as they are."""
        return {
            name: x
            for name, x in unsaved_buffers(self.model, weights).items()
            if name not in self.buffers
            or self.buffers[name][0] is not x
            or self.buffers[name][1] != _version(x)
        }

    def forms(self, weights: Mapping[str, Any]) -> dict[str, Form | None]:
        """Return the form of each buffer in a model's state when it was built, None of a new one.

        Of a model that is built again, such a buffer may take another form.
        """
        in_state = [name for name, _ in _buffers(self.model) if name in weights]
        return {name: self.buffers[name][2] if name in self.buffers else None for name in in_state}

    def flags(self) -> dict[str, bool]:
        """Return the ``requires_grad`` of parameters for which it is another now."""
        now = flags_of(self.model)
        return {n: flag for n, flag in now.items() if self.is_trained.get(n, flag) != flag}

    def hidden(self) -> list[str]:
        """Return the attributes of model and optimizer with state that no checkpoint has."""
        now = attributes(self.model, self.optimizer)
        changed = changed_in(self.attributes, now)
        return list(dict.fromkeys([*optimizer_tensors(self.model, self.optimizer), *changed]))

    def late_hooks(self, hooks: Set[tuple[str, int]]) -> list[str]:
        """Return what has other hooks than these."""
        now = hooks_of(self.model, self.optimizer)
        return sorted({name for key, name in now.items() if key not in hooks})

    def check(self) -> None:
        """Raise `AltcoreError` if a build would not make what a checkpoint's state goes into."""
        if problem := self.problem():
            raise AltcoreError(
                f"{problem}: no run could go on from its checkpoints, which build the model and "
                "the optimizer anew. Build them as they are to be"
            )

    def problem(self) -> str | None:
        """Return what another build would not have, None if nothing."""
        now = _forms(self.model)
        for what, names in (
            ("were added since it was built", now.keys() - self.parameters),
            ("are not there any more", self.parameters.keys() - now),
            ("are of another shape or type", {n for n in now if now[n] != self.parameters.get(n)}),
        ):
            if names:
                return f"parameters of the model {what} ({some(sorted(names))})"
        places = {name.rpartition(".")[0] for name, _ in _buffers(self.model)}
        if late := sorted(places - self.modules):
            return f"modules with buffers were added to the model since it was built ({some(late)})"
        groups = groups_of(self.optimizer, self.model)
        for i, (was, group) in enumerate(zip(self.groups, groups, strict=False)):
            if was != group:
                odd = [str(n) for n in dict.fromkeys([*group, *was]) if (n in was) != (n in group)]
                told = some(odd) if odd else "their order"
                return f"group {i} of the optimizer has other parameters than it had ({told})"
        if len(groups) != len(self.groups):
            return f"the optimizer has {len(groups)} groups, and was built with {len(self.groups)}"
        return None


def _forms(model: nn.Module) -> dict[str, Form]:
    named = model.named_parameters(remove_duplicate=False)
    return {name: [] if nn.parameter.is_lazy(p) else form_of(p) for name, p in named}


def flags_of(model: nn.Module) -> dict[str, bool]:
    """Return the ``requires_grad`` of each parameter, by name."""
    return {name: p.requires_grad for name, p in model.named_parameters()}


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key in tuple(module._buffers.keys()):
            yield f"{prefix}.{key}" if prefix else key, module._buffers[key]


def _version(x: Tensor | None) -> int:
    return 0 if x is None or x.is_inference() else x._version


def _form(x: Tensor | None) -> Form | None:
    return None if x is None or nn.parameter.is_lazy(x) else form_of(x)


def set_flags(model: nn.Module, flags: Mapping[str, bool]) -> None:
    """Set the ``requires_grad`` of parameters, by name."""
    for name, flag in flags.items():
        model.get_parameter(name).requires_grad_(flag)


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple[str, int], str]:
    """Return the hooks on modules, parameters and the optimizer that are not altcore's own.

    Each with the name of what it is on.
    """
    held = [
        (name or "the model", hooks)
        for name, module in model.named_modules()
        for key, hooks in vars(module).items()
        if "hooks" in key
    ]
    held += [("the optimizer", hooks) for key, hooks in vars(optimizer).items() if "hooks" in key]
    for name, p in model.named_parameters():
        held += [(name, p._backward_hooks), (name, getattr(p, "_post_accumulate_grad_hooks", None))]
    return {
        (name, id(hook)): name
        for name, hooks in held
        for hook in (hooks.values() if isinstance(hooks, Mapping) else ())
        if not is_altcores(hook)
    }


def without_numbers(model: nn.Module) -> str | None:
    """Return the name of a tensor of a model that is on the device meta, None if there is none."""
    named = (*model.named_parameters(), *model.named_buffers())
    return next((name for name, x in named if x.is_meta), None)


# What a checkpoint has goes into a model that was built -------------------------------------------


def may_differ(name: str, state: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether a tensor of a state is of a buffer that came, went or grew since the build.

    Not if the model that was built is another one: with a buffer of another form than it had then.
    """
    forms, place = state["buffer_forms"], _place(name, model)
    if place is None or not (name in forms or name in state["buffers"]):
        return False
    own = _form(_held(*place))
    return own is None or name not in forms or forms[name] == own


def check_buffers(buffers: Mapping[str, Any], model: nn.Module) -> None:
    """Raise `InvalidCheckpoint` if `put_buffers` has no place for one."""
    for name, kept in buffers.items():
        if _place(name, model) is None:
            raise InvalidCheckpoint(f"the model has no place for the buffer {name}")
        if not isinstance(kept, Tensor | None):
            raise InvalidCheckpoint(f"{name} is {type(kept).__name__}, not a tensor")


def put_model(model: nn.Module, q: Quantization | None, state: Mapping[str, Any]) -> None:
    """Put the model of a checked state into one that was built, with its quantization if any."""
    make_room(model, state["model"])
    if q is None:
        model.load_state_dict(state["model"])
    else:
        q.load_state_dict(state["quantization"], state["model"])
    put_buffers(model, state["buffers"])


def make_room(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Let a model have the buffers that a checked state has, in the form that they have there.

    ``load_state_dict`` takes no others.
    """
    own = model.state_dict()
    other = {
        name: x
        for name, x in weights.items()
        if isinstance(x, Tensor) and (name not in own or not _is_alike(own[name], x))
    }
    put_buffers(model, dict.fromkeys(own.keys() - weights), is_persistent=True)
    put_buffers(model, other, is_persistent=True)


@torch.no_grad()
def put_buffers(
    model: nn.Module, buffers: Mapping[str, Tensor | None], *, is_persistent: bool = False
) -> None:
    """Put buffers that were checked into a model; what is new there may be persistent."""
    first = next(model.parameters(), None)
    for name, kept in buffers.items():
        if (place := _place(name, model)) is None:
            continue
        module, key = place
        own = _held(module, key)
        like = first if own is None else own
        moved = kept if kept is None or like is None else kept.to(like.device, copy=True)
        if own is not None and moved is not None and _is_alike(own, moved):
            own.copy_(moved)
        elif key in module._buffers:
            module._buffers[key] = moved
        else:
            module.register_buffer(key, moved, persistent=is_persistent)


def _place(name: str, model: nn.Module) -> tuple[nn.Module, str] | None:
    """Return the module of a buffer and its name there, None if there can be none."""
    prefix, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(prefix)
    except AttributeError:
        return None
    return None if key not in module._buffers and hasattr(module, key) else (module, key)


def _held(module: nn.Module, key: str) -> Tensor | None:
    # What a ScriptModule holds them in has no get.
    return module._buffers[key] if key in module._buffers else None  # noqa: SIM401


def _is_alike(own: Tensor, kept: Tensor) -> bool:
    """Whether one can be copied into the other: no element of which is another's."""
    is_own = own.layout == torch.strided and not is_expanded(own)
    return is_own and (own.shape, own.dtype) == (kept.shape, kept.dtype)
