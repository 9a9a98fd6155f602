"""Quantizing a model: the call that people's own loops make."""

from __future__ import annotations

import torch
from torch import nn

from altcore.formats import AnyFormat
from altcore.quantization.checks import check_arguments
from altcore.quantization.discovery import AUTO
from altcore.quantization.optimizer import unwrap
from altcore.quantization.quantization import Quantization
from altcore.recipes import RecipeLike, read_recipe


def quantize_model(
    model: nn.Module,
    recipe: RecipeLike,
    *,
    format: str | AnyFormat | None = None,
    compute: str = "auto",
    seed: int = 0,
    head: str | None = AUTO,
    optimizer: torch.optim.Optimizer | None = None,
) -> Quantization:
    """Quantize ``model`` in place by a recipe; returns the handle that takes it back.

    Args:
        model: any module; its parameters, types and state dict keys stay as they are.
        recipe: a format or its name (the recipe ``master`` in it), a recipe's name, its mapping,
            or a .yaml file.
        format: the one that the recipe calls FORMAT.
        compute: in which type products run; see `altcore.quantization.compute.COMPUTES`.
        seed: of stochastic rounding.
        head: the output head, which named recipes leave alone: a module's name, None if the model
            has none, or ``auto`` (see `altcore.quantization.discovery.output_head`).
        optimizer: its steps are then followed by `Quantization.store`; without it, call that after
            each step of a recipe that stores anything.

    Raises:
        BadInput: for an unknown name, a pattern that matches no layer, or a layer that cannot take
            its cast.
    """
    seed = check_arguments(model, seed, head)
    model = bare_model(model)  # whose names and head a recipe means
    followed = None if optimizer is None else unwrap(optimizer)
    q = Quantization(model, read_recipe(recipe, format), compute, seed, head)
    if followed is not None:
        q.follow(followed)
    return q


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model within DistributedDataParallel and torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return bare_model(model.module)
    # torch.compile has it there; what a ScriptModule holds its modules in has no get.
    compiled = model._modules["_orig_mod"] if "_orig_mod" in model._modules else None  # noqa: SIM401
    return model if compiled is None else bare_model(compiled)
