"""Which process is which, and whether it still runs.

Two processes are on one host, for this, if each sees the other as it sees itself: the same boot of
the machine, and the same name spaces of process ids and of clocks, by which a process's start is
told. A host's name alone says neither.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

from attrs import field, frozen
from attrs.validators import gt, instance_of, lt


@frozen(kw_only=True)
class Process:
    """A process, told from every other one that had or will have its id."""

    host: str = field(validator=instance_of(str))
    """The host's name, for people."""
    machine: str = field(validator=instance_of(str))
    """Differs wherever process ids mean other processes; empty if the system does not say."""
    pid: int = field(validator=[instance_of(int), gt(0), lt(1 << 31)])
    began: str = field(validator=instance_of(str))
    """When the process began, in the kernel's ticks since the boot; empty if unknown."""

    def is_gone(self) -> bool | None:
        """Return whether the process has ended, or None where that cannot be seen."""
        if not self.machine or self.machine != machine() or not self.began:
            return None
        began = _began(self.pid)
        return None if began is None else began != self.began


def this_process() -> Process:
    """Return this process."""
    pid = os.getpid()
    began = _began(pid) or ""
    return Process(host=socket.gethostname(), machine=machine(), pid=pid, began=began)


@cache
def machine() -> str:
    """Return what tells the name space of this machine's process ids from every other one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Of the process that looks: a forked child may have moved.
        own = [str((Path("/proc/self/ns") / space).readlink()) for space in ("pid", "time")]
        return " ".join([boot, *own])
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Return the start of a process that is alive; nothing of one that has ended, as a zombie.

    None if it is there and hidden: /proc may show each user no processes but their own.
    """
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None if _is_there(pid) else ""
    # The name, in parentheses, may hold anything. The state follows it, the start is field 22.
    state, *fields = told.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
