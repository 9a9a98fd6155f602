"""Whether accepted runs are what they were then, and were made of the same data and code.

Every file of `FILES` is read, which a look at the status of a sweep cannot afford.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from altcore.errors import BadInput, UnreadableFile, shown
from altcore.runs import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    altered,
    damaged_lines,
    other_code,
    other_data,
    read_json,
    read_lines,
    several,
    summary_of,
    unlike_most,
)
from altcore.sweep.acceptance import JOB_DIGEST, check_there, differing, digests_of
from altcore.sweep.attempt import attempts_in
from altcore.sweep.job import Job
from altcore.sweep.ledger import JOB, JOBS, Ledger, State
from altcore.sweep.rows import Row, row_of, survey


@frozen(kw_only=True)
class Audit:
    """What accepted runs are."""

    rows: Sequence[Row]
    """All jobs; one is damaged if a file of its run is not what was accepted."""
    other_data: Mapping[str, str]
    """Runs of other data than most of those that ask for the same, and what they differ in."""
    other_code: Mapping[str, str]
    """Runs of which a format or a plugin is another than in most runs that have one of its name."""
    data: Sequence[str]
    """Lines on data that are not the same in all runs, as other settings may ask for."""
    unrecorded: Sequence[str]
    """Runs of which no digest was written down, since the worker died just then, or its attempt was
    removed. They were compared with what their jobs ask for."""

    @property
    def damaged(self) -> dict[str, str]:
        """The jobs that are damaged, with the file and what is wrong with it."""
        return {row.name: row.why for row in self.rows if row.state is State.DAMAGED}


def audit(ledger: Ledger) -> Audit:
    """Read all accepted runs of a sweep, and compare them with what was accepted."""
    rows: list[Row] = []
    unrecorded = []
    for row in survey(ledger):
        try:
            if row.state is State.COMPLETED and not _check(ledger, row):
                unrecorded.append(row.name)
            rows.append(row)
        except BadInput as error:
            rows.append(evolve(row, state=State.DAMAGED, why=str(error)))
    completed = [row.name for row in rows if row.state is State.COMPLETED]
    runs = [ledger.run_of(name) for name in completed]
    environments = [_environment(run) for run in runs]
    codes = [environment.get("code") for environment in environments]
    configs = [ledger.job(name).config for name in completed]
    records = configs, [summary_of(run) for run in runs], environments
    return Audit(
        rows=rows,
        other_data=unlike_most(completed, other_data(*records)),
        other_code=unlike_most(completed, [*other_code(codes).items()]),
        data=several(completed, other_data(*records, whatever_was_asked=True)),
        unrecorded=unrecorded,
    )


def _environment(run: Path) -> dict[str, Any]:
    """Return what a run recorded of code and files; nothing if that cannot be read."""
    with suppress(BadInput):  # whoever tells of environments names it
        return read_json(run / ENVIRONMENT)
    return {}


def check_accepted(ledger: Ledger, name: str) -> None:
    """Raise `BadInput`, naming the file, if what lies in the place of a job's run is no such run.

    It is if it was accepted as the job's result, and is as it was then. Raises `UnreadableFile` if
    the system does not give out what tells.
    """
    row, run = row_of(ledger, name), ledger.run_of(name)
    if row.state is State.DAMAGED:
        raise UnreadableFile(row.why) if row.is_unreadable else BadInput(row.why)
    if not run.is_dir():
        raise BadInput(f"{run} is not the folder of a run")
    _check(ledger, row)


def _check(ledger: Ledger, row: Row) -> bool:
    """Raise `BadInput` if a run is not the one of its job; return whether its digests are known."""
    run, job = ledger.run_of(row.name), ledger.job(row.name)
    accepted = row.exit.accepted if row.exit else {}
    check_there(run, accepted)
    now = {JOB_DIGEST: job.digest, **digests_of(run)}
    for name in {**accepted, **now} if accepted else ():
        if now.get(name) != accepted.get(name):
            path = ledger.folder / JOBS / job.name / JOB if name == JOB_DIGEST else run / name
            raise BadInput(f"{path} is not what it was when the run was accepted")
    if accepted and row.attempts > 1:
        for attempt in attempts_in(ledger.folder / JOBS / job.name):
            _ = attempt.exit  # which one must be able to read: it has seconds of the job
    # What a retry changed is told by its lease alone.
    if not accepted or row.attempts > 1:
        _check_configuration(ledger, job, row)
    if not accepted:
        _check_lines(ledger, job, row)
    return bool(accepted)


def _check_configuration(ledger: Ledger, job: Job, row: Row) -> None:
    path = ledger.run_of(job.name) / CONFIG
    for key, value in differing(path.parent, job.config, row.changed).items():
        raise BadInput(f"{path}: {key} is {shown(value)}, which is not what its job asks for")
    if "seed" in row.changed:
        raise BadInput(f"{path}: the seed is that of another job, {row.changed['seed']}")


def _check_lines(ledger: Ledger, job: Job, row: Row) -> None:
    """Raise `BadInput` if the record of a run ends before the run did, or says something else."""
    run = ledger.run_of(job.name)
    summary = summary_of(run)
    steps, every = summary.get("steps", 0), {**job.config, **row.changed}.get("log_interval", 1)
    last = max((line["step"] for line in read_lines(run / METRICS)), default=0)
    # The last step that was asked for is always recorded.
    if last < (steps if steps == summary.get("max_steps") else steps - steps % every):
        raise BadInput(f"{run / METRICS} ends with step {last}, and the run with step {steps}")
    if damaged := damaged_lines(run / METRICS):
        raise BadInput(f"{run / METRICS} is damaged in line {damaged[0]}")
    for problem in altered(run).values():
        raise BadInput(problem)
