"""``altcore sweep verify``, ``export`` and ``collect``: what a sweep has come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from altcore.cli.options import AS_JSON, once, print_json
from altcore.cli.sweep_options import SWEEPS_DIR
from altcore.cli.terminal import echo, paragraph, say
from altcore.errors import BadInput, keyed
from altcore.output_files import check_beside_record

SHOWN = 10
"""Jobs that ``verify`` names of each kind, without ``--all``."""
UNRECORDED = "compared with what its job asks for: no digest was written down"


@click.command()
@click.argument("name")
@click.option("--all", "all_", is_flag=True, help=f"Name all jobs, not the first {SHOWN}.")
@AS_JSON
@SWEEPS_DIR
def verify(name: str, sweeps_dir: str, *, all_: bool, as_json: bool) -> int | None:
    """Check that every run is there, with its measures.

    The exit code is 0 only when nothing is missing or other than the sweep file asks for. If the
    file of base keys that it names cannot be read, nobody knows, and the exit code is 1.
    """
    from altcore.sweep import check_nothing, open_sweep
    from altcore.sweep import planned as planned_in
    from altcore.sweep import verify as verified

    asked, ledger = open_sweep(name, sweeps_dir)
    planned, unknown = None, ""
    try:
        planned = planned_in(asked, ledger, check_nothing)
    except BadInput as error:
        # A file of base keys may have been moved: what the ledger has can be verified.
        unknown = f"only the jobs of {ledger.folder} are verified: {error}"
        say(unknown, "warning")
    found = verified(ledger, planned, asked.measures)
    groups = {**found.lacks, "unrecorded": dict.fromkeys(found.unrecorded, UNRECORDED)}
    if as_json:
        told = {"told": str(found), "unknown": unknown, "data": list(found.data)}
        print_json({**told, "completed": list(found.completed), **groups})
    else:
        echo(str(found))
        for key, jobs in groups.items():
            what = key.replace("_", " ")
            for job, why in list(jobs.items())[: None if all_ else SHOWN]:
                paragraph(f"{what}: {job}{f': {why}' if why else ''}")
            if len(jobs) > SHOWN and not all_:
                echo(f"{what}: {len(jobs) - SHOWN} more (--all names them)")
        for line in found.data:
            paragraph(line)
    return None if found.is_whole and not unknown else 1


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name the folder in the error of one that cannot be made, or written to."""
    with keyed("--out"):
        check_beside_record(folder)
    try:
        yield
    except OSError as error:
        at = Path(str(error.filename)).absolute()
        if folder.absolute() not in (at, *at.parents) and at not in folder.absolute().parents:
            raise
        problem = f"cannot be written: {error.strerror}"
        raise BadInput(problem, key="--out", part=str(folder), hint="give a folder") from error


@click.command()
@click.argument("name")
@once("--out", metavar="FOLDER", help="Where to write (default export/ in the sweep's folder).")
@click.option(
    "--with-changed",
    is_flag=True,
    help="Count runs in the statistics whose settings a retry changed.",
)
@SWEEPS_DIR
def export(name: str, out: str | None, sweeps_dir: str, *, with_changed: bool) -> None:
    """Write one table of all jobs, with a data dictionary.

    Jobs without a result are named, and the exit code is 0: 'altcore sweep verify' tells by its
    exit code whether all are there.
    """
    from altcore.sweep import export as exported
    from altcore.sweep import open_sweep

    asked, ledger = open_sweep(name, sweeps_dir)
    folder = Path(out) if out else ledger.folder / "export"
    with _writing(folder):
        made = exported(asked, ledger, folder, with_changed=with_changed)
    for path in made.files:
        echo(path)
    for job, problem in made.problems.items():
        say(f"{job}: {problem}", "warning")
    for line in made.data:
        say(line, "warning")
    if made.differing:
        told = f"not all runs were made alike: {', '.join(made.differing)} differ"
        say(f"{told}, as {asked.table}_metadata.json tells (provenance)", "warning")
    if made.missing:
        some = ", ".join(made.missing)
        say(f"no run has {some}, neither in its summary nor as a measure", "warning")
    _warn_of(made.unasked, made.lacking, made.others)


@click.command()
@click.argument("name")
@once("--out", metavar="FOLDER", help="Where to write (default archive/ in the sweep's folder).")
@click.option("--checkpoints", is_flag=True, help="Archive the checkpoints, too.")
@SWEEPS_DIR
def collect(name: str, out: str | None, sweeps_dir: str, *, checkpoints: bool) -> None:
    """Archive the accepted runs, a file for each variant.

    Jobs without a result are named, and the exit code is 0: 'altcore sweep verify' tells by its
    exit code whether all are there.
    """
    from altcore.sweep import collect as collected
    from altcore.sweep import open_sweep

    asked, ledger = open_sweep(name, sweeps_dir)
    folder = Path(out) if out else ledger.folder / "archive"
    with _writing(folder):
        made = collected(asked, ledger, folder, checkpoints=checkpoints)
    for path, count in made.archives.items():
        echo(f"{path}: {count} run{'s' * (count != 1)}")
    for job, problem in made.left_out.items():
        say(f"left out: {job}: {problem}", "warning")
    if not made.archives:
        say(f"{ledger.folder.name} has no completed run", "warning")
    for path in made.earlier:
        say(f"{path} was written before: no run of its variant is completed now", "warning")
    _warn_of(made.unasked, made.lacking, made.others)


def _warn_of(unasked: str, lacking: str, others: Sequence[Path]) -> None:
    """Tell which jobs are other ones or have no result, and which files are not the sweep's."""
    for path in others:
        say(f"{path} stays: it is not what the sweep wrote there, and no part of it now", "warning")
    for told in filter(None, (unasked, lacking)):
        say(told, "warning")
