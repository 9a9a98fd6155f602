"""``altcore sweep``: many runs, planned, run, watched and collected."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import click

from altcore.cli.options import once
from altcore.cli.terminal import echo, say

if TYPE_CHECKING:
    from altcore.sweep import Job

FOLDER = once("--sweeps-dir", metavar="FOLDER", default="sweeps", help="Where the sweeps are.")
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


@click.group()
def sweep() -> None:
    """Run many runs: a grid of settings, variants and seeds.

    \b
    altcore sweep plan study.yaml
    altcore sweep run study.yaml --executor local:2
    altcore sweep status study
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace


@sweep.command()
@click.argument("file")
@click.option(
    "--script", is_flag=True, help="Show the batch script of the executor, in place of the jobs."
)
@EXECUTOR
@FOLDER
def plan(file: str, executor: str, sweeps_dir: str, *, script: bool) -> None:
    """Show every job that a sweep file asks for; nothing is written."""
    from altcore.sweep import Ledger, changes_of, folder_of, jobs_of, read_sweep, script_of

    asked = read_sweep(file)
    jobs = jobs_of(asked)
    ledger = Ledger(folder_of(file, sweeps_dir))
    if script:
        click.echo(script_of(asked, ledger, executor))
        return
    changes = changes_of(ledger, jobs)
    for job in jobs:
        echo(job.name)
    say(_told_plan(jobs), "info")
    for names, what in ((changes.changed, "changed"), (changes.removed, "removed")):
        if names:
            say(f"{what} since {ledger.folder} was begun: {', '.join(names)}", "warning")


def _told_plan(jobs: list[Job]) -> str:
    by_variant = Counter(job.variant for job in jobs)
    told = ", ".join(f"{variant} {count}" for variant, count in by_variant.items())
    return f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {told}"


@sweep.command()
@click.argument("file")
@EXECUTOR
@ACCEPT
@FOLDER
def run(file: str, executor: str, sweeps_dir: str, *, accept: bool) -> None:
    """Run a sweep until every job has a result.

    The same command again goes on where it was. FILE may be the name of a sweep that was begun.
    """
    from altcore.cli.log import configure
    from altcore.sweep import (
        begin_sweep,
        jobs_of,
        make_executor,
        open_sweep,
        placing_of,
        read_sweep,
    )
    from altcore.yaml_files import is_yaml_file

    configure()
    if is_yaml_file(file):
        asked = read_sweep(file)
        placed = make_executor(executor, asked.executors)
        ledger, changes = begin_sweep(asked, jobs_of(asked), sweeps_dir, accept=accept)
        if changes.added:
            say(f"{_told_plan(list(changes.added))}; into {ledger.folder}", "info")
    else:
        asked, ledger = open_sweep(file, sweeps_dir)
        placed = make_executor(executor, asked.executors)
    placing = placing_of(asked, ledger, executor, lambda line: say(line, "info"))
    placed.run(placing)
    left = placing.left()
    if left:
        say(f"{left} jobs are left: altcore sweep run {ledger.folder.name} goes on", "warning")


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
@FOLDER
def work(name: str, executor: str, until: float | None, seconds: float, sweeps_dir: str) -> None:
    """Take jobs until none is left, as a worker that an executor starts."""
    from altcore.cli.log import configure
    from altcore.sweep import TimeLeft, open_sweep, worker_of

    configure()
    asked, ledger = open_sweep(name, sweeps_dir)
    time_left = None if until is None else TimeLeft(ledger, until, seconds)
    worker_of(asked, ledger, executor, echo, is_own_process=True, time_left=time_left).work()
