"""Out of memory: the error says which layer asked for how many bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import torch
from torch import nn

from altcore.errors import OutOfMemory, text_of, with_article

_ASKED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)
_CPU = "DefaultCPUAllocator: can't allocate memory"
"""On the CPU torch raises a RuntimeError, which says only in words what it is."""


@contextmanager
def memory_named(model: nn.Module | None = None) -> Iterator[None]:
    """Turn an out-of-memory error into `OutOfMemory`, which names the layer and the bytes.

    Without a ``model`` a layer is named by its type.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = _ASKED.search(text_of(error))
        size = f" for {asked[1]}" if asked else ""
        raise OutOfMemory(
            f"out of memory: {_place(error, model)} asked{size}; a smaller batch_size with more "
            "gradient_accumulation_steps needs less, and so does a smaller model"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was all that was wrong."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU in text_of(error)


def _place(error: BaseException, model: nn.Module | None) -> str:
    """Name what was at work: the innermost layer, else the optimizer or the backward pass."""
    names = {} if model is None else {id(m): name for name, m in model.named_modules()}
    place = ""
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code.co_name == "backward":
            place = "the backward pass"
        for name in ("self", "products"):
            place = _named(frame.f_locals.get(name), names) or place
    return place or "the run"


def _named(owner: Any, names: dict[int, str]) -> str:
    if isinstance(owner, torch.optim.Optimizer):
        return f"the step of {type(owner).__name__}"
    # The products of a quantized layer know it, and that its module.
    module = owner if isinstance(owner, nn.Module) else getattr(owner, "layer", owner)
    module = getattr(module, "module", module)
    if not isinstance(module, nn.Module):
        return ""
    kind = type(module).__name__
    return f"layer {names[id(module)]} ({kind})" if names.get(id(module)) else with_article(kind)
