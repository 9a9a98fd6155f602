"""Which checkpoints stay, and the pointers ``last`` and ``best``: all by what manifests say."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from altcore import durable
from altcore.errors import UnreadableFile
from altcore.log import log
from altcore.runs.checkpoint import (
    HALF_WRITTEN,
    SNAPSHOTS,
    WEIGHTS_FILE,
    drop,
    put_in_place,
    snapshot_file,
)
from altcore.runs.kept import Kept, by_merit, list_checkpoints
from altcore.runs.manifest import ANOMALY, MANIFEST, REGULAR, WEIGHTS, encode_manifest, folder_of
from altcore.runs.pointers import BEST, LAST, point_to

OWN_SNAPSHOT = re.compile(r"step-\d{8,}-[0-9a-f]{12}\.pt")


def retain(
    folder: Path,
    *,
    monitor: str,
    mode: str,
    max_checkpoints: int,
    keep_best: int,
    own: Collection[int] | None = None,
) -> None:
    """Set the pointers, and remove what need not stay: of the steps in ``own``, if it is given.

    There stay the best and the newest regular checkpoints, ``max_checkpoints`` together; the last
    one before the first anomaly; step 0 if it is a manifest alone; anomalies; and the next
    ``keep_best`` best as weights only. If one cannot be read, all stay, with a warning: nobody
    knows what it needs.
    """
    try:
        with durable.no_space_named(folder):
            _retain(folder, monitor, mode, max_checkpoints, keep_best, own)
    except UnreadableFile as error:
        _warn_of_unreadable(str(error))


@cache
def _warn_of_unreadable(error: str) -> None:
    log.warning("no old checkpoint is removed", error=error)


def _retain(
    folder: Path,
    monitor: str,
    mode: str,
    max_checkpoints: int,
    keep_best: int,
    own: Collection[int] | None,
) -> None:
    found = list_checkpoints(folder)
    others = {kept.step for kept in found if own is not None and kept.step not in own}
    whole = [kept for kept in found if kept.kind == REGULAR]
    regular = [kept for kept in whole if kept.step not in others]
    best = by_merit(regular, monitor, mode)[:1]
    stay = [kept.step for kept in regular[-1:] + best + regular[::-1]]
    stay = list(dict.fromkeys(stay))[:max_checkpoints]
    point_to(folder, LAST, regular[-1].path.name if regular else None)
    point_to(folder, BEST, best[0].path.name if best and best[0].step in stay else None)

    stay += others
    anomaly = min((kept.step for kept in found if kept.kind == ANOMALY), default=0)
    stay += [kept.step for kept in regular if kept.step < anomaly][-1:]
    gone = [kept for kept in regular if kept.step not in stay and kept.manifest["files"]]

    light = [kept for kept in found if kept.kind == WEIGHTS and kept.step not in stay]
    candidates = {kept.step: kept for kept in gone} | {kept.step: kept for kept in light}
    good = [kept.step for kept in by_merit(candidates.values(), monitor, mode)[:keep_best]]
    for kept in gone:
        if kept.step in good and candidates[kept.step] is kept:
            _keep_weights(kept)
        drop(kept.path)
    for kept in found:
        if kept.kind == WEIGHTS and kept.step not in {*good, *others}:
            drop(kept.path)
    _drop_snapshots(folder, [kept for kept in whole if kept not in gone])


def _keep_weights(kept: Kept) -> None:
    """Make a checkpoint of the weights alone, of the same file."""
    folder, name = kept.path.parent, folder_of(WEIGHTS, kept.step)
    temporary = folder / f"{name}{HALF_WRITTEN}"
    files = {WEIGHTS_FILE: kept.manifest["files"][WEIGHTS_FILE]}
    manifest = {**kept.manifest, "kind": WEIGHTS, "files": files, "snapshots": []}
    durable.remove(temporary)
    try:
        durable.make_folder(temporary)
        durable.link(kept.path / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
        durable.write_file(temporary / MANIFEST, encode_manifest(manifest))
        put_in_place(temporary, folder / name)
    except BaseException:
        durable.remove(temporary)
        raise


def _drop_snapshots(folder: Path, regular: Sequence[Kept]) -> None:
    wanted = {snapshot_file(e) for kept in regular for e in kept.manifest["snapshots"]}
    place = folder / SNAPSHOTS
    for path in place.iterdir() if place.is_dir() else ():
        if path.name not in wanted and OWN_SNAPSHOT.fullmatch(path.name):
            durable.remove(path)
