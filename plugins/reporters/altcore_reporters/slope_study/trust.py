"""Whether the data of a study can be trusted: GO, or NO-GO with every reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore.plugin import altered, other_code, other_data, read_interval, unlike_most
from altcore_reporters.slope_study.hypotheses import Result

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

ENDED = ("finished", "collapsed", "stopped")
Range = tuple[float | None, float | None]
Reason = tuple[str, str]
"""The run, or nothing for all of them, and what is wrong."""


@frozen(kw_only=True)
class Demands:
    """What data must be like to be trusted."""

    every: Mapping[str, Any]
    """The measures that each run must have, with the most steps between two values, or epochs."""
    ranges: Mapping[str, Range]
    """Lowest and highest value by measure; None is no limit."""
    r_squared: float
    """What the median R² of the fits must pass."""


@frozen(kw_only=True)
class Trust:
    """What was looked at, and what speaks against the data."""

    reasons: Sequence[Reason]
    intervals: Mapping[str, str]
    """Steps between the values of each measure, least to most over the runs."""

    @property
    def is_go(self) -> bool:
        """Whether nothing speaks against the data."""
        return not self.reasons


def trust_of(
    records: Sequence[RunRecord],
    results: Sequence[Result],
    demands: Demands,
    left_out: Sequence[str] = (),
) -> Trust:
    """Look at the runs of a study.

    Args:
        records: the runs.
        results: what the study has of each.
        demands: what they must be like.
        left_out: other runs, which are left out for a reason.
    """
    judged = {*left_out, *(record.name for record in records)}
    missing = [name for name in jobs_of(records) if name not in judged]
    reasons = [(name, "it is a job of the sweep, and has no run here") for name in missing]
    usual: dict[str, list[float]] = {}
    names = [record.name for record in records]
    codes = [record.environment.get("code") for record in records]
    parts = ([getattr(r, part) for r in records] for part in ("config", "summary", "environment"))
    data = other_data(*parts, whatever_was_asked=True)  # a study is of one data set
    reasons += [*unlike_most(names, [*other_code(codes).items(), *data]).items()]
    for record, result in zip(records, results, strict=True):
        courses = _courses(record, (*demands.every, *demands.ranges))
        problems = [
            *_of_run(record, result),
            *_absent(record, courses, demands.every),
            *_corrupt(courses, demands),
        ]
        reasons += [(record.name, problem) for problem in problems]
        for name in demands.every:
            steps = [step for step, _ in courses[name]]
            if gaps := [b - a for a, b in pairwise(steps)] or steps:
                usual.setdefault(name, []).append(median(gaps))
    fits = [r.r_squared for r in results if r.r_squared is not None]
    if fits and median(fits) <= demands.r_squared:
        told = f"the median R² is {median(fits):.4f}, and more than {demands.r_squared:g} is needed"
        reasons.append(("", told))
    return Trust(reasons=reasons, intervals={name: _range(usual[name]) for name in usual})


def jobs_of(records: Sequence[RunRecord]) -> list[str]:
    """Return the jobs of the sweeps in whose folders some runs are, whatever became of them."""
    sweeps = {r.directory.absolute().parents[1] for r in records if r.directory}
    begun = (sweep for sweep in sweeps if (sweep / "sweep.yaml").is_file())
    return sorted(job.parent.name for sweep in begun for job in sweep.glob("jobs/*/job.json"))


def _of_run(record: RunRecord, result: Result) -> Iterator[str]:
    """Yield what is wrong with a run as a whole."""
    status, steps = record.summary.get("status"), record.summary.get("steps")
    if status not in ENDED:
        yield f"its status is {status}"
    if record.directory:
        yield from (f"{file} is not as the run left it" for file in altered(record.directory))
    last = max((line["step"] for line in record.metrics), default=0)
    if not last:
        yield "nothing was recorded"
    elif steps is not None and last != steps:
        yield f"metrics end at step {last}, and the run made {steps}"
    if result.r_squared is None:
        yield "no power law was fitted"
    if (monitor := record.summary.get("monitor")) not in (None, "val_loss"):
        yield f"its best evaluation is by {monitor}: best_val_ce is not the lowest"


Course = Sequence[tuple[int, Any]]
"""Steps, and values."""


def _courses(record: RunRecord, names: Sequence[str]) -> dict[str, list[tuple[int, Any]]]:
    found: dict[str, list[tuple[int, Any]]] = {name: [] for name in names}
    for line in record.metrics:
        for name in found.keys() & line.keys():
            found[name].append((line["step"], line[name]))
    return found


def _absent(
    record: RunRecord, courses: Mapping[str, Course], every: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is not there at its frequency. A step that was discarded needs no value."""
    steps, epochs = record.summary.get("steps") or 0, record.summary.get("epochs")
    discarded = [line["step"] for line in record.metrics if line.get("discarded")]
    for name, asked in every.items():
        interval = read_interval(asked, f"measures.{name}")
        at = Counter(step for step, _ in courses[name])
        if not at:
            yield f"{name} was never recorded"
            continue
        if twice := [step for step, count in at.items() if count > 1]:
            yield f"{name} has {at[twice[0]]} values in step {twice[0]}"
        if isinstance(interval, Fraction):
            if not epochs:
                yield f"{name} is needed every {asked}, and the run counts no epochs"
                continue
            # Where a quarter epoch is one step and a half, values are one or two steps apart.
            interval = math.ceil(interval * Fraction(steps / epochs).limit_denominator(10**6))
        known = sorted({*at, *discarded})
        # After the last value, one more would have come had the run gone on so long.
        for before, after in pairwise([0, *known, steps + 1]):
            if interval is not None and after - before > interval:
                yield f"{name} has no value in steps {before + 1} to {after - 1}"
                break


def _corrupt(courses: Mapping[str, Course], demands: Demands) -> Iterator[str]:
    """Yield which values are no finite numbers, or out of their range."""
    for name, course in courses.items():
        if bad := [step for step, value in course if not _is_finite(value)]:
            yield f"{name} is not finite in {len(bad)} steps, first in step {bad[0]}"
        low, high = demands.ranges.get(name, (None, None))
        for step, value in course:
            if _is_finite(value) and not (
                (low is None or value >= low) and (high is None or value <= high)
            ):
                yield f"{name} is {value:g} in step {step}, outside {_told(low)} to {_told(high)}"
                break


def _told(limit: float | None) -> str:
    return "any" if limit is None else f"{limit:g}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
