"""``altcore sweep``: many runs, planned, run, watched and collected."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from altcore.cli.options import Group, once
from altcore.cli.sweep_options import SWEEPS_DIR
from altcore.cli.sweep_results import collect, export, verify
from altcore.cli.sweep_retry import retry
from altcore.cli.sweep_status import list_, print_end, status
from altcore.cli.terminal import echo, say

if TYPE_CHECKING:
    from altcore.sweep import Job

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


for command in (list_, status, retry, verify, export, collect):
    sweep.add_command(command)


@sweep.command()
@click.argument("file")
@SWEEPS_DIR
def plan(file: str, sweeps_dir: str) -> None:
    """Show every job that a sweep file asks for; nothing is written."""
    from altcore.sweep import Ledger, changes_of, folder_of, jobs_of, read_sweep

    jobs = jobs_of(read_sweep(file))
    ledger = Ledger(folder_of(file, sweeps_dir))
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
@once(
    "--executor",
    metavar="NAME[:KEY=VALUE,...]",
    default="local",
    help="Where workers run (default local, in this process; local:2 is two processes).",
)
@ACCEPT
@SWEEPS_DIR
def run(file: str, executor: str, sweeps_dir: str, *, accept: bool) -> int | None:
    """Run a sweep until every job has a result.

    The same command again goes on where it was. FILE may be the name of a sweep that was begun.
    """
    from altcore.sweep import (
        begin_sweep,
        jobs_of,
        make_executor,
        open_sweep,
        placing_of,
        read_sweep,
        status_of,
    )
    from altcore.yaml_files import is_yaml_file

    placed = make_executor(executor)
    if is_yaml_file(file):
        asked = read_sweep(file)
        ledger, changes = begin_sweep(asked, jobs_of(asked), sweeps_dir, accept=accept)
        if changes.added:
            say(f"{_told_plan(list(changes.added))}; into {ledger.folder}", "info")
    else:
        asked, ledger = open_sweep(file, sweeps_dir)
    placing = placing_of(asked, ledger, executor, lambda line: say(line, "info"))
    began = time.monotonic()
    placed.run(placing)
    found = status_of(asked, ledger, time.time())
    print_end(ledger.folder.name, found, time.monotonic() - began)
    if not found.is_over:
        left = placing.left()
        say(f"{left} jobs are left: altcore sweep run {ledger.folder.name} goes on", "warning")
    return 1 if found.failed else None


@sweep.command()
@click.argument("name")
@once("--executor", default="local", help="The name of the executor, for the record.")
@SWEEPS_DIR
def work(name: str, executor: str, sweeps_dir: str) -> None:
    """Take jobs until none is left, as a worker that an executor starts."""
    from altcore.sweep import open_sweep, worker_of

    asked, ledger = open_sweep(name, sweeps_dir)
    worker_of(asked, ledger, executor, echo, is_own_process=True).work()
