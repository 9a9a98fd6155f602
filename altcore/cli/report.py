"""``altcore report``: write a report on recorded runs, at any time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from altcore.cli.options import names, once, runs_dir_option
from altcore.cli.terminal import echo
from altcore.errors import AltcoreError, BadInput, PluginError, described, shown
from altcore.signals import is_from_signal


@click.command()
@click.argument("reporter")
@click.argument("runs", nargs=-1, metavar="RUN...")
@once("--out", metavar="FOLDER", help="Folder to write to (default the run's reports/).")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the reporter; VALUE is YAML. Repeatable.",
)
@runs_dir_option
def report(
    reporter: str, runs: tuple[str, ...], out: str | None, sets: tuple[str, ...], runs_dir: str
) -> None:
    """Let a reporter write its report on recorded runs.

    \b
    altcore report failure-report e7m0-pure
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    if not runs:
        raise BadInput("report needs the name of a run; altcore runs list shows them")
    from altcore.cli.train import overrides_of
    from altcore.config import check_is_no_key
    from altcore.hooks import make_plugin
    from altcore.registry import find
    from altcore.runs import compare, find_run, identity_in, summary_of

    entry = find(reporter, ("reporter",))
    check_is_no_key(entry)
    settings = {key.removeprefix(f"{reporter}."): v for key, v, _ in overrides_of({}, sets)}
    made = make_plugin(entry.load(), settings, reporter)
    render = getattr(made, "render", None)
    who = f"reporter {reporter} ({entry.origin})"
    if not callable(render):
        raise BadInput(f"{who} reports during a run, not afterwards")
    paths = [find_run(name, runs_dir) for name in names(runs, "RUN")]
    for path in paths:
        summary_of(path)  # Refuses a record that cannot be read.
    if out is None and len(paths) > 1:
        raise BadInput("--out is needed for a report of several runs")
    for path in paths[1:]:
        for change in compare(identity_in(paths[0]), identity_in(path)):
            if change.kind in ("data", "world_size", "platform"):
                about = f"{change.what} is {change.text_before} in {paths[0].name}"
                echo(f"altcore: {about} and {change.text_now} in {path.name}", err=True)
    folder = Path(out) if out else paths[0] / "reports"
    if out is None and folder.is_symlink():
        raise BadInput(f"{folder} is a symbolic link: give --out to write elsewhere")
    try:
        written = written_by(render(paths, folder), who)
    except AltcoreError:
        raise
    # A reporter may raise anything, or try to leave.
    except BaseException as error:
        if is_from_signal(error):
            raise
        if isinstance(error, OSError) and _lies_in(error.filename, folder):
            raise BadInput(f"--out {folder}: cannot be written: {error.strerror}") from error
        text = f"failed in render: {described(error)}"
        raise PluginError(f"{who} {text}") from error
    for path in written:
        echo(path)


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
