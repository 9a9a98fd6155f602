"""The checkpoints in a folder, as their manifests tell of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from altcore.config import as_cost
from altcore.errors import InvalidCheckpoint, UnreadableFile
from altcore.log import log
from altcore.runs.manifest import checkpoints_in, is_checkpoint, kind_and_step, read_manifest


class Kept(NamedTuple):
    """A checkpoint as its manifest tells of it."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Regular, anomaly or weights."""
        return str(self.manifest["kind"])

    @property
    def step(self) -> int:
        """The step after which it was written."""
        return int(self.manifest["step"])


def list_checkpoints(folder: Path, *, strict: bool = True) -> list[Kept]:
    """Return the checkpoints whose manifests are valid, by step; each other one is named once.

    Args:
        folder: that holds them.
        strict: whether one that the system does not give out is an `UnreadableFile`. Otherwise it
            is there with what its name tells, ``kind`` and ``step``, and named once as well.
    """
    found = []
    for path in checkpoints_in(folder):
        try:
            found.append(Kept(path, read_manifest(path)))
        except (InvalidCheckpoint, UnreadableFile) as error:
            if not is_checkpoint(path):  # its writer removed it meanwhile
                continue
            if isinstance(error, InvalidCheckpoint):
                _warn_of(str(error), "is not valid")
            elif strict:
                raise
            else:
                kind, step = kind_and_step(path.name)
                found.append(Kept(path, {"kind": kind, "step": step}))
                _warn_of(str(error), "cannot be read")
    return sorted(found, key=lambda kept: kept.step)


@cache
def _warn_of(error: str, problem: str) -> None:
    log.warning(f"a checkpoint {problem}, and is left alone", error=error)


def by_merit(found: Iterable[Kept], monitor: str, mode: str) -> list[Kept]:
    """Return the checkpoints that were evaluated, the best first; of two alike the earlier."""

    def value(kept: Kept) -> float:
        evaluation = kept.manifest["evaluation"] or {}
        told, loss = evaluation.get(monitor), evaluation.get("val_loss", 0.0)
        # A number that is not finite is a word; an evaluation of an infinite loss is never best.
        if not (isinstance(told, int | float) and isinstance(loss, int | float)):
            return math.inf
        return as_cost(told, mode)

    evaluated = [kept for kept in found if value(kept) < math.inf]
    return sorted(evaluated, key=lambda kept: (value(kept), kept.step))
