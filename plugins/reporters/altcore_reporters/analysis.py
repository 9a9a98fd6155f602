"""The reporters ``format-comparison``, ``failure-modes`` and ``manifold-comparison``.

They make frames of the runs, and `ReportGenerator`'s reports of those. pandas is loaded when one is
rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from altcore.plugin import problems_of, replace_text, setting

if TYPE_CHECKING:
    import pandas as pd

    from altcore.plugin import RunRecord


@attrs.define(eq=False)
class FormatComparison:
    """Compares formats over seeds, all else being the same: ``format_comparison.md``."""

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the comparison; runs that nothing can be compared with are left out."""
        from altcore_reporters.comparison import FormatComparator
        from altcore_reporters.conditions import apart_from_format, formats_of
        from altcore_reporters.failures import FailureAnalyzer
        from altcore_reporters.format_comparison import format_comparison
        from altcore_reporters.frames import runs_frame
        from altcore_reporters.layer_metrics import layer_frame

        kept, left_out = _with_several(runs, apart_from_format(runs), formats_of(runs))
        df = runs_frame(kept).assign(format=formats_of(kept), condition=apart_from_format(kept))
        text = format_comparison(
            df,
            FormatComparator(df).identify_sweet_spot(),
            _named_as_in(df, FailureAnalyzer().from_records(kept)),
            _named_as_in(df, layer_frame(kept)),
            left_out=left_out,
            problems=problems_of(runs),
        )
        return [replace_text(out / "format_comparison.md", text)]


@attrs.define(eq=False)
class FailureModes:
    """Says which runs failed, how, and what prevented it: ``failure_modes.md``."""

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the failures of the runs."""
        from altcore_reporters.conditions import apart_from_format, formats_of
        from altcore_reporters.failure_modes import failure_modes
        from altcore_reporters.failures import FailureAnalyzer
        from altcore_reporters.frames import runs_frame

        df = runs_frame(runs).assign(format=formats_of(runs), condition=apart_from_format(runs))
        failures = _named_as_in(df, FailureAnalyzer().from_records(runs))
        text = failure_modes(failures, df, problems_of(runs))
        return [replace_text(out / "failure_modes.md", text)]


@attrs.define(eq=False)
class ManifoldComparison:
    """Holds manifold-aware optimizers against standard ones: ``manifold_comparison.md``."""

    format: str = setting("E5M2", help="the format whose runs are compared")

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the comparison; runs that nothing can be compared with are left out."""
        from altcore_reporters.conditions import apart_from_optimizer, formats_of, optimizers_of
        from altcore_reporters.frames import runs_frame
        from altcore_reporters.manifold_comparison import manifold_comparison

        own = [r for r in runs if r.summary["format"] == self.format]
        is_aware = list(runs_frame(own)["manifold_aware"])
        kept, left_out = _with_several(own, apart_from_optimizer(own), is_aware)
        df = runs_frame(kept).assign(
            format=formats_of(kept),
            condition=apart_from_optimizer(kept),
            optimizer=optimizers_of(kept),
        )
        text = manifold_comparison(df, problems_of(runs), left_out)
        return [replace_text(out / "manifold_comparison.md", text)]


def _named_as_in(df: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return another frame with the formats and conditions that a frame of runs has."""
    runs = df.drop_duplicates("run_id").set_index("run_id")
    named = {column: other["run_id"].map(runs[column]) for column in ("format", "condition")}
    return other.assign(**named)


def _with_several(
    runs: Sequence[RunRecord], conditions: Sequence[str], compared: Sequence[object]
) -> tuple[list[RunRecord], list[str]]:
    """Return the runs whose condition has several of what is compared, and the others' names.

    All are returned if no condition has several.
    """
    found: dict[str, set[object]] = {}
    for condition, value in zip(conditions, compared, strict=True):
        found.setdefault(condition, set()).add(value)
    kept = [r for r, c in zip(runs, conditions, strict=True) if len(found[c]) > 1]
    kept = kept or list(runs)
    return kept, [r.name for r in runs if r not in kept]
