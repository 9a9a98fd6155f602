"""``altcore sweep retry``: failed jobs once more."""

from __future__ import annotations

import click

from altcore.cli.sweep_options import SWEEPS_DIR
from altcore.cli.terminal import paragraph, say
from altcore.errors import BadInput


@click.command()
@click.argument("name")
@click.argument("jobs", nargs=-1, metavar="[JOB...]")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting that the retry changes; VALUE is YAML. Repeatable.",
)
@SWEEPS_DIR
def retry(name: str, jobs: tuple[str, ...], sets: tuple[str, ...], sweeps_dir: str) -> int | None:
    """Try failed jobs again, all or those named.

    The next `altcore sweep run` runs them.
    """
    from altcore.cli.options import names
    from altcore.cli.train import overrides_of
    from altcore.sweep import State, open_sweep, survey, try_again

    _, ledger = open_sweep(name, sweeps_dir)
    changed = {key: value for key, value, _ in overrides_of({}, sets)}
    how = ", ".join(f"{key} {value}" for key, value in changed.items())
    failed = [row.name for row in survey(ledger) if row.state is State.FAILED]
    refused = 0
    for job in names(jobs, "JOB") or failed:
        try:
            try_again(ledger, job, changed)
        except BadInput as error:
            if jobs:
                raise
            refused += 1
            paragraph(f"gives up: {error}")
        else:
            paragraph(f"tried again: {job}: {f'with {how}' if how else 'as it was'}")
    if not failed and not jobs:
        say("no job failed", "info")
    return 1 if refused else None
