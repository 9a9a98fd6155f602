"""A model, data and a loss of the caller's own, in every run of a study.

All runs of a seed begin with the same weights and see the same batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import update_wrapper
from typing import Any

from attrs import field, frozen
from torch import nn

from altcore.engine import given_from_python, identity_given, seeded
from altcore.errors import BadInput, shown


@frozen
class Own:
    """What takes the place of the workload's own; None for what does not."""

    model: nn.Module | Callable[[], nn.Module] | None = field(default=None, repr=False)
    """Each run trains a copy of it, or of what it returns with the random states of the seed."""
    data: Callable[..., Any] | None = None
    """``(split, step, micro) -> batch``, or with a further parameter ``seed``."""
    loss: Callable[[nn.Module, Any], Any] | None = None
    """``(model, batch) -> loss``, or the loss and measures by name."""

    def __attrs_post_init__(self) -> None:
        for name in ("model", "data", "loss"):
            part = getattr(self, name)
            if not (part is None or callable(part)):
                raise BadInput(f"a function is needed, not {shown(part)}", key=name)

    @property
    def names(self) -> dict[str, str]:
        """What was passed in, by name, as a run that is resumed knows it."""
        return given_from_python(self.model, self.data, self.loss)

    def identity(self) -> dict[str, Any]:
        """Return what was passed in as the identity of a run holds it.

        A function that returns the model is known by its name: the workload's facts have the model.
        """
        model = self.model if isinstance(self.model, nn.Module) else None
        known = identity_given(model, self.data, self.loss)
        return {part: known.get(part, name) for part, name in self.names.items()}

    def called(self, workload: str) -> str:
        """Return what is trained, in words: a workload, and what takes the place of its parts.

        >>> Own().called("gpt"), Own(nn.Linear).called("gpt")
        ('gpt', 'gpt with model `Linear`')
        """
        parts = [f"{part} `{name.partition(',')[0]}`" for part, name in self.names.items()]
        own = ", ".join(parts)
        return own if len(parts) == 3 else f"{workload} with {own}" if own else workload

    @property
    def _has_seed(self) -> bool:
        return self.data is not None and "seed" in inspect.signature(self.data).parameters

    def parts(self, seed: int) -> dict[str, Any]:
        """Return what a run of a seed passes to `altcore.train`."""
        made = {"model": self._model(seed), "data": self._data(seed), "loss": self.loss}
        return {name: part for name, part in made.items() if part is not None}

    def _model(self, seed: int) -> nn.Module | None:
        if self.model is None:
            return None
        made = _made(self.model, seed)
        try:
            return deepcopy(made)  # a function may return the same one each time
        except Exception as error:
            again = _made(self.model, seed)
            if isinstance(made, nn.Module) and not _parts(made) & _parts(again):
                return again
            told = str(error).partition(".")[0] or type(error).__name__
            raise BadInput(
                f"each run trains a copy of it, and it cannot be copied: {told}",
                key="model",
                hint="give a function that returns a new model at each call; or, in the place of "
                "torch.nn.utils.weight_norm, use that of torch.nn.utils.parametrizations",
            ) from error

    def _data(self, seed: int) -> Callable[[str, int, int], Any] | None:
        if self.data is None or not self._has_seed:
            return self.data
        data = self.data

        def of_seed(split: str, step: int, micro: int) -> Any:
            return data(split, step, micro, seed=seed)

        return update_wrapper(of_seed, data)


def _made(given: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return the model, or what the function returns with the random states of a seed."""
    if isinstance(given, nn.Module):
        return given
    with seeded(seed):
        return given()


def _parts(model: nn.Module) -> set[int]:
    """Return the identities of a model's parts: two that share one are trained together."""
    return {id(x) for x in (*model.modules(), *model.parameters(), *model.buffers())}


NOTHING = Own()
