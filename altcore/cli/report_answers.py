"""``altcore report`` on a study: a reporter renders its answers again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from altcore.cli.terminal import echo
from altcore.cli.writing import writing
from altcore.errors import BadInput, nearest

if TYPE_CHECKING:
    from altcore.reporters import Reporter


def is_study(folder: Path) -> bool:
    """Return whether a folder is that of a study."""
    return (folder / "study.json").is_file()


def report_answers(
    reporter: Reporter, study: Path, wanted: Sequence[str], out: Path | None
) -> None:
    """Let a reporter render the answers of a study, into its folder unless ``out`` is given.

    Args:
        reporter: renders what it can; it returns no path for an answer of another command.
        study: its folder.
        wanted: names of answers, as explain; all of them if there are none.
        out: where the files go.
    """
    from altcore.study import answers_in, render

    answers = {str(found["about"]["page"]): found for found in answers_in(study)}
    for name in wanted:
        if name not in answers:
            known = sorted(answers)
            raise BadInput(f"{study} has no answer {name!r}", meant=nearest(name, known))
    folder = study if out is None else out
    with writing(folder, f"rendering {study}"):
        written = render(reporter, [answers[n] for n in wanted or answers], folder)
    if not written:
        raise BadInput(f"{reporter.who} renders none of the answers in {study}")
    for path in written:
        echo(path)
