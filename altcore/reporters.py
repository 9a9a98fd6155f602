"""Reporters that are called by name; what one raises is told under its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from altcore.errors import AltcoreError, BadInput, PluginError, described, shown
from altcore.signals import is_from_signal

if TYPE_CHECKING:
    from altcore.runs import RunRecord


TIMEOUT = 60.0
"""Seconds after which a call is reported, as by the key ``hook_timeout`` in a run."""


class Reporter(NamedTuple):
    """A reporter, and what messages call it."""

    plugin: Any
    who: str

    @classmethod
    def named(cls, name: str, settings: Mapping[str, Any] | None = None) -> Reporter:
        """Make the reporter of a name, with settings as ``KEY`` or ``NAME.KEY``."""
        from altcore.config import check_is_no_key
        from altcore.hooks import make_plugin
        from altcore.registry import find

        entry = find(name, ("reporter",))
        check_is_no_key(entry)
        own = {key.removeprefix(f"{name}."): v for key, v in (settings or {}).items()}
        who = f"reporter {name} ({entry.origin})"
        with _watched(who, "its import and construction"):
            return cls(make_plugin(entry.load(), own, name), who)

    def method(self, name: str, problem: str) -> Callable[..., Any]:
        """Return a method; `BadInput` with the problem if the reporter has none of that name."""
        method = getattr(self.plugin, name, None)
        if not callable(method):
            raise BadInput(f"{self.who} {problem}")
        return method

    def written(self, method: str, *given: Any) -> list[Path]:
        """Return the paths that a method wrote; `PluginError` if it returns anything else."""
        with self.guarded(method):
            return _written_by(getattr(self.plugin, method)(*given), self.who, method)

    @contextmanager
    def guarded(self, method: str) -> Iterator[None]:
        """Raise what the reporter's method raises as a `PluginError`, altcore's own as it is.

        If it takes too long it is named with its stack.
        """
        try:
            with _watched(self.who, method):
                yield
        except AltcoreError:
            raise
        # A reporter may raise anything, or try to leave.
        except BaseException as error:
            if is_from_signal(error):
                raise
            raise PluginError(f"{self.who} failed in {method}: {described(error)}") from error


@contextmanager
def _watched(who: str, doing: str) -> Iterator[None]:
    from altcore.hook_clock import HookClock, timing

    with HookClock(TIMEOUT).watching(), timing(who, doing):
        yield


def _written_by(returned: Any, who: str, method: str) -> list[Path]:
    """Return the paths that a reporter returned; `PluginError` for anything else."""
    if isinstance(returned, str | bytes) or not isinstance(returned, Iterable):
        problem = f"{shown(returned)}, not a list of the paths that it wrote"
        raise PluginError(f"{who}: {method} returned {problem}")
    written = list(returned)
    for path in written:
        if not isinstance(path, str | os.PathLike):
            raise PluginError(f"{who}: {method} returned {shown(path)} in its list, not a path")
        if not (str(path) and Path(path).exists()):
            raise PluginError(f"{who}: {method} returned {str(path)!r}, where there is nothing")
    return list(map(Path, written))


def records_from(source: str, names: Sequence[str]) -> Sequence[RunRecord]:
    """Return the records of runs, all of them if there are no names.

    Args:
        source: a folder, or ``REPORTER:ADDRESS``, with a reporter that has ``read_runs``.
        names: of runs.

    Raises:
        BadInput: if a name is not there, or no run at all.
    """
    from altcore.runs import RunRecord, read_runs

    name, is_address, address = source.partition(":")
    if not is_address or Path(source).is_dir():
        return read_runs(source, names)
    reporter = Reporter.named(name)
    read = reporter.method("read_runs", "reads no runs back")
    with reporter.guarded("read_runs"):
        found = list(read(address, names))
    for run in found:
        if not isinstance(run, RunRecord):
            raise PluginError(f"{reporter.who}: read_runs returned {shown(run)}, not a RunRecord")
    if not found:
        raise BadInput(f"there are no runs in {source}")
    return found
