"""The loss-slope study as `altcore sweep export` wrote it, in frames of pandas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from attrs import evolve

from altcore.plugin import BadInput, read_runs
from altcore_reporters.slope_study.hypotheses import (
    Result,
    first_hypothesis,
    results_of,
    second_hypothesis,
)
from altcore_reporters.slope_study.reporter import (
    LossSlopeStudy,
    is_changed,
    result_of,
    verdicts,
)

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

TABLE, METADATA, SERIES = "results.csv", "results_metadata.json", "series"
NAMES = ("run_id", "variant")
"""Columns that are text, even where it looks like a number."""


class ExportedStudy:
    """Reads the folder of an export, and judges its runs as the reporter does.

    Args:
        folder: with ``results.csv``, ``series/`` and ``results_metadata.json``.
        runs_dir: the runs that the table is of, which GO or NO-GO is about; ``runs/`` beside the
            folder if None.
        settings: the limits of the verdicts; those of the study if None.
    """

    def __init__(
        self,
        folder: str | Path,
        runs_dir: str | Path | None = None,
        settings: LossSlopeStudy | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.runs_dir = Path(runs_dir) if runs_dir is not None else self.folder / ".." / "runs"
        self.settings = settings or LossSlopeStudy()

    @cached_property
    def results(self) -> pd.DataFrame:
        """The table, a row a run; what a run lacks is NaN."""
        return self._read(TABLE).fillna(dict.fromkeys(NAMES, ""))

    @cached_property
    def series(self) -> pd.DataFrame:
        """The courses of all runs of the table, a row for each step with a value."""
        places = zip(self.results["run_id"], self.results["variant"], strict=True)
        courses = [
            self._read(f"{SERIES}/{run_id}.csv").assign(run_id=run_id, variant=variant)
            for run_id, variant in places
        ]
        return pd.concat(courses, ignore_index=True) if courses else pd.DataFrame()

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Where the runs come from, and which jobs are left out of the table."""
        return json.loads(self._path(METADATA).read_text())

    def first_hypothesis(self) -> pd.DataFrame:
        """Return H1, over all runs and by variant: how many a power law fits."""
        found = first_hypothesis(self._results(), self.settings.limits)
        return pd.DataFrame(
            {
                "runs of": v.of,
                "share": v.estimate.value,
                "low": v.estimate.low,
                "high": v.estimate.high,
                "runs": v.estimate.n,
                "not fitted": v.left_out,
                "H1": v.word,
            }
            for v in found
        )

    def second_hypothesis(self) -> pd.DataFrame:
        """Return H2, over all runs and by variant: both correlations with their intervals."""
        found = second_hypothesis(self._results(), self.settings.limits)
        return pd.DataFrame(
            {
                "runs of": v.of,
                "Pearson": v.estimate.value,
                "low": v.estimate.low,
                "high": v.estimate.high,
                "Spearman": v.beside.value,
                "Spearman low": v.beside.low,
                "Spearman high": v.beside.high,
                "pairs": v.estimate.n,
                "left out": v.left_out,
                "H2": v.word,
            }
            for v in found
            if v.beside
        )

    def verdicts(self) -> str:
        """Return H1, H2 and GO or NO-GO as Markdown, as in the report.

        Raises:
            BadInput: if a run of the table is not in ``runs_dir``.
        """
        results = self._results()
        if not results:
            raise BadInput(f"{self._path(TABLE)} has no run")
        names = [r.run_id for r in results]
        records = read_runs(str(self.runs_dir), names)
        others = (r for r in read_runs(str(self.runs_dir)) if r.name not in names)
        left_out = [r.name for r in others if is_changed(r)]
        trust = self.settings.trust(records, results, left_out)
        pairs = zip(records, results, strict=True)
        differing = [reason for pair in pairs for reason in _differing(*pair)]
        trust = evolve(trust, reasons=[*differing, *trust.reasons])
        return verdicts(results, self.settings.limits, trust, left_out)

    def _results(self) -> list[Result]:
        try:
            return results_of(self.results.to_dict("records"))
        except KeyError as error:
            raise BadInput(f"{self._path(TABLE)} has no column {error.args[0]}") from error
        except ValueError as error:
            raise BadInput(f"{self._path(TABLE)}: {error}") from error

    def _read(self, name: str) -> pd.DataFrame:
        # A variant may be called 007, or none.
        types = dict.fromkeys(NAMES, str)
        return pd.read_csv(self._path(name), dtype=types, keep_default_na=False, na_values=[""])

    def _path(self, name: str) -> Path:
        if (path := self.folder / name).is_file():
            return path
        hint = "altcore sweep export, of a sweep with the study's preset, writes it"
        raise BadInput(f"there is no {path}", hint=hint)


def _differing(record: RunRecord, exported: Result) -> Iterator[tuple[str, str]]:
    """Yield which values of a table's row are not those of its run."""
    of_run = result_of(record)
    for name in ("r_squared", "alpha_early", "best_val_ce"):
        told, is_ = getattr(exported, name), getattr(of_run, name)
        if told != is_:
            yield record.name, f"{name} is {_told(told)} in {TABLE}, and {_told(is_)} in the run"


def _told(value: float | None) -> str:
    return "empty" if value is None else f"{value:g}"
