"""How formats compare: rankings, and what the numbers allow to conclude.

A *contender* is a format under one condition: whatever else is the same in all runs that are
compared, such as recipe and learning rate. Formats are ranked and compared within a condition only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from altcore.plugin import BadInput
from altcore_reporters.columns import is_missing, labels, need, need_single, numbers
from altcore_reporters.intervals import Values, comparable, interval_of, seed_means
from altcore_reporters.layer_types import TYPES, layer_type
from altcore_reporters.leads import Lead, lead_of, ranked
from altcore_reporters.original_names import FAILED, FINISHED

if TYPE_CHECKING:
    import pandas as pd

CONDITION = "condition"
"""The column that says under which condition a run was made; without it, all were under one."""
LAYER_COLUMNS = ("layer", "layer_name", "name")


class FormatComparator:
    """Compares the formats of a frame of runs.

    Args:
        df: a row a run, as `ExperimentDataLoader.get_format_comparison_runs` returns it. Needed are
            ``format`` and the metrics asked for; ``state``, ``seed`` and ``condition`` are used if
            they are there.

    Raises:
        BadInput: if there is no ``format``, or not one for each run.
    """

    def __init__(self, df: pd.DataFrame) -> None:
        self.df = df
        self._check("format")
        self.failed = df[:0]
        """The runs that failed, of those whose finished ones are compared."""
        need_single(df, "format", "state", CONDITION)
        if missing := sum(map(is_missing, df["format"])) if len(df) else 0:
            hint = "leave these runs out, or call the format of those without one none"
            raise BadInput(f"format is missing in {missing} of {len(df)} runs", hint=hint)

    @cached_property
    def finished(self) -> FormatComparator:
        """The same of the finished runs only."""
        if "state" not in self.df:
            return self
        found = FormatComparator(self.df[self.df["state"] == FINISHED])
        found.failed = self.df[self.df["state"].isin(FAILED)]
        return found

    @cached_property
    def conditions(self) -> dict[str, pd.DataFrame]:
        """The runs by condition, in the order in which they come."""
        return by_condition(self.df)

    def rank_by_metric(self, metric: str, ascending: bool = True) -> pd.DataFrame:
        """Return the formats, the best mean first.

        Args:
            metric: a column.
            ascending: whether the lowest is the best.

        Returns:
            rank, format, the metric's mean over the seeds that have it, its 95 % interval (low,
            high), seeds; with several conditions, condition first, and ranks within each. If the
            formats have different seeds, it is over those that all have, unless these are fewer
            than two. Equal means share a rank. A format without the metric comes last and has no
            rank. A rank alone does not say that two formats differ: `lead` does.

        Raises:
            BadInput: if there is no such column, or a value in it is not a number.
        """
        import pandas as pd

        self._check(metric)
        rows = []
        for condition, own in self.conditions.items():
            values = values_by_seed(own, metric)
            means = ranked(values)
            found = {fmt: means.get(fmt, interval_of([])) for fmt in values}
            ranks = pd.Series([i.mean for i in found.values()], dtype=float)
            ranks = ranks.rank(method="min", ascending=ascending).astype("Int64")
            for rank, (fmt, i) in zip(ranks, found.items(), strict=True):
                rows.append((condition, rank, fmt, i.mean, i.low, i.high, i.n))
        head = [CONDITION, "rank", "format", metric, "low", "high", "seeds"]
        made = pd.DataFrame(rows, columns=head).astype({"rank": "Int64"})
        order = {c: i for i, c in enumerate(self.conditions)}
        made = made.sort_values(
            [CONDITION, "rank"],
            key=lambda column: column.map(order) if column.name == CONDITION else column,
            kind="stable",
            ignore_index=True,
        )
        return made if len(order) > 1 else made.drop(columns=CONDITION)

    def lead(self, metric: str = "final_loss", ascending: bool = True) -> list[Lead]:
        """Return, for each condition, the format with the best mean, held against the others.

        The best mean is that of `rank_by_metric`. Formats without the metric are left out, and so
        are conditions where no format has it.
        """
        self._check(metric)
        failed = by_condition(self.failed)
        found = []
        for condition, own in self.conditions.items():
            values = values_by_seed(own, metric)
            lacking = seeds_without(own, failed.get(condition), metric)
            lead = lead_of(values, lacking, ascending=ascending, metric=metric, condition=condition)
            found += [lead] if lead else []
        return found

    def identify_sweet_spot(self, exclude_crashed: bool = True) -> str | None:
        """Return the format with the lowest mean final loss, under whichever condition.

        Args:
            exclude_crashed: whether only finished runs count. A format that failed in seeds in
                which another finished is then none: what is left of it are its lucky seeds.

        Returns:
            The format's name, None if there is none. Whether the numbers tell it from the others
            is said by `lead`, and by the report.
        """
        leads = (self.finished if exclude_crashed else self).lead()
        best = min(leads, key=lambda found: found.mean, default=None)
        return None if best is None or (exclude_crashed and best.failed) else best.format

    def compute_improvement(
        self, baseline_format: str, test_format: str, metric: str = "final_loss"
    ) -> float:
        """Return by how many percent the mean of ``test_format`` is below that of the baseline.

        Finished runs only, in the seeds that both have if these are at least two. Below 0, the test
        is worse. The mean over the conditions that have both; NaN if there is none, or the baseline
        is 0.
        """
        self._check(metric)
        found = []
        for own in self.finished.conditions.values():
            values = values_by_seed(own, metric)
            both = comparable(values.get(baseline_format, {}), values.get(test_format, {}))
            base, test = (interval_of(seed_means(own)).mean for own in both)
            if base and math.isfinite(base) and math.isfinite(test):
                found.append((base - test) / abs(base) * 100)
        return math.fsum(found) / len(found) if found else math.nan

    def compare_by_layer_type(self, layer_metrics_df: pd.DataFrame) -> pd.DataFrame:
        """Return the means of layers' metrics by the part of the model that they are in.

        Args:
            layer_metrics_df: a row a layer: its name in the column ``layer``, ``layer_name`` or
                ``name``, otherwise as the index, and any numeric columns. With ``condition`` and
                ``format``, each of them is averaged by itself.

        Returns:
            condition and format if given, layer_type (attention, mlp, embedding, classifier, and
            for other layers convolution, normalization, other), layers, and the metrics' means.
        """
        import pandas as pd

        given = layer_metrics_df
        need(given)
        need_single(given, CONDITION, "format")
        column = next((c for c in LAYER_COLUMNS if c in given), None)
        names = given.index if column is None else given[column]
        keys = [k for k in (CONDITION, "format") if k in given]
        rest = given.drop(columns=[c for c in (column, "seed") if c in given])
        metrics = [c for c in rest.select_dtypes("number") if c not in keys]
        made = (
            rest[keys + metrics]
            .reset_index(drop=True)
            .assign(
                layer_type=pd.Categorical([layer_type(str(n)) for n in names], TYPES, ordered=True),
                layers=[str(n) for n in names],
            )
        )
        grouped = made.groupby([*keys, "layer_type"], observed=True, sort=True)
        means = grouped[metrics].mean()
        means.insert(0, "layers", grouped["layers"].nunique())
        return means.reset_index().astype({"layer_type": str})

    def _check(self, column: str) -> None:
        need(self.df, column)


def by_condition(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a frame's rows by condition, in the order in which these come."""
    if CONDITION not in df:
        return {"": df} if len(df) else {}
    named = labels(df, CONDITION, "").array
    return {str(c): own for c, own in df.groupby(named, sort=False)}


def deciding_loss(finished: pd.DataFrame) -> str:
    """Return the loss by which finished runs are judged.

    ``val_loss`` if all were evaluated, since ``final_loss`` is of a single batch. A run that was
    evaluated and has none ended with one that is not finite: it failed.
    """
    if "val_loss" not in finished or not finished["val_loss"].notna().any():
        return "final_loss"
    known = finished["val_loss"].notna()
    if "learned" in finished:
        known |= finished["learned"].notna()
    return "val_loss" if known.all() else "final_loss"


def values_by_seed(df: pd.DataFrame, metric: str, column: str = "format") -> dict[str, Values]:
    """Return the finite values of a metric, by what a column says and by seed.

    A run that is there several times counts once.
    """
    found: dict[str, dict[object, list[float]]] = {}
    for name, seed, value in _runs(df, metric, column):
        own = found.setdefault(name, {})
        if math.isfinite(value):
            own.setdefault(seed, []).append(value)
    return found


def seeds_without(
    finished: pd.DataFrame, failed: pd.DataFrame | None, metric: str, column: str = "format"
) -> dict[str, list[object]]:
    """Return the seeds of the runs that failed, or have no finite value, by what a column says."""
    lacking = [(n, seed) for n, seed, v in _runs(finished, metric, column) if not math.isfinite(v)]
    if failed is not None:
        lacking += [(name, seed) for name, seed, _ in _runs(failed, metric, column)]
    found: dict[str, list[object]] = {}
    for name, seed in lacking:
        found.setdefault(name, []).append(seed)
    return found


def _runs(
    df: pd.DataFrame, metric: str, column: str = "format"
) -> Iterator[tuple[str, object, float]]:
    """Yield what a column says of each run, its seed or None, and a metric; no copy of a run."""
    df = without_copies(df, column)
    seeds = df["seed"] if "seed" in df else [None] * len(df)
    for name, seed, value in zip(df[column], seeds, numbers(df, metric), strict=True):
        yield str(name), None if is_missing(seed) else seed, value


def without_copies(df: pd.DataFrame, column: str = "format") -> pd.DataFrame:
    """Return the rows of a frame that are no copies, as by `is_copy`."""
    return df[~is_copy(df, column)]


def is_copy(df: pd.DataFrame, column: str = "format") -> pd.Series:
    """Return which rows are of a run that an earlier row has: its directory was copied."""
    import pandas as pd

    need_single(df, "run_id", "seed", column)
    if "run_id" not in df:
        return pd.Series(False, index=df.index)
    same = [c for c in ("run_id", "seed", CONDITION, column) if c in df]
    return df["run_id"].notna() & df.duplicated(same)
