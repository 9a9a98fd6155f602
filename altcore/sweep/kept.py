"""What was once read of accepted runs, which do not change: files that may be removed at any time.

Ten thousand runs lie in as many folders, and a disk that has not read them lately takes seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from altcore import durable
from altcore.errors import BadInput, NoSpace
from altcore.runs import read_json
from altcore.sweep.ledger import RUNS, Ledger

CACHE = "cache"
"""The folder of these files, in that of the sweep."""


def accepted_runs(ledger: Ledger) -> dict[str, int]:
    """Return the number of the folder of each accepted run, by the job's name."""
    try:
        with os.scandir(ledger.folder / RUNS) as found:
            # A link or a file that somebody put there is no run of the sweep's.
            return {e.name: e.inode() for e in found if e.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return {}


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
    kept: Any = None
    with suppress(BadInput):
        held = read_json(path)
        kept = held.get("runs") if held.get("asked") == asked else None
    if not isinstance(kept, dict):
        kept = {}
    found, stays, grown = {}, {}, False
    for name, number in accepted_runs(ledger).items():
        known = kept.get(name)
        if isinstance(known, list) and len(known) == 2 and known[0] == number:
            found[name], is_final = known[1], True
        else:
            found[name], is_final = read(name)
            grown = grown or is_final
        if is_final:
            stays[name] = [number, found[name]]
    if grown:
        # Whoever only looks may have no right to write.
        with suppress(OSError, NoSpace):
            path.parent.mkdir(exist_ok=True)
            durable.replace_text(path, json.dumps({"asked": asked, "runs": stays}))
    return found
