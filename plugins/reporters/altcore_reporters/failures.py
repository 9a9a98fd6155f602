"""Failures of runs as frames: from a frame of runs, from reports and run directories, or both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altcore.plugin import BadInput, read_runs
from altcore_reporters.columns import is_missing, need, numbers
from altcore_reporters.failure_evidence import (
    FROM_MEASUREMENTS,
    FROM_REASON,
    OVERFLOW,
    failure_of,
    mode_of_reason,
)
from altcore_reporters.markdown import is_finite, rate
from altcore_reporters.original_names import FAILED
from altcore_reporters.original_reports import read_report
from altcore_reporters.run_facts import run_id

if TYPE_CHECKING:
    import pandas as pd

    from altcore.plugin import RunRecord

OVERFLOWED = 0.01
"""The share of values that overflow from which on this explains a failure."""
COLUMNS = {
    "format": None,
    "name": None,
    "run_id": None,
    "run_url": None,
    "state": None,
    "collapse_step": math.nan,
    "reason": None,
    "last_good_loss": math.nan,
    "grad_sparsity": math.nan,
    "failure_mode": None,
    "mode_from": None,
    "evidence": "",
    "source": None,
}
"""The columns of a frame of failures, and what each has if it is not known."""
_OLD_NAMES = {
    "collapse_step": ("collapse_step", "failure_step"),
    "reason": ("reason", "collapse_reason", "failure_reason"),
    "last_good_loss": ("last_good_loss", "final_loss", "best_loss"),
    "grad_sparsity": ("grad_sparsity",),
}
"""The columns of a frame of runs from which each is taken: the first that has a value."""


class FailureAnalyzer:
    """Finds the runs that failed, and the mode of each failure."""

    def extract_failures(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the failures in a frame of runs.

        Args:
            df: a row a run, as `ExperimentDataLoader.get_format_comparison_runs` returns it.

        Returns:
            The runs whose state is crashed or failed, and those whose ``learned`` is False, with
            `COLUMNS` and every other column of ``df``. The collapse of a run that crashed is at
            its last step if no other is known. Missing metrics are NaN.
        """
        need(df, "state")
        if not len(df):
            return _frame([], df.columns)
        is_failure = df["state"].isin(FAILED)
        if "learned" in df:
            is_failure |= df["learned"].eq(False).fillna(False).astype(bool)
        rows = []
        for plain in df[is_failure].to_dict("records"):
            row = {**plain, **{k: _first(plain, names) for k, names in _OLD_NAMES.items()}}
            if row["collapse_step"] is None and plain["state"] in FAILED:
                row["collapse_step"] = plain.get("steps")
            if row["reason"] is None and plain.get("learned") is False:
                row["reason"] = "did not learn"
            rows.append(self._with_mode(row))
        return _frame(rows, df.columns)

    def parse_local_failure_reports(
        self, checkpoint_dir: str | Path = "checkpoints"
    ) -> list[dict[str, Any]]:
        """Return the failures recorded in a folder.

        Args:
            checkpoint_dir: holds the original experiments' ``*/failure_reports/*.md``, or altcore's
                run directories, or both. A folder that is not there has none. A run that cannot be
                read is left out with a warning.

        Returns:
            A mapping a failure, with `COLUMNS`. The mode comes from measurements if there are any.
        """
        root = Path(checkpoint_dir)
        found = [read_report(p) for p in sorted(root.glob("*/failure_reports/*.md"))]
        runs = read_runs(str(root)) if any(root.glob("*/config.yaml")) else []
        return found + self.from_records(runs).to_dict("records")

    def classify_failure_mode(self, reason: str | None, grad_sparsity: float | None = None) -> str:
        """Return the mode that a reason in words suggests.

        Args:
            reason: as it was recorded.
            grad_sparsity: the share of the gradients' elements that are zero, if it is known.

        Returns:
            overflow if the reason names a NaN or infinity, gradient_vanishing if most gradients
            are zero, underflow or overflow if the reason names it (the first of the two), unknown
            otherwise. What the reason says was not there does not count. Frames mark such a mode
            as from the reason alone.

        Raises:
            BadInput: if ``grad_sparsity`` is a number, but no share from 0 to 1.
        """
        is_number = isinstance(grad_sparsity, int | float) and not is_missing(grad_sparsity)
        if is_number and not 0 <= grad_sparsity <= 1:
            raise BadInput(f"grad_sparsity is {grad_sparsity}, and not a share from 0 to 1")
        return mode_of_reason(reason, grad_sparsity)

    def merge_failure_data(
        self, wandb_failures: pd.DataFrame, local_reports: Sequence[Mapping[str, Any]]
    ) -> pd.DataFrame:
        """Return the failures of a frame and of local reports, each once.

        A report belongs to the row with its run_id. If one of the two has none, it belongs to the
        row with its name, or else to the only row of its format if it is also the only report of
        that format. It goes before the row, since it has the measurements; the row fills what the
        report does not say. Reports without a row are added.
        """
        need(wandb_failures)
        rows = wandb_failures.to_dict("records")
        left = [dict(report) for report in local_reports]
        merged = []
        for row in rows:
            report = _belonging(row, rows, left)
            if report is not None:
                left.remove(report)
                row = {k: v for k, v in row.items() if k not in ("failure_mode", "mode_from")}
                row |= {k: v for k, v in report.items() if k != "run_id" and _known(v)}
            merged.append(self._with_mode(row))
        return _frame([*merged, *map(self._with_mode, left)], wandb_failures.columns)

    def from_records(self, records: Iterable[RunRecord]) -> pd.DataFrame:
        """Return the failures of runs that were read, their modes from what was measured."""
        found = ((record, failure_of(record)) for record in records)
        rows = [
            {**failure, "run_id": run_id(record), "run_url": record.url}
            for record, failure in found
            if failure
        ]
        return _frame(rows, [])

    def _with_mode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if _known(row.get("failure_mode")):
            return dict(row)
        overflow = row.get("overflow_final")
        if is_finite(overflow) and overflow > OVERFLOWED:
            evidence = f"{rate(overflow)} of the quantized values overflowed at the end."
            found = {"failure_mode": OVERFLOW, "mode_from": FROM_MEASUREMENTS, "evidence": evidence}
            return {**row, **found}
        reason = row.get("reason")
        mode = self.classify_failure_mode(
            reason if _known(reason) else None, row.get("grad_sparsity")
        )
        return {**row, "failure_mode": mode, "mode_from": FROM_REASON}


def _belonging(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], reports: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    own = row.get("run_id")
    if _known(own):
        found = next((r for r in reports if r.get("run_id") == own), None)
        if found is not None:
            return found
        reports = [r for r in reports if not _known(r.get("run_id"))]
    name, fmt = row.get("name"), row.get("format")
    named = [r for r in reports if _known(name) and r.get("name") == name]
    if named:
        return named[0]
    same = [r for r in reports if r.get("format") == fmt]
    is_only = len(same) == 1 and sum(r.get("format") == fmt for r in rows) == 1
    return same[0] if is_only else None


def _frame(rows: Sequence[Mapping[str, Any]], others: Iterable[Any]) -> pd.DataFrame:
    import pandas as pd

    complete = [{**COLUMNS, **{k: v for k, v in row.items() if _known(v)}} for row in rows]
    extra = [
        c for c in dict.fromkeys([*others, *(k for row in rows for k in row)]) if c not in COLUMNS
    ]
    made = pd.DataFrame(complete, columns=[*COLUMNS, *extra])
    plain = [k for k, missing in COLUMNS.items() if isinstance(missing, float)]
    return made.assign(**{column: numbers(made, column) for column in plain})


def _first(plain: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((plain[n] for n in names if _known(plain.get(n))), None)


def _known(value: Any) -> bool:
    """Whether a cell has a value, and not an infinite one."""
    return not (is_missing(value) or (isinstance(value, float) and math.isinf(value)))
