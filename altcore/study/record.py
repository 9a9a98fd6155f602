"""The record of a study's folder, study.json: the questions asked of it, and the page of each."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, field, frozen
from attrs.validators import matches_re

from altcore import durable
from altcore.errors import BadInput, shown
from altcore.formats import digest
from altcore.hooks import build
from altcore.runs import DirectoryLock, OtherWriter, contents
from altcore.sweep import check_folder, read_record, record_text

FILE = "study.json"
RECIPES = "recipes"
"""The folder that keeps the recipe files that were asked about."""


@frozen(kw_only=True)
class Question:
    """A question that a study was asked, and the page with the answer."""

    command: str
    """``explain`` or ``compare``."""
    asked: dict[str, Any]
    """As it was asked, in plain data: the budget, the configuration, and what is compared."""
    arms: dict[str, str]
    """The digest of each arm, by its name."""
    seeds: Sequence[int]
    within: float
    rates: Sequence[float] | None = None
    """Factors of the learning rate that were given."""
    steps: int
    page: str = field(default="", validator=matches_re(r"[\w-]*"))
    """The name of the answer's .md and .json; `claim` gives it."""
    recipes: dict[str, str] = field(factory=dict)
    """Where the copy of each recipe file is."""

    @property
    def reading(self) -> list[Any]:
        """How runs become an answer: another distance, loss or choice of pairs has its own page."""
        pairs, metric = (self.asked.get(key) for key in ("against", "metric"))
        return [self.within, list(self.rates or ()), metric, pairs]

    def extends(self, other: Question) -> bool:
        """Return whether its answer contains the other's: the same arms and seeds, perhaps more."""
        return (
            (self.command, self.reading) == (other.command, other.reading)
            and set(self.arms.values()) >= set(other.arms.values())
            and set(self.seeds) >= set(other.seeds)
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a study's folder for this process. Raises `BadInput` if another one holds it.

    Otherwise each would take the other's jobs for those that nobody asks for any more.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock.take(folder, "another study")
    except OtherWriter as error:
        error.hint = "wait for it, or give this one another --name"
        raise
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from error
    try:
        check_folder(folder)
        durable.check_kinds(folder, files=[FILE], folders=[RECIPES])
        yield
    finally:
        lock.release()


def read(folder: Path) -> list[Question]:
    """Return the questions of a study's folder. Raises `BadInput` for any other record."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        questions = (read_record(path, dict) or {}).get("questions")
        if not isinstance(questions, list) or not all(isinstance(q, dict) for q in questions):
            raise BadInput(f"{shown(questions)} is not a list of questions", key="questions")
        return [build(Question, question) for question in questions]
    except BadInput as error:
        hint = f"give this one another --name, or remove {folder}"
        raise BadInput(f"{path} is not what a study writes: {error}", hint=hint) from error


def agreed_steps(known: Iterable[Question], command: str, asked: Mapping[str, Any]) -> int | None:
    """Return the steps that a budget allowed this configuration before, or None."""
    keys = ("budget", "config")
    for other in known:
        if other.command == command and all(other.asked.get(k) == asked[k] for k in keys):
            return other.steps
    return None


def claim(
    folder: Path, known: Sequence[Question], question: Question, recipes: Iterable[str]
) -> Question:
    """Record a question; return it with the page of the one it extends, or a page of its own.

    ``known`` are earlier questions, ``recipes`` the files to keep. Raises `BadInput` if the folder
    cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = evolve(question, page=_page(question, known), recipes=keep(folder, recipes))
        others = [q for q in known if q.page != made.page]
        text = record_text({"questions": [asdict(q) for q in (*others, made)]})
        durable.replace_text(folder / FILE, text + "\n")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from error
    return made


def _page(question: Question, known: Sequence[Question]) -> str:
    extended = [q.page for q in known if question.extends(q)]
    if extended:
        return extended[0]
    if question.command not in {q.page for q in known}:
        return question.command
    own = digest([sorted(question.arms.values()), list(question.seeds), *question.reading])
    return f"{question.command}-{own[:8]}"


def keep(folder: Path, recipes: Iterable[str]) -> dict[str, str]:
    """Copy recipe files into the study's folder; return where each copy is.

    A changed file gets a new copy beside the earlier one.
    """
    kept = {}
    for path in map(Path, recipes):
        own = contents(path)
        copy = folder / RECIPES / path.name
        if copy.exists() and contents(copy) != own:
            copy = copy.with_stem(f"{path.stem}-{own[:8]}")
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        kept[str(path)] = f"{RECIPES}/{copy.name}"
    return kept
