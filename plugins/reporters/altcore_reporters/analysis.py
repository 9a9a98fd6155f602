"""The reporters ``format-comparison``, ``failure-modes`` and ``manifold-comparison``.

They make frames of the runs, and `ReportGenerator`'s reports of those. pandas is loaded when one is
rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from altcore.plugin import replace_text, setting

if TYPE_CHECKING:
    from altcore.plugin import RunRecord


@attrs.define(eq=False)
class FormatComparison:
    """Compares formats over seeds, all else being the same: ``format_comparison.md``."""

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the comparison; runs that nothing can be compared with are left out."""
        from altcore_reporters.comparison import CONDITION, FormatComparator
        from altcore_reporters.conditions import apart_from_format
        from altcore_reporters.failures import FailureAnalyzer
        from altcore_reporters.format_comparison import format_comparison
        from altcore_reporters.frames import runs_frame
        from altcore_reporters.layer_metrics import layer_frame

        kept = _with_several(runs, apart_from_format(runs), [r.summary["format"] for r in runs])
        df = runs_frame(kept).assign(**{CONDITION: apart_from_format(kept)})
        by_run = dict(zip(df["run_id"], df[CONDITION], strict=True))
        failures, layers = FailureAnalyzer().from_records(kept), layer_frame(kept)
        text = format_comparison(
            df,
            FormatComparator(df).identify_sweet_spot(),
            failures.assign(**{CONDITION: failures["run_id"].map(by_run)}),
            layers.assign(**{CONDITION: layers["run_id"].map(by_run)}),
            left_out=[r.name for r in runs if r not in kept],
        )
        return [replace_text(out / "format_comparison.md", text)]


@attrs.define(eq=False)
class FailureModes:
    """Says which runs failed, how, and what prevented it: ``failure_modes.md``."""

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the failures of the runs."""
        from altcore_reporters.comparison import CONDITION
        from altcore_reporters.conditions import apart_from_format
        from altcore_reporters.failure_modes import failure_modes
        from altcore_reporters.failures import FailureAnalyzer
        from altcore_reporters.frames import runs_frame

        df = runs_frame(runs).assign(**{CONDITION: apart_from_format(runs)})
        by_run = dict(zip(df["run_id"], df[CONDITION], strict=True))
        failures = FailureAnalyzer().from_records(runs)
        failures = failures.assign(**{CONDITION: failures["run_id"].map(by_run)})
        return [replace_text(out / "failure_modes.md", failure_modes(failures, df))]


@attrs.define(eq=False)
class ManifoldComparison:
    """Holds manifold-aware optimizers against standard ones: ``manifold_comparison.md``."""

    format: str = setting("E5M2", help="the format whose runs are compared")

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write the comparison; runs that nothing can be compared with are left out."""
        from altcore_reporters.comparison import CONDITION
        from altcore_reporters.conditions import apart_from_optimizer, optimizers_of
        from altcore_reporters.frames import runs_frame
        from altcore_reporters.manifold_comparison import manifold_comparison

        own = [r for r in runs if r.summary["format"] == self.format]
        is_aware = list(runs_frame(own)["manifold_aware"])
        kept = _with_several(own, apart_from_optimizer(own), is_aware)
        about = {CONDITION: apart_from_optimizer(kept), "optimizer": optimizers_of(kept)}
        text = manifold_comparison(runs_frame(kept).assign(**about))
        return [replace_text(out / "manifold_comparison.md", text)]


def _with_several(
    runs: Sequence[RunRecord], conditions: Sequence[str], compared: Sequence[object]
) -> list[RunRecord]:
    """Return the runs whose condition has several of what is compared; all if none has."""
    found: dict[str, set[object]] = {}
    for condition, value in zip(conditions, compared, strict=True):
        found.setdefault(condition, set()).add(value)
    kept = [r for r, c in zip(runs, conditions, strict=True) if len(found[c]) > 1]
    return kept or list(runs)
