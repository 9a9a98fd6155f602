"""The optimizer whose steps a quantized model follows, be it given as it is or in a wrapper."""

from __future__ import annotations

from torch.optim import Optimizer

from altcore.errors import BadInput

HOOKS = "_optimizer_step_post_hooks"
"""What torch's own constructor gives an optimizer. A wrapper that is called an optimizer too, but
never ran that, has none, and its steps run no hooks."""


def followable(optimizer: object) -> Optimizer:
    """Return the optimizer itself, or the one in a wrapper. Raises `BadInput` for anything else."""
    for one in (optimizer, getattr(optimizer, "optimizer", None)):
        if isinstance(one, Optimizer) and HOOKS in vars(one):
            return one
    raise BadInput(
        f"optimizer: one of torch.optim's is needed, or a wrapper of one, not "
        f"{type(optimizer).__name__}: without it, call q.store after each step"
    )


def steps_as(optimizer: object, followed: Optimizer) -> bool:
    """Whether this is the optimizer that is followed, or a wrapper of it."""
    hooks = getattr(optimizer, HOOKS, None)  # Lightning's wrapper takes the attributes over.
    is_inside = getattr(optimizer, "optimizer", None) is followed
    return optimizer is followed or is_inside or hooks is vars(followed)[HOOKS]
