"""What the tests of faults share: their numbers, and the run that they harm (docs/faults.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define
from helpers import (
    PluginShelf,
    Starter,
    events,
    forget_installed,
    metrics_bytes,
    sha256,
    state,
    text_file,
)
from helpers_checkpoints import without_resumes
from torch.utils._pytree import tree_map_only

from altcore import BadInput, hookimpl
from altcore.runs import list_checkpoints

KEYS = {
    "max_steps": 22,
    "checkpoint_interval": 5,
    "eval_interval": 7,
    "max_checkpoints": 2,
    "snapshot_interval": 2,
    "max_snapshots": 3,
    "gpt__dropout": 0.1,
    "format": "E4M3",
    "recipe": {"stored_weight": {"format": "FORMAT", "rounding": "stochastic"}, "weight": "FORMAT"},
    "rollback__steps": 3,
    "rollback__nan_patience": 1,
    "rollback__format": "E5M2",
}
PLUGINS = ("trouble", "rollback")


def numbered(few: int, many: int) -> list[Any]:
    """Return the numbers below ``many``; those from ``few`` on are for `make test-exhaustive`."""
    rest = (pytest.param(i, marks=pytest.mark.exhaustive) for i in range(few, many))
    return [*range(few), *rest]


@define(eq=False)
class Trouble:
    """Makes the loss NaN twice, so that the run rolls back."""

    @hookimpl
    def pre_backward(self, step: Any) -> None:
        """Spoil a step."""
        if step.index in (8, 16):
            step.loss = step.loss * math.nan


@contextmanager
def eventful_run(folder: Path) -> Iterator[Starter]:
    """Give a starter of a run with dropout, stochastic storage, rollbacks and a shift."""
    (folder / "site").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        PluginShelf(folder / "site", patch).install("intervention", "trouble", Trouble)
        yield Starter(folder / "runs", text_file(folder / "words.txt"), KEYS)
    forget_installed()


def check_is_eventful(run: Path) -> None:
    """Assert that all this happened."""
    assert {"nan", "rollback", "recipe"} <= {event["event"] for event in events(run)}


def go_on(start: Starter, name: str, plugins: Sequence[str] = PLUGINS) -> None:
    """Resume a run, or begin it anew if it had not begun; one that is finished stays as it is."""
    if not list_checkpoints(start.runs / name / "checkpoints"):
        start(plugins, name=name)
        return
    try:
        start.resume(name)
    except BadInput as error:
        assert "is finished" in str(error)  # noqa: PT017 - it need not be raised


def check_same(one: Path, other: Path, *, logs: bool = True) -> None:
    """Assert that two runs left the same: weights, state and, if asked, metrics and events."""
    first, second = state(one), state(other)
    assert sha256(first["model"]) == sha256(second["model"])
    if logs:
        assert metrics_bytes(one) == metrics_bytes(other)
        assert without_resumes(one) == without_resumes(other)
    plugins, others = (found["ranks"][0]["plugins"] for found in (first, second))
    assert plugins.keys() == others.keys()
    for name, kept in plugins.items():
        assert plain(kept) == plain(others[name]), name
    for key in ("detector", "lr_scale", "step", "history", "shifts"):
        assert plain(first[key]) == plain(second[key]), key


def plain(state: Any) -> str:
    """Return all of a state as text: NaN is no equal of itself, and tensors have many truths."""
    return repr(tree_map_only(torch.Tensor, lambda t: (t.dtype, t.tolist()), state))
