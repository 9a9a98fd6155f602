"""What the modules of a model are: the weights of one fit another whose shapes are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from altcore.builtin_types import one_line
from altcore.errors import described
from altcore.log import log
from altcore.recipes import some
from altcore.runs import changed_modules

MOST = 100
"""Letters of what a module says of itself that its kind has."""
NO_OPTIONS = ("training", "inplace")
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


def options_of(model: nn.Module) -> dict[str, str]:
    """Return what the kinds of modules leave out, by its name and the module's.

    Those are of torch's modules each attribute that is plain and is not told there, as an RNN does
    not tell its ``nonlinearity``, and the digest of a long ``extra_repr``.
    """
    found = {}
    for name, module in model.named_modules():
        said = _NO_DIFFERENCE.sub("", _said(module))
        for key, value in vars(module).items() if _is_torchs(module) else ():
            is_option = _is_plain(value) and not key.startswith("_") and key not in NO_OPTIONS
            if is_option and f"{key}={value}" not in said[:MOST]:
                text = str(value)
                short = text if len(text) <= MOST else sha256(text.encode()).hexdigest()
                found[f"{key} of {name or 'the model'}"] = short
        if len(said) > MOST:
            found[f"extra_repr of {name or 'the model'}"] = sha256(said.encode()).hexdigest()
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | None)


def _said(module: nn.Module) -> str:
    try:
        return str(module.extra_repr())
    except Exception as error:  # code of others
        return described(error)


def _kind(module: nn.Module) -> str:
    said = f"{_said(module):.{MOST}}" or _options(module)
    return one_line(f"{type(module).__name__}({_NO_DIFFERENCE.sub('', said)})")


def _options(module: nn.Module) -> str:
    if not _is_torchs(module):
        return ""
    plain = {
        name: getattr(value, "__name__", value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }
    told = {name: x for name, x in plain.items() if isinstance(x, str | int | float)}
    return ", ".join(f"{name}={x}" for name, x in sorted(told.items()))


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def warn_of_other_kinds(
    was: Mapping[str, str], options: Mapping[str, str] | None, model: nn.Module, label: str
) -> None:
    """Warn of the modules of a model that are others than they were when its state was saved.

    An earlier altcore did not record their ``options``.
    """
    modules = changed_modules(was, kinds_of(model)) or changed_modules(options, options_of(model))
    others = [f"{name} was {old}, and is {new}" for name, old, new in modules]
    if others:
        told = f"the weights fit, but modules of {label} are others than those that were saved"
        log.warning(told, modules=some(others))
