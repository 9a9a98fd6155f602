"""The errors that altcore raises on purpose, and the exit code each one ends the command with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODES = {
    0: "finished; or collapsed, or stopped by an action (a collapse is a result)",
    1: "failure: a plugin that can change numbers broke, or altcore itself did",
    2: "bad input: nothing was run and nothing was written",
    3: "no space left: the last good checkpoint is kept",
    130: "interrupted (SIGINT), after a checkpoint",
    138: "asked to leave (SIGUSR1), after a checkpoint",
    143: "terminated (SIGTERM), after a checkpoint",
}


class AltcoreError(Exception):
    """A failure with a message meant for the user; the command ends with ``exit_code``."""

    exit_code = 1


class BadInput(AltcoreError):
    """What the user gave cannot be: the message names the thing and what would be right."""

    exit_code = 2


class PluginError(AltcoreError):
    """A plugin broke; the message names it, its distribution and version, and the error."""


class ConflictingActions(AltcoreError):
    """Two plugins asked for different values of one thing; the message names both."""


class NoSpace(AltcoreError):
    """The disk is full; what was written before is intact."""

    exit_code = 3


class Interrupted(AltcoreError):
    """A signal asked the run to leave; a checkpoint was written first."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def with_article(word: str) -> str:
    """Return the word after its indefinite article.

    >>> with_article("optimizer")
    'an optimizer'
    """
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` for the known name closest to ``name``, or nothing.

    Nothing, too, for what is no text.

    >>> nearest("ulp-stat", ["ulp-stats", "progress"])
    ' (did you mean ulp-stats?)'
    >>> nearest("zzz", ["ulp-stats"])
    ''
    """
    if not isinstance(name, str):
        return ""
    folded = {k.casefold(): k for k in known}
    hits = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[hits[0]]}?)" if hits else ""
