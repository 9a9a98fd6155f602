"""Which loop of your own a checkpoint is of: an id that is drawn at its first save into a folder.

A loop that goes on from a checkpoint of the folder takes its id over. So checkpoints of two loops
in one folder are found, which only their steps would order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from altcore.log import log
from altcore.runs.checkpoint import load_newest
from altcore.runs.kept import Kept, list_checkpoints
from altcore.runs.manifest import REGULAR
from altcore.runs.run_id import new_run_id

LOOP_ID = "loop_id"
"""The key in manifests; those of earlier versions have none."""
_ids: Any = WeakIdKeyDictionary()
"""The id of a model's loop in each folder."""


def loop_id(model: nn.Module, folder: Path) -> str:
    """Return the id of the loop that trains a model and saves into a folder."""
    return str(_ids.setdefault(model, {}).setdefault(folder, new_run_id()))


def take_over(model: nn.Module, path: Path, manifest: Mapping[str, Any]) -> None:
    """Let a model's loop be the one that wrote a checkpoint."""
    if told := manifest.get(LOOP_ID):
        _ids.setdefault(model, {})[path.parent] = told
        tell_others(path.parent, told)


def of_loop(model: nn.Module, folder: Path) -> list[Kept]:
    """Return the regular checkpoints of a model's loop in a folder, by step; others are named.

    If it has neither saved nor loaded there, it is the loop of the newest one.
    """
    found = [kept for kept in list_checkpoints(folder) if kept.kind == REGULAR]
    newest = found[-1].manifest.get(LOOP_ID) if found else None
    own = _ids.get(model, {}).get(folder, newest)
    tell_others(folder, own)
    return [kept for kept in found if not _is_others(kept, own)]


def newest_in(folder: Path) -> Path:
    """Return the newest valid checkpoint in a folder, as `load_newest`; other loops' are named."""
    found = load_newest(folder)
    tell_others(folder, found.manifest.get(LOOP_ID))
    return found.path


def tell_others(folder: Path, own: str | None) -> None:
    """Warn, once, of checkpoints in a folder that are of another loop than the one with this id."""
    found = [kept for kept in list_checkpoints(folder, strict=False) if _is_others(kept, own)]
    if found:
        _warn(folder, own, found[-1].path.name)


def _is_others(kept: Kept, own: str | None) -> bool:
    told = kept.manifest.get(LOOP_ID)
    return None not in (own, told) and kept.kind == REGULAR and told != own


@cache
def _warn(folder: Path, own: str, name: str) -> None:
    problem = f"{folder} holds checkpoints of two loops: {name} is of another one"
    hint = "give each a folder of its own: whoever loads goes on from the newest step of them all"
    log.warning(problem, hint=hint)
