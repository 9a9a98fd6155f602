"""Computing a part of a forward pass again in the backward pass, to the same bits.

Activation checkpointing (Chen et al., 2016, arXiv:1604.06174) keeps only what goes into a block,
and runs the block again when its gradients are needed. Rounding depends on more than that: on
which draw of random bits it is, and on the scales that a delayed scaling had. Both are what they
were, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from attrs import frozen
from torch import Tensor

from altcore.quantization.again import Again
from altcore.quantization.context import Context
from altcore.quantization.quantizer import BlockScales, Quantizer


@frozen
class _State:
    """What a quantizer's next rounding depends on. Tensors are replaced, never written to."""

    quantizer: Quantizer
    last_step: int
    calls: int
    history: Tensor | None
    kept_scale: Tensor | BlockScales | None
    last_key: int | None

    @classmethod
    def of(cls, q: Quantizer) -> _State:
        return cls(q, q.last_step, q.calls, q.history, q.kept_scale, q.last_key)

    def restore(self) -> None:
        q = self.quantizer
        q.last_step, q.calls, q.history = self.last_step, self.calls, self.history
        q.kept_scale, q.last_key = self.kept_scale, self.last_key


def recomputation(
    quantizers: Sequence[Quantizer], context: Context
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a forward pass that begins now, and of its repetition."""
    then = [_State.of(q) for q in quantizers]
    modes = context.is_off, context.is_frozen

    @contextmanager
    def again() -> Iterator[None]:
        now = [_State.of(q) for q in quantizers]
        before = context.is_off, context.is_frozen
        for state in then:
            state.restore()
        context.is_off, context.is_frozen = modes
        context.is_recomputing = True
        try:
            yield
        finally:
            for state in now:
                state.restore()
            context.is_off, context.is_frozen = before
            context.is_recomputing = False

    return nullcontext(), Again(again)
