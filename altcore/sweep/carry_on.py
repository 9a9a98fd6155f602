"""A new attempt goes on with the run of the one before, from a copy of its checkpoints."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from altcore import durable
from altcore.runs import CHECKPOINTS, is_checkpoint


def newest_step(run: Path | None) -> int:
    """Return the step of a run's newest checkpoint, -1 without one."""
    found = () if run is None else (run / CHECKPOINTS).glob("step-*")
    return max((int(p.name.removeprefix("step-")) for p in found if is_checkpoint(p)), default=-1)


def copy_place(target: Path) -> Path:
    """Return where `copy_run` makes its copy. While that is there, the run was not copied."""
    return target.with_name(f".{target.name}.copy")


def copy_run(source: Path, target: Path) -> None:
    """Copy a run's directory, whole or not at all. Files of checkpoints, which nobody changes, are
    linked.

    The source may be written to meanwhile. A resume finds the newest checkpoint that is whole. A
    run without one, which begins anew, is not copied.
    """
    made = copy_place(target)
    with durable.no_space_named(target):
        _copy(source, made)
        if any(is_checkpoint(path) for path in (made / CHECKPOINTS).glob("*")):
            durable.rename(made, target)
        else:
            durable.remove(made)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for folder, folders, names in os.walk(source):
        own = Path(folder)
        there = target / own.relative_to(source)
        for name in folders:
            if not (own / name).is_symlink():
                (there / name).mkdir(exist_ok=True)
        is_kept = own.parent.name == CHECKPOINTS
        for name in names:
            copy = durable.link if is_kept else partial(shutil.copyfile, follow_symlinks=False)
            try:
                copy(own / name, there / name)
            except FileNotFoundError:
                continue  # pruned since it was listed
