"""What somebody bound anew in torch, which nobody puts back after a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

OWNERS = (torch, nn.functional, torch.Tensor, nn.Module, torch.optim.Optimizer)
TORCH = Path(torch.__file__).parent


@contextmanager
def lasting_changes(found: list[str]) -> Iterator[None]:
    """Add to a list, at the end of the context, the names of torch that are other things since.

    Those that torch itself binds anew, as it compiles, are left out.
    """
    before = {owner: dict(vars(owner)) for owner in OWNERS}
    try:
        yield
    finally:
        for owner, held in before.items():
            now = vars(owner)
            changed = (n for n, old in held.items() if now.get(n) is not old)
            found += [f"{owner.__name__}.{n}" for n in changed if not _is_torchs(now.get(n))]


def _is_torchs(thing: Any) -> bool:
    """Return whether torch has the code of a function; a plain value is nobody's."""
    code = getattr(thing, "__code__", None)
    if code is None:
        return isinstance(thing, bool | int | float | str)
    return TORCH in Path(code.co_filename).parents
