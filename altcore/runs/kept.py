"""The checkpoints in a folder, as their manifests tell of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from altcore.errors import InvalidCheckpoint
from altcore.log import log
from altcore.runs.manifest import is_checkpoint, read_manifest


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


def list_checkpoints(folder: Path) -> list[Kept]:
    """Return the checkpoints whose manifests are valid, by step; each other one is named once."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_checkpoint(path):
            try:
                found.append(Kept(path, read_manifest(path)))
            except InvalidCheckpoint as error:
                if is_checkpoint(path):  # and its writer did not remove it meanwhile
                    _warn_of(str(error))
    return sorted(found, key=lambda kept: kept.step)


@cache
def _warn_of(error: str) -> None:
    log.warning("a checkpoint is not valid, and left alone", error=error)


def by_merit(found: Iterable[Kept], monitor: str, mode: str) -> list[Kept]:
    """Return the checkpoints that were evaluated, the best first; of two alike the earlier."""

    def value(kept: Kept) -> float:
        evaluation = kept.manifest["evaluation"] or {}
        told, loss = evaluation.get(monitor), evaluation.get("val_loss", 0.0)
        # A number that is not finite is a word; an evaluation of an infinite loss is never best.
        if not (isinstance(told, int | float) and isinstance(loss, int | float)):
            return math.inf
        return told if mode == "min" else -told

    evaluated = [kept for kept in found if value(kept) < math.inf]
    return sorted(evaluated, key=lambda kept: (value(kept), kept.step))
