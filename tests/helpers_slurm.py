"""A Slurm of one node: its real daemons, as whoever runs the tests, with all files in one folder.

It needs Debian's packages slurm-wlm and munge, and neither systemd nor a database. Without the
latter there is no sacct: squeue and scontrol say what is known.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from attrs import define, field

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """
ClusterName=altcore
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return which programs of Slurm are not there; empty if all are."""
    return ", ".join(name for name in NEEDED if shutil.which(name, path=PATH) is None)


def wait_until(what: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.2)


@define
class Cluster:
    """Slurm's controller, its node, and munge, which both need."""

    folder: Path
    """Of which the path is short, since a socket lies in it."""
    _daemons: dict[str, subprocess.Popen[bytes]] = field(init=False, factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What commands need to find it."""
        return {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons, and wait until the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host, user = socket.gethostname().split(".")[0], self.told("id", "-un").strip()
        config = CONFIG.format(host=host, user=user, folder=self.folder, ports=_free_ports(2))
        (self.folder / "slurm.conf").write_text(config)
        own = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        self._start(
            *("munged", "--force", "--foreground"),
            *(f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in own),
        )
        wait_until((self.folder / "munge.socket").exists)
        self.start_controller()
        self._start("slurmd", "-D", "-N", host)
        wait_until(lambda: "idle" in self.told("sinfo", "--noheader", "--format=%T"))

    def start_controller(self) -> None:
        """Start slurmctld; it goes on with the state of an earlier one."""
        self._start("slurmctld", "-D")

    def kill_controller(self) -> None:
        """End slurmctld as a crash does."""
        self._daemons["slurmctld"].kill()
        self._daemons["slurmctld"].wait()

    def stop(self) -> None:
        """End all jobs and daemons."""
        user = str(os.getuid())
        self.told("scancel", f"--user={user}")
        until = time.monotonic() + 30
        while self.queue() and time.monotonic() < until:
            time.sleep(0.2)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            daemon.wait()

    def told(self, *command: str) -> str:
        """Return what a command prints."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        ).stdout

    def queue(self, states: str = "PENDING,RUNNING,COMPLETING") -> list[str]:
        """Return the ids of the jobs that are in one of these states."""
        return self.told("squeue", "--noheader", "--format=%i", f"--states={states}").split()

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("ab")
        self._daemons[command[0]] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
