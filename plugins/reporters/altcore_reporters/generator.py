"""`ReportGenerator`: the three reports of the original experiments, written into a folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from altcore.plugin import BadInput, replace_text
from altcore_reporters.columns import need
from altcore_reporters.failure_modes import failure_modes
from altcore_reporters.format_comparison import format_comparison
from altcore_reporters.manifold_comparison import manifold_comparison

if TYPE_CHECKING:
    import pandas as pd


class ReportGenerator:
    """Writes reports on frames of runs into a folder, which it makes.

    Each method takes the name of its file, writes it at once or not at all, and prints and returns
    the absolute path. A frame without rows gives a report that says so.

    Raises:
        BadInput: if the folder cannot be made.
    """

    def __init__(self, output_dir: str | Path = "reports") -> None:
        self.output_dir = Path(output_dir)
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{output_dir} cannot be made a folder: {error.strerror}"
            raise BadInput(problem, key="output_dir") from error

    def generate_format_comparison(
        self,
        df: pd.DataFrame,
        sweet_spot: str | None,
        output_name: str = "format_comparison.md",
        *,
        failures: pd.DataFrame | None = None,
        layer_metrics: pd.DataFrame | None = None,
    ) -> str:
        """Write the comparison of formats.

        Args:
            df: a row a run, as `ExperimentDataLoader.get_format_comparison_runs` returns it.
            sweet_spot: what `FormatComparator.identify_sweet_spot` returned. The report names it
                only if the numbers distinguish it from every other format.
            output_name: the file's name.
            failures: as `FailureAnalyzer` returns them; those of ``df`` if None.
            layer_metrics: as for `FormatComparator.compare_by_layer_type`, with ``format``; no
                section if None.
        """
        need(df, "format", "state")
        return self._write(output_name, format_comparison(df, sweet_spot, failures, layer_metrics))

    def generate_failure_modes(
        self,
        failure_df: pd.DataFrame,
        output_name: str = "failure_modes.md",
        *,
        runs: pd.DataFrame | None = None,
    ) -> str:
        """Write the documentation of failures.

        Args:
            failure_df: a row a failure, as `FailureAnalyzer` returns them.
            output_name: the file's name.
            runs: a row a run, failed or not: what did not fail, and where E7M0 survived.
        """
        return self._write(output_name, failure_modes(failure_df, runs))

    def generate_manifold_comparison(
        self, df: pd.DataFrame, output_name: str = "manifold_comparison.md"
    ) -> str:
        """Write the comparison of manifold-aware and standard optimizers.

        Args:
            df: a row a run, as `ExperimentDataLoader.get_manifold_comparison_runs` returns it.
            output_name: the file's name.

        Raises:
            BadInput: if it is not True or False of every run whether its optimizer is one.
        """
        need(df, "optimizer", "manifold_aware")
        import pandas as pd

        if odd := [v for v in df.get("manifold_aware", ()) if not pd.api.types.is_bool(v)]:
            problem = f"manifold_aware is {odd[0]!r} and not True or False of {len(odd)} runs"
            raise BadInput(problem, hint="leave these runs out, or say which they are")
        return self._write(output_name, manifold_comparison(df))

    def _write(self, name: str, content: str) -> str:
        is_name = isinstance(name, str) and name not in ("", "..") and Path(name).name == name
        if not is_name or (self.output_dir / name).is_dir():
            raise BadInput(f"{name!r} is not the name of a file", key="output_name")
        path = str(replace_text(self.output_dir.resolve() / name, content))
        with suppress(OSError, ValueError):  # it is written, whether that can be printed or not
            print(path)
        return path
