"""Which modules of a model train: those that were put into evaluation stay in it."""

from __future__ import annotations

from collections.abc import Container

from attrs import define, field
from torch import nn

from altcore.quantization import Quantization


@define(eq=False)
class Modes:
    """The mode of each module while a run trains.

    A model may be given with a part in evaluation, such as a frozen batch norm. One that is in
    evaluation as a whole is trained as a whole. Layers that torch computes alike in both are
    trained, too: the mode of a quantized one is that of its scales and counters.
    """

    model: nn.Module
    quantization: Quantization
    frozen: list[str] = field(init=False, factory=list)
    """The names of the modules that stay in evaluation."""
    _pairs: list[tuple[nn.Module, bool]] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.note()

    def note(self) -> None:
        """Take the modes as they are now, before the first step, and train."""
        alike = {id(x.module) for x in self.quantization.layers.values() if x.is_direct}
        self.frozen = [
            name
            for name, module in self.model.named_modules()
            if self.model.training and not (module.training or id(module) in alike)
        ]
        self._train()

    def put(self) -> None:
        """Put every module into its mode, if something has changed one since."""
        if not all(module.training is mode for module, mode in self._pairs):
            self._train()  # slow: it sets them all

    def put_back(self, frozen: Container[str]) -> None:
        """Let the modules of these names be in evaluation, and all others in training."""
        for name, module in self.model.named_modules():
            module.training = name not in frozen

    def _train(self) -> None:
        self.model.train()  # a model may leave a part in evaluation by a method of its own
        modules = dict(self.model.named_modules())
        for name in self.frozen:
            modules[name].training = False
        self._pairs = [(module, module.training) for module in modules.values()]
