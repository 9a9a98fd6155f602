"""``altcore runs``: the recorded runs."""

from __future__ import annotations

import click

from altcore.cli.options import AS_JSON, Group, print_json, runs_dir_option
from altcore.cli.terminal import echo
from altcore.errors import BadInput


@click.group(cls=Group)
def runs() -> None:
    """Show recorded runs."""
    from altcore.cli.log import configure

    configure()


@runs.command("list")
@runs_dir_option
@AS_JSON
def list_(runs_dir: str, as_json: bool) -> None:
    """List the runs, oldest first."""
    from altcore.cli.summary import number
    from altcore.runs import list_runs, summary_of

    rows = []
    for path in list_runs(runs_dir):
        try:
            rows.append(summary_of(path))
        except BadInput as error:
            # List the others all the same.
            echo(f"altcore: {error}", err=True)
    if as_json:
        print_json(rows)
        return
    if not rows:
        echo(f"no runs in {runs_dir}")
        return
    width = max(4, *(len(r["name"]) for r in rows))
    head = f"{'name':<{width}}  {'status':<11}  {'steps':>7}  validation loss  verdict"
    echo(head)
    for r in rows:
        start = f"{r['name']:<{width}}  {r['status']:<11}  {r['steps']:>7}"
        echo(f"{start}  {number(r['val_loss']):<15}  {r['verdict']}".rstrip())


@runs.command()
@click.argument("name")
@runs_dir_option
@AS_JSON
def show(name: str, runs_dir: str, as_json: bool) -> None:
    """Show the summary of a run."""
    from altcore.cli.summary import print_summary
    from altcore.runs import find_run, summary_of

    summary = summary_of(find_run(name, runs_dir))
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


@runs.command()
@click.argument("name")
@runs_dir_option
def restore(name: str, runs_dir: str) -> None:
    """Write a run's config.yaml anew, as its newest checkpoint has it."""
    from altcore.runs import restore_configuration

    path, checkpoint = restore_configuration(name, runs_dir)
    echo(f"{path} is as {checkpoint.name} has it")
