"""Whether the files of a run are as it left them: one place that compares, for all who read them.

At its end a run writes length and SHA-256 of its records into summary.json, which digests itself.
Before that, its newest checkpoint has those of its .jsonl files up to then, and its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from altcore.durable import unreadable_named
from altcore.errors import BadInput, UnreadableFile
from altcore.log import log, warn_once
from altcore.run_files import ENVIRONMENT, HELD, SUMMARY
from altcore.runs.edited_files import edited
from altcore.runs.environment_file import check_environment
from altcore.runs.json_lines import read_lines
from altcore.runs.missing import lost_summary
from altcore.runs.own_checkpoint import begins_as, newest_manifest
from altcore.runs.summary import changed_summary, records_in


def altered(run: Path, *files: str, by_size: bool = False, strict: bool = False) -> dict[str, str]:
    """Return what is wrong with each file of a run that is not as the run left it, by name.

    Args:
        run: its directory.
        files: which to read; all that the run wrote, and summary.json, if none is named.
        by_size: whether sizes alone are compared, and nothing is read but what recorded them.
        strict: whether a file that the system does not give out is an `UnreadableFile`.
    """
    recorded, source = _recorded(run)
    wanted = [file for file in recorded if not files or file in files]
    problems = {
        file: _problem(run / Path(file).name, recorded[file], source, by_size, strict)
        for file in wanted
    }
    found = {file: problem for file, problem in problems.items() if problem}
    if not files and not by_size:
        if source != SUMMARY:  # which digests the file
            try:
                check_environment(run)
            except UnreadableFile:
                pass
            except BadInput as error:
                found[ENVIRONMENT] = str(error)
        # Whoever reads these files says what is wrong with them.
        with suppress(BadInput):
            if source != SUMMARY or not found.keys().isdisjoint(HELD):
                keys = edited(run)  # says more than a digest, which sees more
                found |= {f: keys[f] for f in keys if f in found or source != SUMMARY}
        with suppress(BadInput):
            told = changed_summary(run) or lost_summary(run)
            found |= {SUMMARY: told} if told else {}
    return found


def warn_of_altered(run: Path, *, by_size: bool = False) -> None:
    """Name each file of a run that is not as the run left it in a warning.

    All but summary.json, which is named when it is read.
    """
    for file, problem in altered(run, by_size=by_size).items():
        if file != SUMMARY:
            log.warning(problem)


def lines_of(run: Path, file: str) -> list[dict[str, Any]]:
    """Return the lines of a run's .jsonl file; one that was altered is named, once a process."""
    for problem in altered(run, file).values():
        warn_once(problem)
    return read_lines(run / file)


def _recorded(run: Path) -> tuple[Mapping[str, Mapping[str, Any]], str]:
    """Return length and hash of each file, and what recorded them."""
    with suppress(BadInput):
        if records := records_in(run):
            return records, SUMMARY
    try:
        checkpoint, manifest = newest_manifest(run)
    except UnreadableFile as error:
        warn_once(f"nobody knows whether the record is as the run left it: {error}")
        return {}, ""
    return manifest.get("logs", {}), checkpoint.name if checkpoint else ""


def _problem(
    file: Path, recorded: Mapping[str, Any], source: str, by_size: bool, strict: bool
) -> str | None:
    try:
        return _difference(file, recorded, source, by_size)
    except UnreadableFile as error:
        if strict:
            raise
        return str(error)


def _difference(file: Path, recorded: Mapping[str, Any], source: str, by_size: bool) -> str | None:
    try:
        with unreadable_named(file):
            status = file.stat()
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    size, expected = status.st_size, recorded["bytes"]
    # What a run writes after a checkpoint is not in it.
    if size < expected or (size > expected and source == SUMMARY):
        return f"{file} was changed: it has {size} bytes, and {expected} in {source}"
    if by_size:
        return None
    stamp = status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns
    if _is_as_recorded(file, expected, recorded["sha256"], *stamp):
        return None
    return f"{file} was changed: its digest is not that in {source}"


@cache
def _is_as_recorded(file: Path, size: int, sha256: str, *_: int) -> bool:
    """Whether a file begins as recorded. Reads an unchanged file only once."""
    return begins_as(file, {"bytes": size, "sha256": sha256})
