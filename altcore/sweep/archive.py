"""The accepted runs of a sweep as archives, one for each variant."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from altcore import durable
from altcore.runs import (
    CHECKPOINTS,
    RUN_ID,
    list_checkpoints,
    missing_checkpoints,
    run_id_of,
)
from altcore.sweep.audit import audit
from altcore.sweep.changes import changes_since
from altcore.sweep.job import Job
from altcore.sweep.ledger import JOB, JOBS, Ledger, State
from altcore.sweep.outputs import (
    FILES,
    LACKING,
    SWEEP,
    files_in,
    jobs_without_result,
    lacking_told,
    remove_earlier,
    sha256_of,
)
from altcore.sweep.sweep_file import SweepFile
from altcore.sweep.tables import TABLES, Table

ENDING = ".tar.gz"


@frozen(kw_only=True)
class Collected:
    """What was archived."""

    archives: Mapping[Path, int]
    """Each with the number of its runs."""
    left_out: Mapping[str, str]
    """The jobs that are damaged, with the file and what is wrong with it."""
    lacking: str
    """Which jobs have no result yet, in a sentence; empty if all have one."""
    unasked: str
    """Which jobs the sweep file does not ask for, or not so, in a sentence; empty if none is."""
    earlier: Sequence[Path]
    """Archives that were written before, of variants of which no run is completed now."""
    others: Sequence[Path]
    """Files in the place of archives of variants that the sweep no longer has."""


def collect(sweep: SweepFile, ledger: Ledger, out: Path, *, checkpoints: bool = False) -> Collected:
    """Write ``VARIANT.tar.gz`` with the run and the job's file of each job that has a result.

    The long lists of these jobs are beside them, under ``tables``.

    A run that is not what was accepted is left out, and so is one whose checkpoints are asked for
    and are gone or another run's. The same runs make the same archive, byte for byte. It is there
    whole or not at all. ``SWEEP_archives.json`` names the archives with their digests, the jobs
    without a result, and those that the sweep file does not ask for. An archive that was written
    before is removed if the sweep has no such variant any more; if it has, the archive may be the
    only copy of its runs.

    Args:
        sweep: the sweep's file.
        ledger: of the sweep.
        out: the folder; made if it is not there.
        checkpoints: whether checkpoints are archived, too, which are most of a run's bytes.
    """
    if not out.is_dir():
        durable.make_folder(out)
    found, plan = audit(ledger), changes_since(sweep, ledger)
    completed = {row.name for row in found.rows if row.state is State.COMPLETED}
    unsound = _without_checkpoints(ledger, completed) if checkpoints else {}
    completed -= unsound.keys()
    by_variant: dict[str, list[Job]] = {}
    every = ledger.jobs()
    for job in every:
        if job.name in completed:
            by_variant.setdefault(job.variant, []).append(job)
    name, lacking = ledger.folder.name, jobs_without_result(found.rows, plan)
    listing = out / f"{name}_archives.json"
    kept = {listing.name, *(f"{job.variant}{ENDING}" for job in (*every, *plan.added))}
    others = remove_earlier(out, [listing], name, kept)
    there = {file: known for file, known in files_in(listing, name).items() if file in kept}
    made = {}
    for variant, jobs in by_variant.items():
        path = out / f"{variant}{ENDING}"
        temporary = durable.half_written(path)
        with durable.no_space_named(path):
            try:
                _write(temporary, ledger, jobs, checkpoints=checkpoints)
                there[path.name] = sha256_of(temporary)
                told = {
                    SWEEP: name,
                    LACKING: lacking,
                    "changed": plan.unasked,
                    FILES: there,
                }
                durable.replace_text(listing, json.dumps(told, indent=1) + "\n")
                durable.rename(temporary, path)
            finally:
                durable.remove(temporary)
        made[path] = len(jobs)
    return Collected(
        archives=made,
        left_out={**found.damaged, **unsound},
        lacking=lacking_told(lacking, len(completed)),
        unasked=plan.told_unasked,
        earlier=[out / file for file in there if out / file not in made],
        others=others,
    )


def _without_checkpoints(ledger: Ledger, names: Iterable[str]) -> dict[str, str]:
    """Return the jobs of which a run's own checkpoints are not there, and what is wrong."""
    told = {name: _checkpoint_problem(ledger.run_of(name)) for name in sorted(names)}
    return {name: problem for name, problem in told.items() if problem}


def _checkpoint_problem(run: Path) -> str:
    """Return which checkpoint of a run is gone, or another one's; no weights are read."""
    folder, own = run / CHECKPOINTS, run_id_of(run)
    if not folder.is_dir():
        return f"{folder} is gone"
    foreign = [x.path for x in list_checkpoints(folder) if x.manifest[RUN_ID] != own]
    if foreign:
        return f"{foreign[0]} is of another run"
    return next(iter(missing_checkpoints(run).values()), "")


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
