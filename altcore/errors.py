"""The errors that altcore raises on purpose, and the exit code each one ends the command with."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from altcore.builtin_types import one_line

PIPE_CLOSED = 141
LONGEST = 4000
"""Characters of an exception's text in a message or a record."""

EXIT_CODES = {
    0: "finished; or collapsed, or stopped by an action (a collapse is a result)",
    1: "failure: a plugin that can change numbers broke, or altcore itself did",
    2: "bad input, or a file that cannot be read: nothing was run and nothing was written",
    3: "no space left, for the run or for standard output: the last good checkpoint is kept",
    129: "its terminal is gone (SIGHUP), after a checkpoint",
    130: "interrupted (SIGINT), after a checkpoint; at once the second time",
    138: "asked to leave (SIGUSR1), after a checkpoint",
    140: "asked to leave (SIGUSR2), after a checkpoint",
    PIPE_CLOSED: "the reader of its output left (SIGPIPE), as head does",
    143: "terminated (SIGTERM), after a checkpoint",
}


class Source(NamedTuple):
    """Where a value was given: in a line of a file, by a flag, or by default.

    >>> str(Source("run.yaml", 12))
    'in run.yaml, line 12'
    >>> str(Source(flag="--preset", through="format-experiment"))
    'by --preset, through format-experiment'
    """

    file: str = ""
    line: int = 0
    """Counted from 1; 0 if unknown."""
    flag: str = ""
    through: str = ""
    """The preset or original key that stands for the value."""
    is_default: bool = False

    @property
    def place(self) -> str:
        """The file and line, or the flag."""
        if self.is_default:
            return "default"
        return (f"{self.file}, line {self.line}" if self.line else self.file) or self.flag

    def __str__(self) -> str:
        through = f", through {self.through}" if self.through else ""
        return f"{'in' if self.file else 'by'} {self.place}{through}"


DEFAULT = Source(is_default=True)


class AltcoreError(Exception):
    """A failure with a message meant for the user; the command ends with ``exit_code``."""

    exit_code = 1


class BadInput(AltcoreError, ValueError):
    """A value that cannot be used: its key, the problem, and the right form.

    Raise it with the problem alone: callers that know the key and the source add them by `fill`.

    Args:
        problem: why the value is refused.
        key: the key, setting or argument that holds it, as in ``gpt.n_head``.
        part: the part of the key's value that is wrong.
        meant: the known name that is closest to an unknown one.
        hint: what would be right.
        source: where the value was given.
        item: the item of the key's list, or the key of its mapping, that is wrong. The text leaves
            it out; `located` finds its line by it.

    >>> source = Source("run.yaml", 3)
    >>> print(BadInput("'tny' is unknown", key="gpt.size", meant="tiny", source=source))
    gpt.size: 'tny' is unknown (did you mean tiny?) (given in run.yaml, line 3)
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        key: str = "",
        part: str = "",
        meant: str = "",
        hint: str = "",
        source: Source | None = None,
        item: Any = None,
    ) -> None:
        # By name: a compiler that traces the refusal of an export cannot follow super().
        Exception.__init__(self, problem)
        self.problem, self.key, self.part = problem, key, part
        self.meant, self.hint, self.source = meant, hint, source
        self.item = item

    def fill(self, *, key: str = "", source: Source | None = None, item: Any = None) -> None:
        """Add the key, the source and the item, unless they are known."""
        self.key, self.source = self.key or key, self.source or source
        self.item = item if self.item is None else self.item

    def inside(self, key: str, part: str = "", source: Source | None = None) -> BadInput:
        """Return the error of a value that holds the one that is refused."""
        return BadInput(
            f"{self._head}{self.problem}",
            key=key,
            part=part,
            meant=self.meant,
            hint=self.hint,
            source=self.source or source,
        )

    @property
    def _head(self) -> str:
        named = " ".join(filter(None, (self.key, self.part)))
        # A format's problem begins with the word, which may be the key.
        if self.problem.startswith(f"{named} "):
            return ""
        return f"{named}: " if named else ""

    def __str__(self) -> str:
        head, given = self._head, f" (given {self.source})" if self.source else ""
        if not (self.key or self.part) and self.source:
            # Nothing has a name here, as in a file that is not YAML.
            head, given = f"{self.source.place}: ", ""
        meant = f" (did you mean {self.meant}?)" if self.meant else ""
        hint = f": {self.hint}" if self.hint else ""
        return f"{head}{self.problem}{meant}{hint}{given}"


class UnreadableFile(BadInput):
    """A file that the system does not give out, as for want of a permission: it may be whole."""


class PluginError(AltcoreError):
    """A plugin broke; the message names it, its distribution and version, and the error."""


class ConflictingActions(AltcoreError):
    """Two plugins asked for different values of one thing; the message names both."""


class InvalidCheckpoint(AltcoreError):
    """A checkpoint that is torn, altered, or no state of the run; the one before may serve."""

    exit_code = 2


class UnfitState(InvalidCheckpoint):
    """A state whose files are whole, and that does not fit what was built."""


class NoSpace(AltcoreError):
    """The disk is full; files written before are intact."""

    exit_code = 3


class FailedDisk(AltcoreError):
    """The disk, or the server that has it, failed; the message names the path."""


class LostRank(AltcoreError):
    """Another process of the run is gone; the message says why, if that is known."""


class LostDirectory(AltcoreError):
    """The run's directory was removed or moved while the run wrote to it."""

    def __init__(self, path: Path, moved_to: Path | None) -> None:
        what = "removed, and with it every checkpoint and report"
        if moved_to is not None:
            what = f"moved to {moved_to}"
        super().__init__(f"the run's directory {path} was {what}")
        self.moved_to = moved_to


class LostRecord(AltcoreError):
    """Lines of the run's record were removed or replaced while the run wrote to it."""


class OutOfMemory(AltcoreError):
    """No memory is left; the message names the layer that asked, and the bytes."""


class Interrupted(AltcoreError):
    """A signal asked the run to leave; a checkpoint was written first."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def text_of(thing: object) -> str:
    """Return the text of an exception, or of what it holds, in one line that is safe to print.

    Its ``__str__`` may fail, or return megabytes, of which `LONGEST` characters are kept.

    >>> class Mute(Exception):
    ...     def __str__(self):
    ...         raise ValueError
    >>> text_of(Mute()), text_of(KeyError("a"))
    ('its __str__ raises ValueError', "'a'")
    """
    try:
        text = str(thing)
        more = len(text) - LONGEST
        return one_line(f"{text[:LONGEST]}... ({more} characters more)" if more > 0 else text)
    # Other people's code, when it has failed already.
    except (Exception, SystemExit) as error:
        return f"its __str__ raises {type(error).__name__}"


def described(error: BaseException) -> str:
    """Return an exception's type and text; of altcore's own, whose text is enough, that alone.

    >>> described(KeyError("a")), described(BadInput("no", key="a"))
    ("KeyError: 'a'", 'a: no')
    """
    text = text_of(error)
    return text if isinstance(error, AltcoreError) else f"{type(error).__name__}: {text}"


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it, each once: a chain may lead back into itself.

    >>> error = KeyError("a")
    >>> error.__context__ = ValueError("b")
    >>> error.__context__.__context__ = error
    >>> list(chain_of(error))
    [KeyError('a'), ValueError('b')]
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


@contextmanager
def keyed(key: str, item: Any = None) -> Iterator[None]:
    """Add ``key``, and the item of its value, to a `BadInput` that names none."""
    try:
        yield
    except BadInput as error:
        error.fill(key=key, item=item)
        raise


def item_key(key: str, item: Any) -> str:
    """Return the name under which the source of an item is kept beside that of its key."""
    return f"{key}.{item}"


@contextmanager
def located(sources: Mapping[str, Source | None]) -> Iterator[None]:
    """Add to a `BadInput` where its key was given, unless it knows."""
    try:
        yield
    except BadInput as error:
        of_item = sources.get(item_key(error.key, error.item))
        error.fill(source=of_item or sources.get(error.key))
        raise


class _Shortened(reprlib.Repr):
    """Python's notation, cut short at every depth; dictionaries and lists may be subclasses'."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, dict):
            return self.repr_dict(x, level)
        return self.repr_list(x, level) if isinstance(x, list) else super().repr1(x, level)

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write very long ones, and nobody wants to read them.
        if x.bit_length() <= 128:
            return repr(x)
        return f"a number of about {int(x.bit_length() * 0.30103) + 1} digits"


def shown(value: Any, length: int = 60) -> str:
    """Return a refused value as messages show it: as Python writes it, cut to ``length`` letters.

    >>> shown("E4M3"), shown([1, 2])
    ("'E4M3'", '[1, 2]')
    >>> shown(10**400)
    'a number of about 401 digits'
    >>> len(shown([["x" * 99] * 99] * 99))
    60
    """
    text = _Shortened().repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def with_article(word: str) -> str:
    """Return the word after its indefinite article.

    >>> with_article("optimizer")
    'an optimizer'
    """
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return the known name that is closest to ``name``, or an empty text if none is close.

    >>> nearest("ulp-stat", ["ulp-stats", "progress"])
    'ulp-stats'
    >>> nearest("zzz", ["ulp-stats"])
    ''
    """
    if not isinstance(name, str):
        return ""
    folded = {k.casefold(): k for k in known}
    hits = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[hits[0]] if hits else ""


def check_copy(thing: Any, told: str, *kinds: type) -> None:
    """Raise `BadInput` if a thing is one of ``kinds``, but of another copy of altcore.

    There is one after altcore was purged and imported again, as in a notebook; ``told`` is what the
    thing is called.
    """
    names = {(c.__module__, c.__qualname__) for c in type(thing).__mro__}
    if not isinstance(thing, kinds) and any((k.__module__, k.__qualname__) in names for k in kinds):
        raise BadInput(
            f"{told} is of another copy of altcore, which this process imported before this one",
            hint="start Python, or the notebook's kernel, again",
        )
