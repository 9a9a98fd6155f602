"""What the modules of a model are: the weights of one fit another whose shapes are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from altcore.builtin_types import one_line
from altcore.errors import described
from altcore.log import log
from altcore.recipes import some
from altcore.runs import changed_modules

_NO_DIFFERENCE = re.compile(r"(, )?inplace=(True|False)|0x[0-9a-f]+")


def kinds_of(model: nn.Module) -> dict[str, str]:
    """Return the class of each module, with what its ``extra_repr`` says.

    One of torch's that says nothing, as a transformer's layer, is told by its options. And the
    parameters that are tied, or have another order in memory than torch's own: sums are made in
    another order then.
    """
    first: dict[int, str] = {}
    tied = {
        name: f"tied to {first[id(p)]}"
        for name, p in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(p), name) != name
    }
    ordered = {
        name: f"strides {[*p.stride()]}"
        for name, p in model.named_parameters()
        if not (is_lazy(p) or p.layout != torch.strided or p.is_contiguous())
    }
    return {name: _kind(module) for name, module in model.named_modules()} | ordered | tied


def _kind(module: nn.Module) -> str:
    try:
        said = f"{module.extra_repr()!s:.100}" or _options(module)
    except Exception as error:  # code of others
        said = f"{described(error):.100}"
    return one_line(f"{type(module).__name__}({_NO_DIFFERENCE.sub('', said)})")


def _options(module: nn.Module) -> str:
    if not type(module).__module__.startswith("torch.nn.modules."):
        return ""
    plain = {
        name: getattr(value, "__name__", value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }
    told = {name: x for name, x in plain.items() if isinstance(x, str | int | float)}
    return ", ".join(f"{name}={x}" for name, x in sorted(told.items()))


def warn_of_other_kinds(was: Mapping[str, str], model: nn.Module, label: str) -> None:
    """Warn of the modules of a model that are others than they were when its state was saved."""
    modules = changed_modules(was, kinds_of(model))
    others = [f"{name} was {old}, and is {new}" for name, old, new in modules]
    if others:
        told = f"the weights fit, but modules of {label} are others than those that were saved"
        log.warning(told, modules=some(others))
