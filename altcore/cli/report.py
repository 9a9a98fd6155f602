"""``altcore report``: write a report on recorded runs, at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from altcore.cli.options import REPORTER_SETTINGS, names, once
from altcore.cli.status import Status
from altcore.cli.terminal import echo, say
from altcore.errors import BadInput, PluginError, shown

if TYPE_CHECKING:
    from altcore.cli.reporters import Reporter
    from altcore.runs import RunRecord


@click.command()
@click.argument("reporter")
@click.argument("runs", nargs=-1, metavar="RUN...")
@once(
    "--from",
    "--runs-dir",
    "source",
    metavar="FOLDER|TRACKER:ADDRESS",
    help="Where the runs are: a folder (default runs), or a tracker.",
)
@once(
    "--out",
    metavar="FOLDER",
    help="Folder to write to (default the run's reports/; of several runs, reports/ here).",
)
@REPORTER_SETTINGS
@click.option("--watch", is_flag=True, help="Write again while a run goes on.")
def report(
    reporter: str,
    runs: tuple[str, ...],
    source: str | None,
    out: str | None,
    sets: tuple[str, ...],
    watch: bool,
) -> None:
    """Let a reporter write its report on recorded runs.

    With --from and no RUN, it reports on all the runs there.

    \b
    altcore report failure-report e7m0-pure
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    if not runs and source is None:
        raise BadInput("report needs the name of a run; altcore runs list shows them")
    from altcore.cli.log import configure
    from altcore.cli.reporters import Reporter, records_from
    from altcore.cli.watching import watched

    configure()
    own = Reporter.named(reporter, sets)
    render = own.method("render", "reports during a run, not afterwards")
    wanted, where = names(runs, "RUN"), "runs" if source is None else source

    def read() -> Sequence[RunRecord]:
        with Status() as status:
            status.now(f"reading runs of {where}")
            return records_from(where, wanted)

    told: list[Path] = []
    for records in watched(read) if watch else (read(),):
        if not told:
            tell_differences(records)
        folder = Path(out) if out else default_folder(records)
        written = write(own, render, records, folder)
        for path in written:
            if path not in told:
                echo(path)
        if watch and not told:
            say("written again while the runs go on; Ctrl-C ends this", "info")
        told += written


def write(
    own: Reporter, render: Callable[..., Any], records: Sequence[RunRecord], folder: Path
) -> list[Path]:
    """Let the reporter write into a folder; returns the paths."""
    about = records[0].name if len(records) == 1 else f"{len(records)} runs"
    try:
        with own.guarded("render"), Status() as status:
            status.now(f"reporting on {about}")
            if not folder.exists():
                folder.mkdir(parents=True)
            return written_by(render(records, folder), own.who)
    except PluginError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and _lies_in(cause.filename, folder):
            raise BadInput(f"--out {folder}: cannot be written: {cause.strerror}") from cause
        raise


def tell_differences(records: Sequence[RunRecord]) -> None:
    """Say on standard error which runs saw other data, or ran elsewhere, than the first.

    A line for all runs that differ in the same way. What the first or the other has no record of
    is not known, so it differs in nothing.
    """
    from altcore.runs import compare, identity_in

    found: dict[str, list[str]] = {}
    known = ((r.name, identity_in(r.directory)) for r in records if r.directory)
    identities = [(name, identity) for name, identity in known if identity]
    for name, identity in identities[1:]:
        first, there = identities[0]
        changes = [
            f"{c.what} is {c.text_before} in {first} and {c.text_now}"
            for c in compare(there, identity)
            if c.kind in ("data", "world_size", "platform") and None not in (c.before, c.now)
        ]
        if changes:
            found.setdefault("; ".join(changes), []).append(name)
    for text, (name, *others) in found.items():
        more = f" and {len(others)} more" if others else ""
        say(f"{text} in {name}{more}")


def default_folder(records: Sequence[RunRecord]) -> Path:
    """Return the reports/ of the run, if it is one and has a directory, or else that here."""
    directory = records[0].directory if len(records) == 1 else None
    if directory is None:
        return Path("reports")
    folder = directory / "reports"
    if folder.is_symlink():
        raise BadInput(f"{folder} is a symbolic link: give --out to write elsewhere")
    return folder


def written_by(returned: Any, who: str) -> list[Path]:
    """Return the paths that a reporter returned; `PluginError` for anything else."""
    if isinstance(returned, str | bytes) or not isinstance(returned, Iterable):
        problem = f"{shown(returned)}, not a list of the paths that it wrote"
        raise PluginError(f"{who}: render returned {problem}")
    written = list(returned)
    for path in written:
        if not isinstance(path, str | os.PathLike):
            raise PluginError(f"{who}: render returned {shown(path)} in its list, not a path")
        if not (str(path) and Path(path).exists()):
            raise PluginError(f"{who}: render returned {str(path)!r}, where there is nothing")
    return list(map(Path, written))


def _lies_in(file: object, folder: Path) -> bool:
    """Whether an error's file is in a folder, or the folder itself."""
    return isinstance(file, str | Path) and folder.resolve() in (
        Path(file).resolve(),
        *Path(file).resolve().parents,
    )
