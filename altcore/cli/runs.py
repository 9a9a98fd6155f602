"""``altcore runs``: the recorded runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from altcore.cli.options import AS_JSON, Group, print_json, runs_dir_option
from altcore.cli.sparkline import sparkline
from altcore.cli.terminal import echo, print_table, say
from altcore.cli.upload import upload
from altcore.errors import BadInput

CURVE = 12
"""Characters of the curve of a loss."""


@click.group(cls=Group)
def runs() -> None:
    """Show recorded runs."""
    from altcore.cli.log import configure

    configure()


runs.add_command(upload)


@runs.command("list")
@runs_dir_option
@AS_JSON
def list_(runs_dir: str, as_json: bool) -> None:
    """List the runs, oldest first."""
    from altcore.runs import list_runs, summary_of, warn_of_altered

    rows = []
    for path in list_runs(runs_dir):
        try:
            rows.append(summary_of(path))
            warn_of_altered(path, by_size=True)
        except BadInput as error:
            # List the others all the same.
            say(str(error))
    if as_json:
        print_json(rows)
        return
    if not rows:
        is_there = Path(runs_dir).is_dir()
        echo(f"no runs in {runs_dir}" if is_there else f"there is no folder {runs_dir}")
        return
    now = time.time()
    print_table(["name", "status", "ago", "steps", "loss", "best", "verdict"], rows_of(rows, now))


def rows_of(summaries: Sequence[Mapping[str, Any]], now: float) -> list[list[str]]:
    """Return the row of each run: how long ago it was written, its loss, its best validation."""
    from altcore.cli.summary import ago
    from altcore.runs import last_written, number, sample_losses

    rows = []
    for s in summaries:
        path = Path(s["directory"])
        written, best = last_written(path), s["best_val_loss"]
        then = "" if written is None else ago(written, now)
        loss = "" if best is None else number(best)
        curve = sparkline(sample_losses(path, 4 * CURVE), CURVE)
        rows.append([s["name"], s["status"], then, str(s["steps"]), curve, loss, s["verdict"]])
    return rows


@runs.command()
@click.argument("name")
@runs_dir_option
@AS_JSON
def show(name: str, runs_dir: str, as_json: bool) -> None:
    """Show the summary of a run."""
    from altcore.cli.summary import print_summary
    from altcore.runs import (
        find_run,
        read_environment,
        summary_of,
        warn_of_altered,
        warn_of_missing,
    )

    path = find_run(name, runs_dir)
    summary = summary_of(path)
    warn_of_altered(path)
    warn_of_missing(path)
    try:
        read_environment(path)
    except BadInput as error:
        # The summary needs none of it.
        say(str(error))
    if as_json:
        print_json(summary)
    else:
        print_summary(summary, time.time())


@runs.command()
@click.argument("names", nargs=-1, metavar="RUN RUN...")
@runs_dir_option
@AS_JSON
def compare(names: tuple[str, ...], runs_dir: str, as_json: bool) -> None:
    """Show in what runs differ: outcome, configuration, environment."""
    from altcore.cli.options import names as split
    from altcore.cli.run_comparison import compared, print_comparison
    from altcore.runs import find_run, read_run

    found = split(names, "RUN")
    if len(found) < 2:
        raise BadInput("compare needs two runs or more; altcore runs list shows them")
    comparison = compared([read_run(find_run(name, runs_dir)) for name in found])
    if as_json:
        print_json(comparison)
    else:
        print_comparison(comparison)


@runs.command()
@click.argument("name")
@runs_dir_option
def restore(name: str, runs_dir: str) -> None:
    """Write a run's config.yaml anew, as its newest checkpoint has it.

    A lost or changed environment.json is brought back, too.
    """
    from altcore.runs import restore as write_anew

    files, checkpoint = write_anew(name, runs_dir)
    for file in files:
        echo(f"{file} is as {checkpoint.name} has it")
