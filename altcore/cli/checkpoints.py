"""``altcore checkpoints``: what runs can go on from, checked and taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from altcore.cli.options import AS_JSON, Group, once, print_json, runs_dir_option
from altcore.cli.status import Status, followed
from altcore.cli.terminal import echo, say
from altcore.errors import AltcoreError, BadInput, UnreadableFile, keyed

KINDS = ("values", "masters", "codes")
FOREIGN = "foreign"
"""The mark of a checkpoint that was copied in from another run."""


@click.group(cls=Group)
def checkpoints() -> None:
    """List, verify and export the checkpoints of a run."""
    from altcore.cli.log import configure

    configure()


@checkpoints.command("list")
@click.argument("run")
@runs_dir_option
@AS_JSON
def list_(run: str, runs_dir: str, as_json: bool) -> None:
    """List the checkpoints of a run by step.

    The last column marks the best, the latest, and those of another run.
    """
    from altcore.loading import directory_of, find_best, find_checkpoint
    from altcore.runs import (
        RUN_ID,
        check_no_linked,
        from_json,
        list_checkpoints,
        number,
        run_id_of,
    )

    path = directory_of(run, runs_dir)
    check_no_linked(path / "checkpoints")
    run_id = run_id_of(path)
    marks: dict[str, list[str]] = {}
    for which in ("best", "latest"):
        try:
            marked = find_best(path) if which == "best" else find_checkpoint(path, which)
            if marked is not None:
                marks.setdefault(marked.name, []).append(which)
        except UnreadableFile as error:
            say(f"which is the {which} one nobody knows: {error}")
        except BadInput:  # there is none yet
            continue
    rows = []
    for kept in list_checkpoints(path / "checkpoints"):
        size = sum(entry["bytes"] for entry in kept.manifest["files"].values())
        if kept.manifest[RUN_ID] != run_id:
            marks.setdefault(kept.path.name, []).append(FOREIGN)
        rows.append(
            {
                "name": kept.path.name,
                "kind": kept.kind,
                "step": kept.step,
                "bytes": size,
                "evaluation": kept.manifest["evaluation"],
                "marks": marks.get(kept.path.name, []),
            }
        )
    if as_json:
        print_json(rows)
        return
    if not rows:
        echo(f"run {path.name} has no checkpoint")
        return
    width = max(len(row["name"]) for row in rows)
    echo(f"{'name':<{width}}  {'kind':<8}  {'step':>8}  {'MB':>8}  validation loss")
    for row in rows:
        loss = number(from_json(row["evaluation"] or {}).get("val_loss"))
        start = f"{row['name']:<{width}}  {row['kind']:<8}  {row['step']:>8}"
        end = f"{row['bytes'] / 1e6:>8.2f}  {loss:<15}  {' '.join(row['marks'])}"
        echo(f"{start}  {end}".rstrip())


@checkpoints.command()
@click.argument("run")
@runs_dir_option
@AS_JSON
def verify(run: str, runs_dir: str, as_json: bool) -> None:
    """Read every checkpoint of a run and compare its digests. Exit code 1 if one is damaged.

    So is the exit code if the best or the latest one of a run that ended is gone, or a file of the
    run's record is not as the run left it. Of one that the system does not give out nobody knows:
    it is unreadable, and the exit code is 2 if nothing else is wrong.
    """
    from altcore.loading import directory_of
    from altcore.runs import (
        SUMMARY,
        altered,
        check_no_linked,
        check_run_id,
        checkpoints_in,
        load_checkpoint,
        missing_checkpoints,
        run_id_of,
    )

    path = directory_of(run, runs_dir)
    rows: list[dict[str, Any]] = []
    folder = path / "checkpoints"
    check_no_linked(folder)
    there = sorted(checkpoints_in(folder))
    for found in followed(there, "verifying", lambda checkpoint: checkpoint.name):
        valid: bool | None = False
        try:
            loaded = load_checkpoint(found)
            check_run_id(found, loaded.manifest, run_id_of(path))
            valid, problem = True, None
        except UnreadableFile as error:
            valid, problem = None, f"unreadable: {error}"
        except AltcoreError as error:
            problem = str(error)
        rows.append({"name": found.name, "valid": valid, "problem": problem})
    wrong = altered(path)
    if SUMMARY not in wrong:  # else nobody knows what the run ended with
        wrong = missing_checkpoints(path) | wrong
    rows += [{"name": n, "valid": False, "problem": problem} for n, problem in wrong.items()]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            echo(f"{row['name']}  {'valid' if row['valid'] else row['problem']}")
        if not rows:
            echo(f"run {path.name} has no checkpoint")
    if any(row["valid"] is False for row in rows):
        raise click.exceptions.Exit(1)
    if any(row["valid"] is None for row in rows):
        raise click.exceptions.Exit(2)


def _which(command: Any) -> Any:
    """Add the options that choose a checkpoint."""
    for option in (
        click.option("--best", is_flag=True, help="The best by the run's monitor."),
        click.option("--latest", is_flag=True, help="The newest valid one."),
        once("--name", metavar="NAME", help="The one of this name, such as step-00000100."),
    ):
        command = option(command)
    return command


def _chosen(best: bool, latest: bool, name: str | None) -> str:
    given = [w for w, is_given in (("best", best), ("latest", latest)) if is_given]
    given += [name] if name else []
    if len(given) > 1:
        raise BadInput("one of --best, --latest and --name is needed, not several")
    return given[0] if given else "latest"


@checkpoints.command("path")
@click.argument("run")
@_which
@runs_dir_option
def path_(run: str, runs_dir: str, best: bool, latest: bool, name: str | None) -> None:
    """Print the path of a checkpoint.

    Without an option, of the newest valid one. A damaged one is an error.
    """
    from altcore.loading import directory_of, find_checkpoint
    from altcore.runs import load_checkpoint

    found = find_checkpoint(directory_of(run, runs_dir), _chosen(best, latest, name))
    load_checkpoint(found)  # a script takes the path as it is
    echo(found.absolute())


@checkpoints.command()
@click.argument("run")
@click.argument("file")
@_which
@once(
    "--as",
    "kind",
    default="values",
    show_default=True,
    type=click.Choice(KINDS),
    help="What is written: weights as products see them, as the optimizer moves them, or as "
    "packed codes with scales.",
)
@runs_dir_option
def export(
    run: str,
    file: str,
    kind: str,
    runs_dir: str,
    best: bool,
    latest: bool,
    name: str | None,
) -> None:
    """Write the weights of a checkpoint into a safetensors FILE."""
    from altcore.exporting import export as write
    from altcore.loading import load
    from altcore.output_files import check_output

    with keyed("FILE"):
        check_output(Path(file))
    if Path(file).exists():
        raise BadInput(f"{file} exists; choose another name", key="FILE")
    with Status() as status:
        status.now(f"reading the weights of {run}")
        which = _chosen(best, latest, name)
        loaded = load(run, which, runs_dir=runs_dir, with_data=False)
        status.now(f"writing {file}")
        others = write(loaded, file, kind)
    for weight, why in others.items():
        say(f"{weight} is written as the model has it: {why}")
    echo(f"{loaded.checkpoint.name} of {loaded.summary['name']}, as {kind}: {file}")
