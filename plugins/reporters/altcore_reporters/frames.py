"""Runs as pandas frames: one of runs, a row each, and one of their histories.

Whatever is not known is missing: NaN among numbers. The frames are the same whether the runs were
read from their directories or from a tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from altcore.plugin import RunRecord, full_summary
from altcore_reporters.original_names import names_in_summary
from altcore_reporters.run_facts import changes_of, data_of, run_id

FIRST = (
    *("name", "format", "run_id", "run_url", "state", "steps"),
    *("final_loss", "best_loss", "bit_stall_final", "overflow_final"),
    *("optimizer", "manifold_aware", "seed", "data", "changed"),
)
"""The columns with which a frame of runs begins."""
SUMMARY = tuple(
    key
    for key, empty in full_summary({}).items()
    if not isinstance(empty, list | dict) and key != "directory"
)
"""The keys of a summary that have a single value. A run's directory is not a value of the run."""
INT64 = 2**63
"""The least whole number that a column of whole numbers does not hold."""
FRACTIONS = frozenset(SUMMARY) - {"steps", "seed"}
"""The columns that are never made whole numbers, whatever is in them."""


def runs_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return a frame of runs, a row each, in the order of the records.

    Its columns are `FIRST`, then every other single value of the summary, then of the
    configuration that any run has, by key. A plugin's setting is called as by ``--set``,
    ``gpt.n_layer``.
    """
    rows = [_row(record) for record in records]
    given = sorted({key for row in rows for key, value in row.items() if value is not None})
    names = dict.fromkeys((*FIRST, *SUMMARY, *given))
    return pd.DataFrame({n: _column([r.get(n) for r in rows], n not in FRACTIONS) for n in names})


def one_or_several(names: str | Sequence[str]) -> list[str]:
    """Return names as a list: a text is one name, not its letters."""
    return [names] if isinstance(names, str) else list(names)


def history_frame(records: Sequence[RunRecord], keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a frame of histories, a row for each recorded step of each run.

    Its columns are ``run_id``, ``name`` and ``step``, then everything that was recorded:
    ``loss``, ``val_loss``, measures, and the time of the step, ``step_time_ms``.

    Args:
        records: of the runs.
        keys: the columns after the first three, instead of everything. The rows are then those
            that have any of them.
    """
    keys = None if keys is None else one_or_several(keys)
    rows = []
    for record in records:
        about = {"run_id": run_id(record), "name": record.name}
        for step, values in _by_step(record).items():
            if keys is None or not values.keys().isdisjoint(keys):
                rows.append({**about, "step": step, **values})
    first = ("run_id", "name", "step")
    if keys is None:
        found = sorted({key for row in rows for key in row})
        keys = ("loss", "val_loss", *found)
    names = dict.fromkeys((*first, *keys))
    return pd.DataFrame({n: _column([r.get(n) for r in rows], n == "step") for n in names})


def _row(record: RunRecord) -> dict[str, Any]:
    """Return what the frame of runs says of one."""
    summary = record.summary
    settings = record.config.get("settings") or {}
    dotted = {f"{name}.{k}": v for name, own in settings.items() for k, v in own.items()}
    config = {**record.config, **dotted}
    return {
        **{k: v for k, v in config.items() if not isinstance(v, list | tuple | Mapping)},
        **{k: summary.get(k) for k in SUMMARY},
        **names_in_summary(record),
        "name": record.name,
        "run_id": run_id(record),
        "run_url": record.url,
        "data": data_of(record),
        "changed": changes_of(record),
    }


def _by_step(record: RunRecord) -> dict[int, dict[str, Any]]:
    """Return what was recorded, by step in ascending order, evaluations with the steps' lines."""
    found: dict[int, dict[str, Any]] = {}
    times = [{k: line.get(k) for k in ("step", "step_time_ms")} for line in record.timings]
    for line in (*record.metrics, *times):
        known = {k: v for k, v in line.items() if v is not None and k != "step"}
        found.setdefault(line["step"], {}).update(known)
    return dict(sorted(found.items()))


def _column(values: Sequence[Any], may_be_whole: bool) -> pd.Series:
    """Return a column: of whole numbers, of numbers, or of anything else.

    A tracker may return 1 for 1.0: only all the values together tell whether they are whole.
    """
    known = [v for v in values if v is not None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        return pd.Series(values)
    is_complete = 0 < len(known) == len(values)
    is_whole = (
        may_be_whole
        and is_complete
        and all(float(v).is_integer() and -INT64 <= v < INT64 for v in known)
    )
    return pd.Series(values, dtype="int64" if is_whole else "float64")
