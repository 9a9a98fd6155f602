"""Whether a loop trains on, in another thread, while its state is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.parameter import is_lazy

from altcore.engine.hidden_state import tensors_in
from altcore.engine.own_loop import OwnLoop
from altcore.errors import BadInput


@contextmanager
def standing_still(loop: OwnLoop) -> Iterator[Callable[[], None]]:
    """Yield what raises `BadInput` if a step or a backward pass was made since.

    Call it before what was written counts. An error within the block may be of a state that is half
    of one step and half of the next. No device is asked: torch counts up each change in place.
    Buffers are left out: a ``state_dict`` may bring one up to date.
    """
    gradients = _gradients(loop)
    moments = [x for kept in loop.optimizers for x in tensors_in(kept.optimizer.state)]
    versions = [(x, _version(x)) for x in (*_weights(loop), *gradients, *moments)]

    def check() -> None:
        is_moved = any(_version(x) != was for x, was in versions)
        if is_moved or [*map(id, _gradients(loop))] != [*map(id, gradients)]:
            problem = "the weights changed while they were saved"
            hint = "save between two steps, from the thread that trains"
            raise BadInput(problem, key="model", hint=hint)

    try:
        yield check
    except Exception:
        check()
        raise


def _weights(loop: OwnLoop) -> list[Tensor]:
    return [p for kept in loop.modules for p in kept.module.parameters() if not is_lazy(p)]


def _gradients(loop: OwnLoop) -> list[Tensor]:
    return [p.grad for p in _weights(loop) if p.grad is not None]


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
