"""``altcore report``: write a report on recorded runs, at any time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from altcore.cli.options import REPORTER_SETTINGS, names, once
from altcore.cli.status import Status
from altcore.cli.terminal import echo, say
from altcore.cli.writing import writing
from altcore.errors import BadInput

if TYPE_CHECKING:
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

    With --from and no RUN, it reports on all the runs there. If the folder is a study's, it renders
    the study's answers.

    \b
    altcore report failure-report e7m0-pure
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    if not runs and source is None:
        raise BadInput("report needs the name of a run; altcore runs list shows them")
    from altcore.cli.log import configure
    from altcore.cli.report_answers import is_study, report_answers
    from altcore.cli.train import overrides_of
    from altcore.cli.watching import watched
    from altcore.reporters import Reporter, records_from
    from altcore.runs import differences_of

    configure()
    own = Reporter.named(reporter, {key: value for key, value, _ in overrides_of({}, sets)})
    wanted, where = names(runs, "RUN"), "runs" if source is None else source
    if is_study(Path(where)):
        report_answers(own, Path(where), wanted, None if out is None else Path(out))
        return
    own.method("render", "reports during a run, not afterwards")

    def read() -> Sequence[RunRecord]:
        with Status() as status:
            status.now(f"reading runs of {where}")
            return records_from(where, wanted)

    told: list[Path] = []
    for records in watched(read) if watch else (read(),):
        if not told:
            for text in differences_of(records):
                say(text)
        folder = Path(out) if out else default_folder(records)
        about = records[0].name if len(records) == 1 else f"{len(records)} runs"
        with writing(folder, f"reporting on {about}"):
            written = own.written("render", records, folder)
        for path in written:
            if path not in told:
                echo(path)
        if watch and not told:
            say("written again while the runs go on; Ctrl-C ends this", "info")
        told += written


def default_folder(records: Sequence[RunRecord]) -> Path:
    """Return the reports/ of the run, if it is one and has a directory, or else that here."""
    directory = records[0].directory if len(records) == 1 else None
    if directory is None:
        return Path("reports")
    folder = directory / "reports"
    if folder.is_symlink():
        raise BadInput(f"{folder} is a symbolic link: give --out to write elsewhere")
    return folder
