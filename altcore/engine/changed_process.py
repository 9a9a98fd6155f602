"""What somebody changed of torch, the model's classes or the process, in errors that follow of it.

A replaced `Linear.forward` fails in the workload's loss, and the workload is not to blame for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from altcore.engine.process_possessions import PROCESS_FLAGS
from altcore.engine.torch_flags import FLAGS
from altcore.engine.trespass import Names, Possession, Value
from altcore.errors import PluginError
from altcore.recipes import some


@contextmanager
def changes_named(model: nn.Module) -> Iterator[None]:
    """Let a `PluginError` say what is not as it was before, which may be its cause."""
    before = list(_of_process(model))
    try:
        yield
    except PluginError as error:
        if not (changed := [p.label for p in before if p.is_changed()]):
            raise
        problem = f"since the run began, something changed {some(changed)}: it may be the cause"
        raise PluginError(f"{error} ({problem})") from error


def _of_process(model: nn.Module) -> Iterator[Possession]:
    modules = (m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule))
    owners = (torch, nn.functional, torch.Tensor, nn.Module, *map(type, modules))
    yield from (Names(owner) for owner in dict.fromkeys(owners))
    yield Value("types of the model's parameters", lambda: _types(model), lambda _: None)
    for flag in (*FLAGS, *PROCESS_FLAGS):
        with suppress(RuntimeError):  # torch refuses to read some that a user set in two ways
            yield Value(*flag)


def _types(model: nn.Module) -> str:
    return ", ".join(sorted({str(p.dtype) for p in model.parameters()}))
