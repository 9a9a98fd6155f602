"""What checkpoints and warnings call the modules and optimizers of a loop, and their parts."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen
from torch import nn

MODEL, OPTIMIZER, SCALER = "the model", "the optimizer", "the scaler"
"""Those that a loop trains first; ``also.NAME`` are all others."""


@frozen(eq=False)
class Kept:
    """Something that a checkpoint of a loop has the state of."""

    label: str

    @property
    def key(self) -> str:
        """What errors call it."""
        return self.label.removeprefix("the ")


def within(name: str, whole: str) -> str:
    """Return what a part is called; one of the model or the optimizer by its name alone.

    >>> within("0.weight", MODEL), within("0.weight", "also.critic")
    ('0.weight', '0.weight of also.critic')
    """
    return name if whole in (MODEL, OPTIMIZER, SCALER) else f"{name} of {whole}"


def parameter_names(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """Return what each parameter is called, by its id: one of several modules by the first."""
    names: dict[int, str] = {}
    for whole, module in modules.items():
        for name, p in module.named_parameters():
            names.setdefault(id(p), within(name, whole))
    return names
