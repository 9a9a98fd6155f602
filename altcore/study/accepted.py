"""Whether a run may be a part of an answer: it is what the study accepted as the run of its job."""

from __future__ import annotations

import os

from altcore.errors import BadInput, UnreadableFile
from altcore.runs import EVENTS, altered
from altcore.study.outcome import is_whole
from altcore.sweep import Ledger, check_accepted


def problem_of(ledger: Ledger, name: str, steps: int) -> str:
    """Return what is wrong with a job's run of so many steps; nothing if all is well.

    What a study reads is compared with what was accepted: a run of another job, an edited file and
    a link are found. Paths are told from the study's folder.

    Raises `UnreadableFile` if the system does not give out a file, which may be as it was.
    """
    return _problem_of(ledger, name, steps).replace(f"{ledger.folder}/", "")


def _problem_of(ledger: Ledger, name: str, steps: int) -> str:
    run = ledger.run_of(name)
    if not os.path.lexists(run):
        return f"{run} is missing" if ledger.standing(name).lacks_run else ""
    try:
        check_accepted(ledger, name)
        for problem in altered(run, EVENTS, strict=True).values():
            return problem
        return "" if is_whole(run, steps) else f"{run} lacks a part of its record"
    except UnreadableFile:
        raise
    except BadInput as error:
        return str(error)
