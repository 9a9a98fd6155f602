"""A sweep that was begun, run until its jobs have results."""

from __future__ import annotations

from collections.abc import Callable

from altcore.sweep.ledger import Ledger
from altcore.sweep.placing import DEFAULT, make_executor, placing_of
from altcore.sweep.progress import Progress
from altcore.sweep.status import Status, status_of
from altcore.sweep.sweep_file import SweepFile


def run_sweep(
    sweep: SweepFile,
    ledger: Ledger,
    executor: str = DEFAULT,
    tell: Callable[[str], None] = print,
) -> Status:
    """Run the jobs of a sweep; return how it stands when no worker has one to take any more.

    Args:
        sweep: what was asked for.
        ledger: of the sweep, as `begin_sweep` or `open_sweep` returns it.
        executor: where workers run, as ``local:2``.
        tell: takes a line for each attempt that begins or ends.

    Raises:
        BadInput: for an executor that there is not, or a setting that it does not have.
    """
    placed = make_executor(executor, sweep.executors)
    ledger.go_on()
    progress = Progress(ledger, tell)
    placed.run(placing_of(sweep, ledger, executor, tell, progress))
    progress.look(at_once=True)
    return status_of(sweep, ledger)
