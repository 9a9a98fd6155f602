"""Whether the data of a study can be trusted: GO, or NO-GO with every reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

ENDED = ("finished", "collapsed", "stopped")
UNEVEN = 1.5
"""A gap between two values so many times as long as usual is a gap in the data."""


@frozen(kw_only=True)
class Trust:
    """What was looked at, and what speaks against the data."""

    reasons: Sequence[tuple[str, str]]
    """The run, or nothing for all of them, and what is wrong."""
    intervals: Mapping[str, str]
    """Steps between the values of each measure, least to most over the runs."""

    @property
    def is_go(self) -> bool:
        """Whether nothing speaks against the data."""
        return not self.reasons


def trust_of(
    records: Sequence[RunRecord],
    measures: Sequence[str],
    r_squared: Sequence[float | None],
    limit: float,
) -> Trust:
    """Look at the runs of a study.

    Args:
        records: the runs.
        measures: what each must have, at even intervals from the first step to the last.
        r_squared: of each run; None for one that was not fitted.
        limit: what their median must pass.
    """
    reasons: list[tuple[str, str]] = []
    usual: dict[str, list[float]] = {}
    for record in records:
        reasons += [(record.name, problem) for problem in _problems(record)]
        courses = _courses(record, measures)
        for name in measures:
            steps = courses[name]
            if not steps:
                reasons.append((record.name, f"{name} was never recorded"))
                continue
            gaps = [b - a for a, b in pairwise(steps)]
            each = median(gaps) if gaps else float(steps[0])
            usual.setdefault(name, []).append(each)
            last = record.metrics[-1]["step"]
            if wide := [b for b, gap in zip(steps[1:], gaps, strict=True) if gap > UNEVEN * each]:
                reasons.append((record.name, f"{name} has a gap before step {wide[0]}"))
            elif last - steps[-1] >= UNEVEN * each:
                reasons.append((record.name, f"{name} ends at step {steps[-1]} of {last}"))
    fitted = [r for r in r_squared if r is not None]
    if not fitted:
        reasons.append(("", "no run was fitted, so R² is not known"))
    elif median(fitted) <= limit:
        told = f"the median R² is {median(fitted):.4f}, and more than {limit:g} is needed"
        reasons.append(("", told))
    return Trust(reasons=reasons, intervals={name: _range(usual[name]) for name in usual})


def _problems(record: RunRecord) -> Iterator[str]:
    """Yield what is wrong with a run as a whole."""
    status, steps = record.summary.get("status"), record.summary.get("steps")
    if status not in ENDED:
        yield f"its status is {status}"
    if not record.metrics:
        yield "nothing was recorded"
        return
    last = record.metrics[-1]["step"]
    if steps is not None and last != steps:
        yield f"metrics end at step {last}, and the run made {steps}"
    for name in ("loss", "val_loss"):
        bad = [x["step"] for x in record.metrics if name in x and not _is_finite(x[name])]
        if bad:
            yield f"{name} is not finite in {len(bad)} steps, first in step {bad[0]}"


def _courses(record: RunRecord, measures: Sequence[str]) -> dict[str, list[int]]:
    """Return the steps at which each measure has a value. A discarded step needs none."""
    found: dict[str, list[int]] = {name: [] for name in measures}
    for line in record.metrics:
        for name in found.keys() & line.keys():
            found[name].append(line["step"])
    return found


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
