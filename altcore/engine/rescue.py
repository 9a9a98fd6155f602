"""What becomes of a run whose directory or record is removed or moved while it writes to it."""

from __future__ import annotations

from collections.abc import Callable

from altcore.engine.state import Run
from altcore.errors import AltcoreError, LostDirectory, LostRecord
from altcore.runs import RunDirectory


def check_place(directory: RunDirectory, run: Run, save: Callable[[], None]) -> None:
    """End a run that lost its directory, or lines of its record, after a checkpoint.

    It is saved where a directory was moved to; if it was removed, in a new one beside it. A warning
    names each file that was changed or removed and is put back.

    Raises:
        AltcoreError: that says what is lost, and where the state is.
    """
    try:
        put_back(directory, run)
        directory.check_logs()
    except LostDirectory as lost:
        name = run.directory.name
        if lost.moved_to is not None:
            directory.follow(lost.moved_to)
            then = f"give the directory its name back, and --resume {name} goes on"
        else:
            without = directory.begin_anew(f"{name}-rescued")
            then = f"--resume {directory.path.name} goes on"
            then += f", without the lines so far of {', '.join(without)}" if without else ""
        run.directory = directory.path
        save()
        where = f"the state after step {run.step} is saved in {directory.path}"
        raise AltcoreError(f"{lost}; {where}: {then}") from lost
    except LostRecord as lost:
        save()
        then = f"--resume {directory.path.name} goes on"
        raise AltcoreError(f"{lost}; the state after step {run.step} is saved: {then}") from lost


def put_back(directory: RunDirectory, run: Run) -> None:
    """Write files of the record anew that other code changed or removed; a warning names each.

    Raises what `RunDirectory.check_in_place` does.
    """
    directory.check_in_place()
    for done in directory.put_back():
        run.emit("warning", message=done)
