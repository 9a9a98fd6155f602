"""What a run wrote, as its record tells, and what is not there any more.

Other files of the record are missed by what recorded them: see `altcore.runs.as_left`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from altcore.durable import unreadable_named
from altcore.errors import BadInput
from altcore.log import log
from altcore.run_files import CHECKPOINTS, EVENTS, METRICS, SUMMARY
from altcore.runs import pointers
from altcore.runs.directory_lock import is_being_written
from altcore.runs.json_lines import read_lines
from altcore.runs.manifest import REGULAR, folder_of
from altcore.runs.summary import ENDED, FAILED, read_summary

BEST, LATEST = "best", "latest"
POINTERS = {BEST: pointers.BEST, LATEST: pointers.LAST}
"""The file that names each."""
TURNS = ("start", "resume", "end")
"""The events by which one sees whether a run goes on."""


def lost_summary(run: Path) -> str | None:
    """Return that summary.json is gone, if the record tells of an end since the run last began.

    Not if a process writes the run: it may be about to go on.
    """
    file = run / SUMMARY
    with suppress(BadInput), unreadable_named(file):
        if not file.exists() and not is_being_written(run):
            turns = [e for e in read_lines(run / EVENTS) if e["event"] in TURNS]
            if turns and turns[-1]["event"] == "end":
                mend = f"altcore train --resume {run.name} writes it anew"
                return f"{file} is missing: the run ended as {turns[-1].get('status')}; {mend}"
    return None


def kept_checkpoints(folder: Path) -> dict[str, str]:
    """Return the names of the best and of the latest checkpoint that retention left in a folder.

    Which checkpoint was written last, or has the best evaluation in the record, says less: it may
    have been pruned, or written before that.
    """
    found = {role: pointers.pointed_at(folder, file) for role, file in POINTERS.items()}
    return {role: name for role, name in found.items() if name}


def missing_checkpoints(run: Path, *which: str) -> dict[str, str]:
    """Return what is wrong with a run that ended and lacks its best or latest checkpoint, by name.

    Nothing is with a run that is not over, or was copied without its checkpoints.

    Args:
        run: its directory.
        which: `BEST` or `LATEST`; both if none is named.
    """
    lost: dict[Path, list[str]] = {}
    # Whoever reads the file that is at fault says so.
    with suppress(BadInput), unreadable_named(run):
        for role, path in _ended_with(run).items():
            if not path.exists() and (role in which or not which):
                lost.setdefault(path, []).append(role)
    told = "is missing: the run ended with it as its"
    return {p.name: f"{p} {told} {' and '.join(roles)} checkpoint" for p, roles in lost.items()}


def warn_of_missing(run: Path, *which: str) -> None:
    """Name the best or the latest checkpoint that a run ended with in a warning, if it is gone."""
    for problem in missing_checkpoints(run, *which).values():
        log.warning(problem)


def lost_since(run: Path, step: int) -> Path | None:
    """Return the newest checkpoint that a run wrote, if it is of a later step and is gone.

    None as well if nothing says that it was written: a run tells of a checkpoint before it writes
    it, and may have died between the two.
    """
    with suppress(BadInput), unreadable_named(run):
        summary = read_summary(run)
        made = max((line["step"] for line in read_lines(run / METRICS)), default=0)
        has_left = summary is not None and summary.status != FAILED
        written = {at: path for at, path in _told_of(run).items() if at < made or has_left}
        newest = max(written, default=0)
        if newest > step and not written[newest].exists():
            return written[newest]
    return None


def _told_of(run: Path) -> dict[int, Path]:
    """Return the regular checkpoints that the events tell of, by step."""
    # Several events name a checkpoint that was written again, and its anomaly has another name.
    return {
        event["step"]: run / event["path"]
        for event in read_lines(run / EVENTS)
        if event.get("path") == f"{CHECKPOINTS}/{folder_of(REGULAR, event['step'])}"
    }


def _ended_with(run: Path) -> dict[str, Path]:
    """Return the best and the latest checkpoint that a run kept when it ended."""
    folder = run / CHECKPOINTS
    summary = read_summary(run) if folder.is_dir() else None
    if summary is None or summary.status not in ENDED:
        return {}
    return {role: folder / name for role, name in summary.checkpoints.items()}
