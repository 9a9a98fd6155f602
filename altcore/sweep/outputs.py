"""What a sweep was written into before, so that nothing stale stays, and what it lacks so far."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from altcore import durable
from altcore.errors import BadInput
from altcore.runs import read_json
from altcore.sweep.changes import Changes
from altcore.sweep.ledger import State
from altcore.sweep.rows import Row

SWEEP, FILES, LACKING = "sweep", "sha256", "without_result"
"""Keys of a list of files: whose they are, their digests by name, and the jobs not in them."""
ABSENT = "not in the folder of the sweep"
NAMED = 10
"""Jobs without a result that are named in a sentence."""


def jobs_without_result(rows: Sequence[Row], plan: Changes) -> dict[str, str]:
    """Return the jobs that have no accepted run, each with its state.

    Those of the ``plan`` are among them that the sweep's folder does not have.
    """
    there = {row.name: row.state for row in rows}
    left = {name: state.value for name, state in there.items() if state is not State.COMPLETED}
    absent = {job.name: ABSENT for job in plan.added if job.name not in there}
    return dict(sorted({**left, **absent}.items()))


def lacking_told(lacking: Mapping[str, str], completed: int) -> str:
    """Return in a sentence which of a sweep's jobs have no result; empty if all have one."""
    if not lacking:
        return ""
    named = [f"{job} ({state})" for job, state in list(lacking.items())[:NAMED]]
    more = len(lacking) - len(named)
    named += [f"and {more} more"] * bool(more)
    jobs = completed + len(lacking)
    return f"{completed} of {jobs} jobs are completed; missing: {', '.join(named)}"


def files_in(path: Path, sweep: str) -> dict[str, str]:
    """Return the digests of the files that a list of a sweep names; empty if it is no such list."""
    try:
        found = read_json(path)
    except BadInput:
        return {}
    files = found.get(FILES)
    return files if found.get(SWEEP) == sweep and isinstance(files, dict) else {}


def remove_earlier(
    folder: Path, lists: Iterable[Path], sweep: str, kept: Collection[str]
) -> list[Path]:
    """Remove the files that a sweep wrote into a folder before, and does not write again.

    Args:
        folder: holds the files.
        lists: JSON files in it that may name them; one of another sweep says nothing.
        sweep: the sweep's name.
        kept: names of files, and of lists, that are not removed.

    Returns:
        Files that stay, since they are not what the sweep wrote.
    """
    others = []
    for path in lists:
        files = files_in(path, sweep)
        for name, sha256 in files.items():
            file = folder / name
            if name in kept or not file.is_file():
                continue
            if _lies_in(folder, file) and sha256_of(file) == sha256:
                durable.remove(file)
            else:
                others.append(file)
        if files and path.name not in kept:
            durable.remove(path)
    return others


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with durable.open_to_read(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _lies_in(folder: Path, file: Path) -> bool:
    """Whether a file is in a folder itself, and not behind a link or two dots."""
    return file.resolve().is_relative_to(folder.resolve())
