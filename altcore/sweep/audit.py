"""Whether accepted runs are what they were then, and were made of the same data and code.

Every file of `FILES` is read, which a look at the status of a sweep cannot afford.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from attrs import evolve, frozen

from altcore.errors import BadInput, UnreadableFile, shown
from altcore.runs import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    SUMMARY,
    altered,
    damaged_lines,
    other_code,
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
    other_code: Mapping[str, str]
    """Runs of which a format or a plugin is another than in most runs that have one of its name."""
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
    return Audit(
        rows=rows,
        other_data=_unusual(_data(ledger, completed), SHOWN),
        other_code=_unusual(_code(ledger, completed)),
        unrecorded=unrecorded,
    )


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


Groups = Mapping[tuple[str, str], Mapping[str, Sequence[str]]]
"""The names of runs by their value of something that should be one: by its name, and who asks."""


def _data(ledger: Ledger, names: Sequence[str]) -> Groups:
    """Return runs by the digest of their data, of the same settings of workload."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name in names:
        facts = read_json(ledger.run_of(name) / SUMMARY).get("workload_facts", {})
        config = ledger.job(name).config
        settings = config.get("settings", {}).get(config["workload"], {})
        asked = json.dumps([config["workload"], settings], sort_keys=True)
        if facts.get(DATA):
            by_digest = groups.setdefault((f"{DATA} of its data", asked), {})
            by_digest.setdefault(facts[DATA], []).append(name)
    return groups


def _code(ledger: Ledger, names: Sequence[str]) -> Groups:
    """Return runs by the code of each format and plugin of which they have several."""
    codes = {}
    for name in names:
        with suppress(BadInput):  # whoever tells of environments names it
            codes[name] = read_json(ledger.run_of(name) / ENVIRONMENT).get("code")
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for what, texts in other_code([*codes.values()]).items():
        for name, text in zip(codes, texts, strict=True):
            if text is not None:
                groups.setdefault((what, ""), {}).setdefault(text, []).append(name)
    return groups


def _unusual(groups: Groups, most: int | None = None) -> dict[str, str]:
    """Return the runs whose value is not that of most, with both: ``most`` letters of each."""
    found: dict[str, list[str]] = {}
    for (what, _), by_value in groups.items():
        usual = max(by_value, key=lambda value: len(by_value[value]))
        for own, names in by_value.items():
            for name in names if own != usual else ():
                told = f"{what} is {own[:most]}, and {usual[:most]} in {by_value[usual][0]}"
                found.setdefault(name, []).append(told)
    return {name: "; ".join(told) for name, told in found.items()}
