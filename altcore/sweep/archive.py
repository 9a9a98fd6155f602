"""The accepted runs of a sweep as archives, one for each variant."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from altcore import durable
from altcore.runs import CHECKPOINTS
from altcore.sweep.audit import audit
from altcore.sweep.job import Job
from altcore.sweep.ledger import JOB, JOBS, Ledger, State
from altcore.sweep.tables import TABLES, Table


@frozen(kw_only=True)
class Collected:
    """What was archived."""

    archives: Mapping[Path, int]
    """Each with the number of its runs."""
    left_out: Mapping[str, str]
    """The jobs that are damaged, with the file and what is wrong with it."""


def collect(ledger: Ledger, out: Path, *, checkpoints: bool = False) -> Collected:
    """Write ``VARIANT.tar.gz`` with the run and the job's file of each job that has a result.

    The long lists of these jobs are beside them, under ``tables``.

    A run that is not what was accepted is left out. The same runs make the same archive, byte for
    byte. It is there whole or not at all.

    Args:
        ledger: of the sweep.
        out: the folder; made if it is not there.
        checkpoints: whether checkpoints are archived, too, which are most of a run's bytes.
    """
    if not out.is_dir():
        durable.make_folder(out)
    found = audit(ledger)
    completed = {row.name for row in found.rows if row.state is State.COMPLETED}
    by_variant: dict[str, list[Job]] = {}
    for job in ledger.jobs():
        if job.name in completed:
            by_variant.setdefault(job.variant, []).append(job)
    made = {}
    for variant, jobs in by_variant.items():
        path = out / f"{variant}.tar.gz"
        temporary = durable.half_written(path)
        with durable.no_space_named(path):
            try:
                _write(temporary, ledger, jobs, checkpoints=checkpoints)
                durable.rename(temporary, path)
            finally:
                durable.remove(temporary)
        made[path] = len(jobs)
    return Collected(archives=made, left_out=found.damaged)


def _write(path: Path, ledger: Ledger, jobs: list[Job], *, checkpoints: bool) -> None:
    # Neither the time nor the name of the archive is within it.
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        tables: dict[int, Table] = {}
        for job in jobs:
            job.to_plain(tables)
        for name in sorted({table.digest for table in tables.values()}):
            source = ledger.table_of(name)
            _add(archive, f"{jobs[0].variant}/{TABLES}/{source.name}", source)
        for job in sorted(jobs, key=lambda job: job.name):
            _add(archive, f"{job.variant}/{job.name}/{JOB}", ledger.folder / JOBS / job.name / JOB)
            run = ledger.run_of(job.name)
            for source in _files(run, checkpoints=checkpoints):
                inner = source.relative_to(run).as_posix()
                _add(archive, f"{job.variant}/{job.name}/{inner}", source)


def _files(run: Path, *, checkpoints: bool) -> Iterator[Path]:
    """Yield the files of a run, in order, without its lock; no link is followed."""
    for folder, folders, names in os.walk(run):
        if Path(folder) == run and not checkpoints and CHECKPOINTS in folders:
            folders.remove(CHECKPOINTS)
        folders.sort()
        for name in sorted(names):
            source = Path(folder, name)
            is_kept = not name.startswith(".") and source.is_file()
            if is_kept and not source.is_symlink():
                yield source


def _add(archive: tarfile.TarFile, name: str, source: Path) -> None:
    data = durable.read_file(source)
    told = tarfile.TarInfo(name)
    told.size, told.mtime, told.mode = len(data), int(source.stat().st_mtime), 0o644
    archive.addfile(told, io.BytesIO(data))
