"""``altcore sweep``: many runs, planned, run, watched and collected."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from functools import partial
from select import select
from typing import TYPE_CHECKING, Any

import click

from altcore.builtin_types import duration
from altcore.cli.options import Group, once
from altcore.cli.sweep_check import check
from altcore.cli.sweep_options import SWEEPS_DIR, asked_of, asking
from altcore.cli.sweep_results import collect, export, verify
from altcore.cli.sweep_retry import retry
from altcore.cli.sweep_status import list_, print_end, status
from altcore.cli.terminal import echo, say
from altcore.environment import EXECUTOR_PID

if TYPE_CHECKING:
    from altcore.sweep import Estimate, Job

EXECUTOR = once(
    "--executor",
    metavar="NAME[:KEY=VALUE,...]",
    default="local",
    help="Where workers run (default local, in this process; local:2 is two processes).",
)
ACCEPT = click.option(
    "--accept-changes",
    "accept",
    is_flag=True,
    help="Take jobs out of the sweep that the file changed or no longer has; what was made of them "
    "is kept.",
)


@click.group(cls=Group)
def sweep() -> None:
    """Run many runs: a grid of settings, variants and seeds.

    \b
    altcore sweep plan study.yaml
    altcore sweep run study.yaml --executor local:2
    altcore sweep status study
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    from altcore.cli.log import configure

    configure()


for command in (check, list_, status, retry, verify, export, collect):
    sweep.add_command(command)


@sweep.command()
@click.argument("file", required=False)
@asking
@click.option(
    "--script", is_flag=True, help="Show the batch script of the executor, in place of the jobs."
)
@EXECUTOR
@SWEEPS_DIR
def plan(file: str | None, executor: str, sweeps_dir: str, *, script: bool, **given: Any) -> None:
    """Show every job that a sweep file asks for; nothing is written.

    They are in the order in which they begin. FILE may be the name of a sweep that was begun.
    """
    from altcore.sweep import (
        Ledger,
        changes_of,
        checked_jobs_of,
        estimate_of,
        folder_of,
        make_executor,
        script_of,
    )

    asked = asked_of(file, given, sweeps_dir)
    make_executor(executor, asked.executors)
    ledger = Ledger(folder_of(str(asked.name), sweeps_dir), asked.rules)
    jobs = checked_jobs_of(asked, ledger)
    if script:
        click.echo(script_of(asked, ledger, executor))
        return
    changes = changes_of(ledger, jobs)
    echo("\n".join(job.name for job in sorted(jobs, key=lambda job: job.turn)))
    say(_told_plan(jobs), "info")
    say(_told_estimate(estimate_of(ledger, jobs)), "info")
    if told := str(asked.declared):
        say(f"declared: {told}", "info")
    for names, what in ((changes.changed, "changed"), (changes.removed, "removed")):
        if names:
            say(f"{what} since {ledger.folder} was begun: {', '.join(names)}", "warning")
    if changes.told_change:
        say(f"in {changes.changed[0]}, {changes.told_change}", "warning")
    for problem in changes.damaged:
        say(problem, "warning")


def _told_estimate(found: Estimate) -> str:
    failed = f"; {found.failed} failed: altcore sweep retry tries again" if found.failed else ""
    if not found.left:
        return f"no job is left{failed}" if failed else "every job has a result"
    told = []
    where = f" on {'; '.join(found.hardware)}" if found.hardware else ""
    if found.seconds is not None:
        told.append(f"{found.left} left take {duration(found.seconds)}, one after another")
    for key, what in (("peak_memory_bytes", "memory"), ("peak_gpu_memory_bytes", "GPU memory")):
        if key in found.memory:
            told.append(f"a worker takes {found.memory[key] / 1e9:.2f} GB of {what}")
    measured = f"{'; '.join(told)} (measured: {found.source}{where})" if told else ""
    unknown = ""
    if found.seconds is None:
        what = f"the time of {', '.join(found.unmeasured)}" if told else "time and memory"
        are = "is" if told else "are"
        unknown = f"{what} {are} unknown: altcore sweep check measures a few steps"
    return "; ".join(filter(None, (unknown, measured))) + failed


def _told_plan(jobs: list[Job]) -> str:
    by_variant = Counter(job.variant for job in jobs)
    told = ", ".join(f"{variant} {count}" for variant, count in by_variant.items())
    return f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {told}"


@sweep.command()
@click.argument("file", required=False)
@asking
@EXECUTOR
@ACCEPT
@SWEEPS_DIR
def run(
    file: str | None, executor: str, sweeps_dir: str, *, accept: bool, **given: Any
) -> int | None:
    """Run a sweep until every job has a result.

    The same command again goes on where it was. FILE may be the name of a sweep that was begun:
    its own file is then compared with it, and options change that one.
    """
    from altcore.sweep import (
        begin_sweep,
        bring_up_to_date,
        checked_jobs_of,
        is_sweep_file,
        make_executor,
        open_sweep,
        run_sweep,
    )

    if file is None or is_sweep_file(file, sweeps_dir) or any(given.values()):
        asked = asked_of(file, given, sweeps_dir)
        make_executor(executor, asked.executors)  # refused before anything is written
        ledger, changes = begin_sweep(asked, checked_jobs_of(asked), sweeps_dir, accept=accept)
    else:
        asked, ledger = open_sweep(file, sweeps_dir)
        make_executor(executor, asked.executors)
        jobs = checked_jobs_of(asked, ledger)
        changes = bring_up_to_date(ledger, jobs, accept=accept, lost_after=asked.lost_after)
    if changes.added:
        say(f"{_told_plan(list(changes.added))}; into {ledger.folder}", "info")
    for problem in changes.damaged:
        say(problem, "warning")
    began = time.monotonic()
    found = run_sweep(asked, ledger, executor, partial(say, level="info"))
    print_end(ledger.folder.name, found, time.monotonic() - began)
    if not found.is_over:
        left = found.counts["waiting"] + found.counts["running"]
        told = f"{left} job is left" if left == 1 else f"{left} jobs are left"
        say(f"{told}: altcore sweep run {ledger.folder.name} goes on", "warning")
    return 1 if found.failed or not found.is_over else None


@sweep.command()
@click.argument("name")
@once("--executor", default="local", help="The name of the executor, for the record.")
@once(
    "--until",
    type=float,
    help="Begin no job that is not expected to end by then (seconds since the epoch).",
)
@once(
    "--seconds",
    type=float,
    default=math.inf,
    help="The whole time until then: a job that needs more begins while most of it is left.",
)
@click.option(
    "--stay", is_flag=True, help="Wait for jobs that may be added, until standard input ends."
)
@SWEEPS_DIR
def work(
    name: str, executor: str, until: float | None, seconds: float, sweeps_dir: str, *, stay: bool
) -> None:
    """Take jobs until none is left, as a worker that an executor starts."""
    from altcore.sweep import TimeLeft, open_sweep, worker_of

    asked, ledger = open_sweep(name, sweeps_dir)
    time_left = None if until is None else TimeLeft(ledger, until, seconds)
    worker = worker_of(asked, ledger, executor, echo, is_own_process=True, time_left=time_left)
    worker.stays = lambda: stay and not select([sys.stdin], [], [], 0)[0]
    # Taken away: a job that starts a sweep of its own is no executor of it.
    starter = os.environ.pop(EXECUTOR_PID, "")
    worker.executor_pid = int(starter) if starter.isdecimal() else None
    worker.work()
