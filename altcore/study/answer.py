"""The answer of a study: plain data in a .json file, which reporters render."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from altcore.builtin_types import to_json
from altcore.config import defaults
from altcore.durable import replace_text
from altcore.errors import AltcoreError, BadInput
from altcore.registry import entries
from altcore.reporters import Reporter
from altcore.runs import DIGEST, is_as_written, read_json, with_digest
from altcore.study.answer_schema import check_answer
from altcore.study.record import read

METHOD = "render_answer"
"""Of a reporter: takes an answer and a folder, and returns the paths that it wrote."""
SHOWN = ".md"
"""Ends the name of the rendering that a terminal and a notebook show."""
RENDERED = (SHOWN, ".html", ".tex", ".csv")
"""Endings of what an answer is rendered into."""


def write(folder: Path, found: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Write an answer into the study's folder, and render it; returns it as it was written.

    The file has a digest, too. It is there before anything is rendered: what fails then is told,
    and can be repeated. No rendering of an earlier answer stays beside it.
    """
    name = found["about"]["page"]
    path = folder / f"{name}.json"
    written: dict[str, Any] = json.loads(json.dumps(to_json(found), allow_nan=False, default=str))
    text = json.dumps(with_digest(written), indent=1)
    try:
        for ending in RENDERED:
            (folder / f"{name}{ending}").unlink(missing_ok=True)
        replace_text(path, text + "\n")
    except OSError as error:
        raise BadInput(f"{error.filename or path} cannot be written: {error.strerror}") from error
    reporter = defaults()["answers"][found["about"]["command"]]
    again = f"altcore report {reporter} --from {folder} --out {folder}"
    if reporter not in {e.name for e in entries() if e.kind == "reporter"}:
        tell(f"{path} is the answer; with altcore-reporters installed, {again} renders it")
        return written
    try:
        render(Reporter.named(reporter), [written], folder)
    except AltcoreError as error:
        tell(f"{error}; {path} is the answer, and {again} renders it")
    return written


def render(reporter: Reporter, answers: Iterable[Mapping[str, Any]], out: Path) -> list[Path]:
    """Let a reporter render answers into a folder; returns what it wrote."""
    reporter.method(METHOD, "renders no answers of studies")
    return [path for answer in answers for path in reporter.written(METHOD, answer, out)]


def answers_in(folder: Path) -> list[dict[str, Any]]:
    """Return the answers in a study's folder. Raises `BadInput` if one cannot be read."""
    pages = [folder / f"{question.page}.json" for question in read(folder)]
    found = {path: load_answer(path) for path in pages if os.path.lexists(path)}
    for path, answer in found.items():
        if (page := answer["about"]["page"]) != path.stem:
            raise BadInput(f"{path} is the answer of another page, {page}")
    return list(found.values())


def load_answer(path: Path) -> dict[str, Any]:
    """Return the answer in a .json file, without its digest.

    Raises `BadInput` for anything else, with the key that is wrong, and for an answer that was
    changed.
    """
    try:
        if path.is_symlink() or not path.is_file():
            raise BadInput("it is no regular file")
        found = read_json(path)
        check_answer(found)
        if not is_as_written(found):
            told = "does not match its digest" if DIGEST in found else "has no digest"
            raise BadInput(f"it was changed since the study wrote it: it {told}")
    except BadInput as error:
        problem = f"{path} is not the answer of a study: {error}"
        raise BadInput(problem, hint="the study's command writes it again") from error
    return {key: value for key, value in found.items() if key != DIGEST}
