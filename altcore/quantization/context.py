"""The state that the layers and quantizers of one quantized model share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from attrs import define, field
from torch import Tensor

from altcore.log import warn
from altcore.quantization.flops import FlopCount


def this_rank() -> int:
    """Return the number of this process among those that train together; 0 for a lone one."""
    d = torch.distributed
    return d.get_rank() if d.is_available() and d.is_initialized() else 0


@define(eq=False)
class Clock:
    """Where in the run the model is: the random bits of stochastic rounding depend on it."""

    seed: int = 0
    step: int = 0

    @property
    def rank(self) -> int:
        """That of this process."""
        return this_rank()


@define(eq=False)
class Context:
    """The modes of a quantized model, and the counts that all of its layers add to."""

    clock: Clock = field(factory=Clock)
    parameters: Callable[[], Iterable[Tensor]] = tuple
    """Returns those of the model."""
    compute: str = "float32"
    """The type in which products run; see `altcore.quantization.compute.COMPUTES`."""
    is_off: bool = False
    """Whether the model runs unquantized."""
    is_frozen: bool = False
    """Whether scales, counters and call numbers stand still: in evaluation and in probes."""
    is_recomputing: bool = False
    """Whether a part of the forward pass runs again in the backward pass, and counts nothing."""
    tracks_views: bool = False
    """Whether layers keep the views of master weights, to see which of them an update moves."""
    measures_errors: bool = False
    """Whether quantizers sum the squares of their errors."""
    flops: FlopCount | None = None
    """Counts products while `altcore.quantization.Quantization.count_flops` runs."""
    largest_of_ranks: Callable[[Tensor], Tensor] | None = None
    """Returns the largest amax of all ranks; None if each rank scales by its own."""
    has_learned: bool = False
    """Whether a backward pass reached a quantized layer under the current recipe."""
    is_coverage_told: bool = False
    """Whether the user was told of layers and roles that the current recipe misses."""
    tell_coverage: Callable[[], None] = field(default=lambda: None)
    """Tells the user; called by the first layer that runs after a training step."""
    renew_counts: Callable[[], None] = field(default=lambda: None)
    """Sets the counts of a step that is over to zero; called by layers that train."""
    changed_weights: set[str] = field(factory=set)
    """Stored weights that something other than `Quantization.store` changed."""
    told: set[str] = field(factory=set)
    """Messages that the user has seen."""

    _at_first_backward: tuple[int, int] = field(init=False, default=(0, 0))

    def note_backward(self) -> None:
        """Note that a backward pass reaches a quantized layer."""
        if not self.has_learned:
            self.has_learned, self._at_first_backward = True, self._position()

    @property
    def has_stepped(self) -> bool:
        """Whether the step of the first backward pass is over: no micro-batch of it follows.

        That is if its weights were stored or moved, or its gradients cleared.
        """
        if not self.has_learned:
            return False
        is_moved = self._position() != self._at_first_backward
        return is_moved or all(p.grad is None for p in self.parameters())

    def _position(self) -> tuple[int, int]:
        return self.clock.step, sum(p._version for p in self.parameters() if p.requires_grad)

    def is_news(self, message: str) -> bool:
        """Whether the user has not been told yet; from now on they have."""
        is_new = message not in self.told
        self.told.add(message)
        return is_new

    def warn(self, message: str) -> None:
        """Issue a warning, once."""
        if self.is_news(message):
            warn(message, stacklevel=2)
