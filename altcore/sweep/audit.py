"""Whether accepted runs are what they were when they were accepted, and were made of the same data.

Every file of `FILES` is read, which a look at the status of a sweep cannot afford.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from attrs import evolve, frozen

from altcore.errors import BadInput, UnreadableFile, shown
from altcore.runs import (
    CONFIG,
    METRICS,
    SUMMARY,
    altered,
    damaged_lines,
    read_json,
    read_lines,
    summary_of,
)
from altcore.sweep.acceptance import JOB_DIGEST, check_there, differing, digests_of
from altcore.sweep.attempt import attempts_in
from altcore.sweep.job import Job
from altcore.sweep.ledger import JOB, JOBS, Ledger, State
from altcore.sweep.rows import Row, row_of, survey

DATA = "sha256"
"""The fact of a workload that digests its data."""
SHOWN = 12
"""Digits of a digest."""


@frozen(kw_only=True)
class Audit:
    """What accepted runs are."""

    rows: Sequence[Row]
    """All jobs; one is damaged if a file of its run is not what was accepted."""
    other_data: Mapping[str, str]
    """Runs of other data than most of those that ask for the same, and what they differ in."""
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
    return Audit(rows=rows, other_data=_other_data(ledger, rows), unrecorded=unrecorded)


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


def _other_data(ledger: Ledger, rows: Sequence[Row]) -> dict[str, str]:
    """Return the runs whose data are not those of most runs with the same settings of workload."""
    groups: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.state is State.COMPLETED:
            facts = read_json(ledger.run_of(row.name) / SUMMARY).get("workload_facts", {})
            config = ledger.job(row.name).config
            settings = config.get("settings", {}).get(config["workload"], {})
            asked = json.dumps([config["workload"], settings], sort_keys=True)
            if facts.get(DATA):
                groups.setdefault(asked, {}).setdefault(facts[DATA], []).append(row.name)
    found: dict[str, str] = {}
    for by_digest in groups.values():
        usual = max(by_digest, key=lambda digest: len(by_digest[digest]))
        told = f"and {usual[:SHOWN]} in {by_digest[usual][0]}"
        for own, names in by_digest.items():
            if own != usual:
                found |= dict.fromkeys(names, f"{DATA} of its data is {own[:SHOWN]}, {told}")
    return found
