"""Runs of an experiment as frames, with the interface of the original experiments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from altcore.plugin import BadInput, RunRecord, log, nearest, read_runs
from altcore_reporters import wandb_runs
from altcore_reporters.frames import history_frame, one_or_several, runs_frame
from altcore_reporters.original_names import STATES
from altcore_reporters.run_facts import run_id

FORMAT_COLUMNS = (
    *("format", "run_id", "run_url", "state", "steps"),
    *("final_loss", "best_loss", "bit_stall_final", "overflow_final"),
)
MANIFOLD_COLUMNS = (
    *("optimizer", "manifold_aware", "run_id"),
    *("final_loss", "best_loss", "bit_stall_final"),
)


class ExperimentDataLoader:
    """Reads the runs of a project in W&B, or those of a folder, once.

    Args:
        project: the project in W&B.
        entity: its owner; your default one if None.
        runs_dir: a folder of runs, which are read instead.
    """

    def __init__(
        self,
        project: str = "altgrad",
        entity: str | None = None,
        runs_dir: str | Path | None = None,
    ) -> None:
        self.project, self.entity, self.runs_dir = project, entity, runs_dir

    @cached_property
    def records(self) -> Sequence[RunRecord]:
        """The record of each run."""
        if self.runs_dir is not None:
            return read_runs(str(self.runs_dir))
        return wandb_runs.read_runs(
            f"{self.entity}/{self.project}" if self.entity else self.project
        )

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The frame of all runs that are over, by format and name."""
        frame = runs_frame(self.records)
        over = frame[frame["state"] != STATES["unfinished"]]
        return over.sort_values(["format", "name"], kind="stable", ignore_index=True)

    def get_format_comparison_runs(self, formats: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the runs of some formats, or of all, a row each, with `FORMAT_COLUMNS`.

        A format without a run is named in a warning.
        """
        asked = list(self.runs["format"].unique()) if formats is None else formats
        return self._of_formats(asked, FORMAT_COLUMNS)

    def get_manifold_comparison_runs(self, format: str = "E5M2") -> pd.DataFrame:
        """Return the runs of a format, a row each, with `MANIFOLD_COLUMNS`.

        A format without a run is named in a warning.
        """
        return self._of_formats(format, MANIFOLD_COLUMNS)

    def get_run_history(self, run_id: str, keys: Sequence[str] | None = None) -> pd.DataFrame:
        """Return what a run recorded, a row a step: ``step``, and the keys or everything.

        Args:
            run_id: the run's id, its name, or the last part of the address of its page.
            keys: names of metrics; see `history_frame`.
        """
        frame = history_frame([self._record(run_id)], keys)
        return frame.drop(columns=["run_id", "name"])

    def _of_formats(self, formats: str | Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        known, asked = self.runs["format"], one_or_several(formats)
        if missing := [name for name in asked if name not in known.unique()]:
            log.warning(f"there is no run of {', '.join(map(str, missing))}")
        return self.runs.loc[known.isin(asked), list(columns)].reset_index(drop=True)

    def _record(self, name: str) -> RunRecord:
        found = [
            r for r in self.records if name in (run_id(r), (r.url or "").rpartition("/")[2] or None)
        ]
        found = found or [r for r in self.records if r.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run_id(r) for r in found)
            raise BadInput(f"{len(found)} runs are called {name!r}: their ids are {ids}")
        known = [text for r in self.records for text in (r.name, run_id(r))]
        raise BadInput(f"there is no run {name!r}", meant=nearest(name, known))
