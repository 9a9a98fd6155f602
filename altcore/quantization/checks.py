"""Check models, casts and operands; raise `BadInput` for those that cannot be quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, with_article
from altcore.quantization.discovery import called, layer_kind, matrices, tied_matrices
from altcore.recipes import (
    LOOKUP,
    OF_PARAMETERS,
    PRODUCT_OPERANDS,
    PRODUCTS,
    STORED,
    Cast,
    Casts,
    Recipe,
    ResolvedRecipe,
    some,
    takes_hadamard,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types that a product takes. torch's own types of 8 bits and fewer only hold numbers."""
FSDP_MARK = "_is_fsdp_managed_module"
"""An attribute that FSDP, 1 and 2, leaves on every module whose parameters it shards."""


def check_arguments(model: object, seed: object, head: object) -> int:
    """Refuse arguments of `altcore.quantize_model` of the wrong type; returns the seed."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"a torch.nn.Module is needed, not {model!r:.60}", key="model")
    seed = as_builtin(seed)
    if not isinstance(seed, int):
        raise BadInput(f"a whole number is needed, not {seed!r:.60}", key="seed")
    if not isinstance(head, str | None):
        raise BadInput(f"the name of a module is needed, or None, not {head!r:.60}", key="head")
    return seed


def check_model(model: nn.Module) -> None:
    """Refuse a model that is not ready, or no longer Python."""
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            raise BadInput(
                "nn.DataParallel copies the modules for each forward pass, and a copy is "
                "not quantized: use DistributedDataParallel",
                key="model",
            )
        if "FullyShardedDataParallel" in {cls.__name__ for cls in type(module).__mro__}:
            raise _refused_flat(name or "it", key="model")
        if any(is_lazy(p) for p in module._parameters.values()):
            raise BadInput(
                f"{name or 'it'} ({type(module).__name__}) is lazy, and has no weights yet: "
                "run the model once, then quantize it",
                key="model",
            )
        if isinstance(module, torch.jit.ScriptModule) and matrices(module):
            raise BadInput(
                f"{name or 'it'} is compiled by torch.jit, whose products cannot be reached:"
                " quantize the Python model",
                key="model",
            )


def check_effect(recipe: Recipe, plan: ResolvedRecipe) -> None:
    """Refuse a recipe that quantizes something, and nothing of this model."""
    asked = any(cast for rule in recipe.rules for cast in rule.casts.values())
    if asked and not any(any(casts.values()) for casts in plan.values()):
        raise recipe.refusal(
            f"the model has no layer that it quantizes (layers: {some(list(plan))})"
        )


def with_ties(
    recipe: Recipe, model: nn.Module, plan: ResolvedRecipe, before: ResolvedRecipe
) -> dict[str, dict[str, Cast | None]]:
    """Give the layers that share a parameter one cast for each role of the parameter itself.

    That is the cast which differs from ``before``; at the start that of any of the layers. Two
    that differ are refused.
    """
    made = {name: dict(casts) for name, casts in plan.items()}
    for names, full, operand in (
        (names, full, operand) for names, full in tied_matrices(model) for operand in OF_PARAMETERS
    ):
        old = {n: before[n][operand] if before else None for n in names}
        new = [made[n][operand] for n in names if made[n][operand] != old[n]]
        if any(cast != new[0] for cast in new):
            raise recipe.refusal(
                f"{' and '.join(names)} share the parameter {full}, "
                f"and have two casts for {operand}"
            )
        for n in names if new else ():
            made[n][operand] = new[0]
    return made


def check_casts(recipe: Recipe, name: str, module: nn.Module, casts: Casts) -> None:
    """Refuse casts that the module called ``name`` cannot take."""
    where = f"{called(name)} is {type(module).__name__}: "
    if not any(casts.values()):
        return
    _check_stored(recipe, where, casts)
    _check_weights(name, module, casts)
    for operand, cast in casts.items():
        if cast and cast.hadamard and not takes_hadamard(layer_kind(module), operand):
            raise recipe.refusal(
                f"{where}{operand}: a Hadamard transform needs a product that sums along one axis",
                source=recipe.source_of(operand, cast),
            )
    if getattr(module, "groups", 1) != 1:
        channelled = [
            o for o in PRODUCT_OPERANDS if (c := casts[o]) and c.scaling.kind == "channel"
        ]
        if channelled:
            raise recipe.refusal(f"{where}{channelled[0]}: channel scaling needs groups=1")
    for a, b in PRODUCTS:
        first, second = casts[a], casts[b]
        lengths = (first.hadamard if first else 0, second.hadamard if second else 0)
        if lengths[0] != lengths[1]:
            raise recipe.refusal(
                f"{where}{a} and {b} are multiplied and need the same Hadamard transform, "
                f"not {lengths[0]} and {lengths[1]}",
                source=recipe.source_of(a, first) if lengths[0] else recipe.source_of(b, second),
            )


def _check_weights(name: str, module: nn.Module, casts: Casts) -> None:
    """Refuse weights that no scale fits, or that are not whole in this process."""
    for own, parameter in matrices(module).items():
        for role in OF_PARAMETERS:
            if casts[role]:
                check_whole(name, module, own, role)
        if casts["weight@fwd"] or casts[LOOKUP] or casts["stored_weight"]:
            # FSDP makes it whole for each forward pass; its shard tells what it holds.
            is_shard = FSDP_MARK in vars(module) and _is_distributed(parameter)
            w: Any = parameter
            w = w.to_local() if is_shard else w
            check_operand(w, name, own)
            if not torch.isfinite(w.detach()).all():
                raise BadInput(
                    f"{called(name)}: {own} has elements that are not finite: a scale made of them "
                    "would turn the whole tensor to NaN"
                )


def check_whole(name: str, module: nn.Module, own: str, role: str) -> None:
    """Raise `BadInput` for a parameter that is not whole in this process between steps."""
    if FSDP_MARK in vars(module) or _is_distributed(module._parameters.get(own)):
        raise BadInput(
            f"{called(name)}: {own} is sharded (FSDP, a DTensor), and {role} needs the whole "
            "parameter: use a recipe without it, or DDP"
        )


def check_unflattened(name: str, module: nn.Module) -> None:
    """Raise `BadInput` if the weights of a layer, which is about to run, are views that FSDP1 made.

    FSDP2 gives a layer whole parameters for its forward pass.
    """
    if FSDP_MARK in vars(module):
        values = (*module._parameters.values(), *vars(module).values())
        bases = (getattr(value, "_base", None) for value in values)
        if any(getattr(base, "_is_flat_param", False) for base in bases):
            raise _refused_flat(called(name))


def _refused_flat(where: str, key: str = "") -> BadInput:
    return BadInput(
        f"{where}: FullyShardedDataParallel makes one flat parameter of many: shard the model by "
        "torch.distributed.fsdp.fully_shard, or use DDP",
        key=key,
    )


def _is_distributed(parameter: torch.Tensor | None) -> bool:
    """Whether a parameter is a DTensor: FSDP2's or tensor parallelism's."""
    return any(cls.__name__ == "DTensor" for cls in type(parameter).__mro__)


def _check_stored(recipe: Recipe, where: str, casts: Casts) -> None:
    for operand in STORED:
        if (cast := casts[operand]) and cast.blocks is not None:
            raise recipe.refusal(
                f"{where}{operand} has one scale, and {cast.format.name} one for each block"
            )
        if cast and not cast.scaling.suits_storage:
            raise recipe.refusal(
                f"{where}{operand} has a single scale, without margin or quantile: "
                f"{cast.scaling.kind} scaling does not suit it"
            )


# ------------------------------------------------------------------------------- operands


def check_operand(x: Tensor, layer: str, argument: str) -> Tensor:
    """Return a product's operand as a plain tensor.

    Raises `BadInput`, which names layer and argument, unless it is a dense floating-point tensor
    with values. A subclass that only labels a tensor is unwrapped.
    """
    if type(x) not in (Tensor, nn.Parameter):
        if not isinstance(x, Tensor):
            raise BadInput(f"{called(layer)}: {argument} is {x!r:.60}, not a tensor")
        if type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise _refused_operand(layer, argument, with_article(type(x).__name__))
        x = x.as_subclass(Tensor)
    if x.layout != torch.strided or x.is_nested or x.is_quantized or x.is_meta:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else None
        kind = kind or ("meta" if x.is_meta else str(x.layout).removeprefix("torch."))
        raise _refused_operand(layer, argument, f"a {kind} tensor")
    if x.dtype not in DTYPES:
        raise _refused_operand(
            layer, argument, f"a tensor of {str(x.dtype).removeprefix('torch.')}"
        )
    return x


def _refused_operand(layer: str, argument: str, what: str) -> BadInput:
    return BadInput(
        f"{called(layer)}: {argument} is {what}: a quantized product needs a dense floating-point "
        "tensor of 16 to 64 bits (skip the layer in the recipe, or run it under q.off())"
    )


def refuse_transforms(layer: str, module: nn.Module) -> None:
    """Raise `BadInput` within torch.func's transforms and forward-mode differentiation."""
    is_forward = torch.autograd.forward_ad._current_level >= 0
    if is_forward or torch._C._functorch.peek_interpreter_stack() is not None:
        raise BadInput(
            f"{called(layer)} ({type(module).__name__}): vmap, jvp, torch.func.grad and hessian do "
            "not go through a quantized layer: transform the unquantized model, under q.off()"
        )
