"""An attempt at a job: who holds it, whether that one lives, and how it ended.

    attempts/002/
      lease.json    who holds it, and since when; never changed
      heartbeat     a number that its holder counts up
      work/         the run's directory, until it is accepted
      exit.json     how it ended
      again.json    settings with which people told it to be followed by another attempt

All of it needs two operations of a file system, which a shared one has as well: a folder is made
whole by renaming it into a place that must be free, and a name is moved by exactly one of those
who try. So an attempt is won once, and either its holder publishes the run or somebody else takes
the job over, never both.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from attrs import asdict, define, field, frozen
from attrs.validators import instance_of

from altcore import durable
from altcore.errors import BadInput, NoSpace, UnreadableFile
from altcore.processes import Process, this_process
from altcore.sweep.carry_on import copy_place, newest_step
from altcore.sweep.exits import LOST, Exit
from altcore.sweep.records import number, read_record, record_text

ATTEMPTS = "attempts"
LEASE, HEARTBEAT, WORK, EXIT = "lease.json", "heartbeat", "work", "exit.json"
AGAIN = "again.json"
TAKEN = "taken"
"""The name of ``work`` when the job was taken over: its former holder finds nothing to publish."""
BEATS = 6
"""Heartbeats in the time after which a silent holder is lost."""
LONGEST_BEAT = 20
"""Bytes of a heartbeat."""


@frozen(kw_only=True)
class Lease:
    """Who holds an attempt."""

    token: str = field(validator=instance_of(str))
    """Made for this attempt alone."""
    process: Process
    began: float = field(validator=number)
    """Seconds since the epoch by the holder's clock: for people, and never compared."""
    changed: Mapping[str, Any] = field(factory=dict, validator=instance_of(dict))
    """Settings that differ from the job's."""
    executor: str = field(default="", validator=instance_of(str))


def _lease(known: Mapping[str, Any]) -> Lease:
    return Lease(**{**known, "process": Process(**known["process"])})


@frozen
class Attempt:
    """The folder of an attempt."""

    folder: Path

    @property
    def number(self) -> int:
        """Counted from 1: the fencing token, since a later attempt makes an earlier one void."""
        return int(self.folder.name)

    @property
    def work(self) -> Path:
        """The folder that holds its run's directory."""
        return self.folder / WORK

    @property
    def lease(self) -> Lease:
        """Who holds it. Raises `BadInput` for a file that cannot be read."""
        found = read_record(self.folder / LEASE, _lease)
        if found is None:
            raise BadInput(f"{self.folder / LEASE} is missing")
        return found

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while it goes on, or if nobody wrote it down."""
        return read_record(self.folder / EXIT, lambda known: Exit(**known))

    @property
    def heartbeat(self) -> str:
        """What the holder counted up to; empty before its first."""
        # A link or a pipe is none, and NFS may not give out one that was replaced: the next one
        # tells.
        with suppress(OSError, UnreadableFile):
            return durable.read_file(self.folder / HEARTBEAT, LONGEST_BEAT).decode(errors="replace")
        return ""

    def end(self, ended: Exit) -> None:
        """Write down how it ended, for good: whoever comes second changes nothing."""
        durable.write_once(self.folder / EXIT, record_text(ended.to_plain()).encode())

    @property
    def again(self) -> Mapping[str, Any] | None:
        """The changes with which it is to be followed; None if people did not tell so."""
        return read_record(self.folder / AGAIN, lambda known: dict(known["changed"].items()))

    def follow(self, changed: Mapping[str, Any]) -> None:
        """Let another attempt follow, with some settings changed, whatever the rules say."""
        durable.replace_file(self.folder / AGAIN, record_text({"changed": changed}).encode())

    def take_over(self) -> None:
        """Make sure that its holder cannot publish any more.

        Raises `BadInput` if somebody made ``work`` anew, and both hold something.
        """
        try:
            with suppress(FileNotFoundError), durable.no_space_named(self.folder):
                durable.rename(self.work, self.folder / TAKEN)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            problem = f"{self.folder} has both {WORK} and {TAKEN}, and no sweep leaves both"
            raise BadInput(
                problem, hint=f"move one of them away: {TAKEN} is the older one"
            ) from error

    def run_directory(self, name: str) -> Path | None:
        """Return the directory of the attempt's run, None if it did not begin one."""
        # A holder that was too late may have made ``work`` anew.
        places = (self.folder / TAKEN / name, self.folder / WORK / name)
        return next((p for p in places if durable.is_own_folder(p)), None)

    def waits_for_copy(self, name: str) -> bool:
        """Return whether it ended before it had a copy of the run from which it was to go on."""
        places = (self.folder / TAKEN / name, self.work / name)
        return any(copy_place(p).is_dir() for p in places)


def run_to_go_on_from(
    attempts: Sequence[Attempt], name: str, changed: Mapping[str, Any]
) -> Path | None:
    """Return the directory of the run from which another attempt goes on; None if it begins anew.

    The run of an attempt that published it is the sweep's, and if somebody removed that one, no
    copy that an earlier attempt has brings it back.
    """
    for attempt in reversed(attempts):
        if attempt.lease.changed == changed:
            run = attempt.run_directory(name)
            if run is not None or not attempt.waits_for_copy(name):
                return run
    return None


def attempt_at(job_folder: Path, number: int) -> Attempt:
    """Return an attempt at a job, which need not be there."""
    return Attempt(job_folder / ATTEMPTS / f"{number:03}")


def attempts_in(folder: Path) -> list[Attempt]:
    """Return the attempts at a job whose folder is given, in order.

    Raises `BadInput` for a symbolic link, since what is written there would lie elsewhere, and for
    what is no folder.
    """
    own = folder / ATTEMPTS
    durable.check_no_links((folder, own))
    try:
        with os.scandir(own) as found:
            # int() takes digits of other scripts as well.
            entries = [e for e in found if e.name.isascii() and e.name.isdecimal()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(f"{own} cannot be read: {error.strerror}") from error
    durable.check_no_links(Path(entry) for entry in entries if entry.is_symlink())
    return [Attempt(own / name) for name in sorted((e.name for e in entries), key=int)]


@define
class Held:
    """An attempt that this process holds."""

    attempt: Attempt
    lease: Lease
    _inode: int
    """Of its folder for work."""
    before: Path | None = None
    """The run's directory of an earlier attempt, from which it goes on."""

    def is_taken_over(self) -> bool:
        """Return whether the job is another's by now.

        A folder for work that was made anew is not the one that was leased.
        """
        try:
            # Where a folder was removed, a new one may have its inode.
            return self.attempt.work.lstat().st_ino != self._inode or not self.is_own()
        except FileNotFoundError:
            return True

    def is_own(self) -> bool:
        """Return whether the attempt's folder is the one that was leased.

        A job may be removed, or replaced by another one of its name, and be leased anew.
        """
        try:
            return self.attempt.lease.token == self.lease.token
        except BadInput:  # damaged, but there
            return os.path.lexists(self.attempt.folder / LEASE)

    def end(self, ended: Exit) -> None:
        """Write down how the attempt ended, unless its folder is another's by now."""
        if self.is_own():
            self.attempt.end(ended)

    def publish(self, name: str, target: Path) -> bool:
        """Move the run to where the sweep's results are; return whether it was accepted.

        It is not if somebody took the job over, or if the job has a result.
        """
        durable.check_no_links((target.parent, target))
        try:
            if self.is_taken_over():
                return False
            with durable.no_space_named(target):
                durable.rename(self.attempt.work / name, target)
        except OSError:
            # Of a name that is taken, by a folder that holds something, or a source that is gone.
            # Anything else, such as a full disk, leaves the run where it is: it is then raised.
            if target.is_dir() or not (self.attempt.work / name).is_dir():
                return False
            raise
        durable.fsync_folder(target.parent)
        return True

    def not_published(self, target: Path) -> Exit:
        """Return how an attempt ended that could not `publish`: refused, or lost by its own fault.

        Whoever takes a job over leaves its mark before that: a renamed folder, or the end.
        """
        folder = self.attempt.folder
        marks = (folder / TAKEN, folder / EXIT, target)
        if not self.is_own() or any(map(os.path.lexists, marks)):
            return Exit(status="refused", error="another attempt has taken the job over")
        saved = newest_step(self.attempt.run_directory(target.name))
        error = (
            f"{self.attempt.work} was moved or replaced while the job ran, by nobody of the sweep"
        )
        return Exit(status=LOST, error=error, checkpoint=saved)

    @contextmanager
    def beating(self, lost_after: float, also: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Count up the heartbeat within the context, often enough for ``lost_after`` seconds.

        Whatever is to be done ``also`` is done at each beat.
        """
        stop = threading.Event()

        def beat() -> None:
            count = 0
            while not stop.wait(lost_after / BEATS if count else 0):
                count += 1
                # A full disk or a folder that is read-only for a while ends no run.
                with suppress(OSError, NoSpace):
                    if self.is_own():
                        durable.replace_text(self.attempt.folder / HEARTBEAT, str(count))
                also()

        thread = threading.Thread(target=beat, name="altcore heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=lost_after)


def lease(
    job_folder: Path,
    number: int,
    changed: Mapping[str, Any],
    executor: str = "",
    before: Path | None = None,
) -> Held | None:
    """Lease an attempt; return None if somebody was first, or took the job out of its sweep.

    The job's folder is not made anew: it was there, with one for attempts, or it is gone.
    """
    token = uuid4().hex
    own = Lease(
        token=token,
        process=this_process(),
        began=time.time(),
        changed=dict(changed),
        executor=executor,
    )
    made = job_folder.with_name(f".new-{token}")
    with durable.no_space_named(made):
        try:
            durable.make_folder(made / WORK)
            if before is not None:
                copy_place(made / WORK / before.name).mkdir()
            inode = (made / WORK).stat().st_ino
            durable.write_file(made / LEASE, record_text(asdict(own)).encode())
            target = attempt_at(job_folder, number)
            try:
                durable.rename(made, target.folder)
            except OSError:
                if target.folder.exists() or not job_folder.exists():
                    return None
                raise
            durable.fsync_folder(target.folder.parent)
        finally:
            durable.remove(made)
    return Held(target, own, inode, before)


@define
class Watch:
    """Tells which holders are lost. No clock of another host matters to it."""

    lost_after: float
    """Seconds without a heartbeat, by this process's own clock."""
    _seen: dict[Path, tuple[str, float]] = field(init=False, factory=dict)
    """The last heartbeat of each attempt, and when it was first seen."""

    def is_lost(self, attempt: Attempt) -> bool:
        """Return whether the holder ended, or was silent for as long as this process watched."""
        if attempt.lease.process.is_gone():
            return True
        beat, now = attempt.heartbeat, time.monotonic()
        last, since = self._seen.setdefault(attempt.folder, (beat, now))
        if beat != last:
            self._seen[attempt.folder] = (beat, now)
            return False
        return now - since > self.lost_after

    def seconds_of(self, attempt: Attempt) -> float | None:
        """Return how long a holder's heart beat, None if it is not known."""
        with suppress(ValueError):
            # The first beat came at once.
            return (int(attempt.heartbeat) - 1) * self.lost_after / BEATS
        return None
