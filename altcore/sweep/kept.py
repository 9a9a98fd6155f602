"""What was once read of jobs and accepted runs: files that may be removed at any time.

Ten thousand runs lie in as many folders, and a disk that has not read them lately takes seconds. A
file that has changed since is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from altcore import durable
from altcore.errors import NoSpace, UnreadableFile
from altcore.runs import METRICS, SUMMARY
from altcore.sweep.ledger import RUNS, Ledger
from altcore.sweep.sound import stamp_of

CACHE = "cache"
"""The folder of these files, in that of the sweep."""


def accepted_runs(ledger: Ledger) -> dict[str, list[int]]:
    """Return what tells each accepted run from a later one of its name, by the job's name."""
    folder = ledger.folder / RUNS
    try:
        with os.scandir(folder) as found:
            # A link or a file that somebody put there is no run of the sweep's.
            own = {e.name: e.inode() for e in found if e.is_dir(follow_symlinks=False)}
            return {name: [inode, *_stamps(f"{folder}/{name}")] for name, inode in own.items()}
    except FileNotFoundError:
        return {}


def _stamps(run: str) -> Iterator[int]:
    for file in (SUMMARY, METRICS):
        yield from stamp_of(f"{run}/{file}") or ()


def of_accepted(
    ledger: Ledger, file: str, asked: str, read: Callable[[str], tuple[Any, bool]]
) -> dict[str, Any]:
    """Return what ``read`` says of every accepted run, by the job's name.

    Args:
        ledger: of the sweep.
        file: where it is kept, under `CACHE`.
        asked: tells what was asked for; what was kept for anything else is read anew.
        read: takes a job's name; returns plain data, and whether they will stay as they are.
    """
    path = ledger.folder / CACHE / file
    kept = _kept(path, asked)
    found, stays, grown = {}, {}, False
    for name, stamp in accepted_runs(ledger).items():
        known = kept.get(name)
        if known is not None and known[0] == stamp:
            found[name], is_final = known[1], True
        else:
            found[name], is_final = read(name)
            grown = grown or is_final
        if is_final:
            stays[name] = [stamp, found[name]]
    if grown:
        _keep(path, asked, stays)
    return found


@contextmanager
def remembering(ledger: Ledger) -> Iterator[None]:
    """Let a ledger know within the context which files other processes found to be sound."""
    path = ledger.folder / CACHE / "sound.json"
    kept = {name: tuple(stamp) for name, stamp in _kept(path, "").items()}
    known = ledger.sound.known = {**kept, **ledger.sound.known}
    before = dict(known)
    yield
    if known != before:
        _keep(path, "", known)


def _kept(path: Path, asked: str) -> dict[str, Any]:
    """Return what a file keeps for what is asked: nothing if any bit of it is not as it was."""
    with suppress(OSError, UnreadableFile):
        told, _, text = durable.read_file(path).partition(b"\n")
        if told == _sum(text):
            held = json.loads(text)
            return held["runs"] if held["asked"] == asked else {}
    return {}


def _keep(path: Path, asked: str, kept: Mapping[str, Any]) -> None:
    # Whoever only looks may have no right to write.
    with suppress(OSError, NoSpace):
        path.parent.mkdir(exist_ok=True)
        text = json.dumps({"asked": asked, "runs": kept}).encode()
        durable.replace_file(path, _sum(text) + b"\n" + text, synced=False)


def _sum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
