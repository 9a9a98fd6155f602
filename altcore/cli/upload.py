"""``altcore runs upload``: send recorded runs to a tracker."""

from __future__ import annotations

import click

from altcore.cli.options import REPORTER_SETTINGS, names, once, runs_dir_option
from altcore.cli.terminal import echo, say
from altcore.errors import BadInput


@click.command()
@click.argument("runs", nargs=-1, metavar="RUN...")
@once("--to", "tracker", required=True, metavar="TRACKER", help="The reporter that sends them.")
@REPORTER_SETTINGS
@runs_dir_option
def upload(runs: tuple[str, ...], tracker: str, sets: tuple[str, ...], runs_dir: str) -> None:
    """Send recorded runs to a tracker, each line once.

    What is there already is not sent again, so an upload that was cut off can be repeated.

    \b
    altcore runs upload e7m0-pure --to trackio
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    if not runs:
        raise BadInput("runs upload needs the name of a run; altcore runs list shows them")
    from altcore.cli.train import overrides_of
    from altcore.reporters import Reporter
    from altcore.runs import read_runs

    reporter = Reporter.named(tracker, {key: value for key, value, _ in overrides_of({}, sets)})
    send = reporter.method("upload", "sends no runs")
    records = read_runs(runs_dir, names(runs, "RUN"))
    # One at a time: what is done is told, whatever becomes of the next.
    for number, record in enumerate(records, 1):
        say(f"sending {record.name} to {tracker} ({number} of {len(records)})", "info")
        with reporter.guarded("upload"):
            lines = send([record])
        for line in lines:
            echo(line)
