"""Activation checkpointing: a model's blocks keep what goes into them, and run again backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from altcore.errors import BadInput
from altcore.quantization import Again, Quantization

KEY = "activation_checkpointing"


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a model, by name.

    A block is a module with layers of its own in a `torch.nn.ModuleList`, or in a
    `torch.nn.Sequential` that has several of its class. Blocks within a block are part of it.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, nn.Sequential | nn.ModuleList):
            kinds = Counter(map(type, module))
            for own, child in module.named_children():
                is_block = kinds[type(child)] > 1 or isinstance(module, nn.ModuleList)
                if is_block and _has_layers(child):
                    found[f"{name}.{own}" if name else own] = child
    return found


def _has_layers(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())


def checkpoint_blocks(model: nn.Module, quantization: Quantization) -> None:
    """Let the blocks of a model keep only their inputs in training, and compute the rest again.

    The numbers stay the same, bit for bit: random states, buffers and what rounding depends on
    are those of the forward pass. Raises `BadInput` if the model has no blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise BadInput(
            f"{type(model).__name__} has no blocks: modules with layers of their own in a "
            "torch.nn.ModuleList, or several of one class in a torch.nn.Sequential",
            key=KEY,
        )
    for block in blocks.values():
        # The whole call, hooks included. torch.nn.Module.compile sets the same attribute, and
        # copies of the module leave it out.
        block._compiled_call_impl = _checkpointed(block, quantization)


def _checkpointed(block: nn.Module, quantization: Quantization) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return block._call_impl(*args, **kwargs)
        contexts = partial(_contexts, block, quantization)
        return checkpoint(
            block._call_impl, *args, use_reentrant=False, context_fn=contexts, **kwargs
        )

    return call


def _contexts(
    block: nn.Module, quantization: Quantization
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's forward pass, which begins now, and of its repetition."""
    _, rounding_again = quantization.recomputation()
    then = [b.detach().clone() for b in block.buffers()]

    @contextmanager
    def again() -> Iterator[None]:
        # On copies of its own: a graph that is kept sees none of them change.
        copies = {b: value.clone() for b, value in zip(block.buffers(), then, strict=True)}
        now = _places(block)
        for buffers, name, buffer in now:
            buffers[name] = copies[buffer]
        try:
            with rounding_again:
                yield
        finally:
            for buffers, name, buffer in now:
                buffers[name] = buffer

    return nullcontext(), Again(again)


def _places(block: nn.Module) -> list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]]:
    """Return each buffer, with the dictionary of its module that has it by name."""
    return [
        (module._buffers, name, buffer)
        for module in block.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
