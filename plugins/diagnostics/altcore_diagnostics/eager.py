"""Running a model outside of compiled graphs: what a probe's hooks and modes need."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from altcore.plugin import Run


def eagerly(run: Run) -> AbstractContextManager[Any]:
    """Return a context in which nothing of the model runs compiled, nor is compiled anew.

    A compiled graph does not show its calls, and hooks that come and go would each have it
    compiled again.
    """
    if not run.config.compile:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
