"""The report that holds manifold-aware optimizers against standard ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from altcore.plugin import holm
from altcore_reporters.comparison import (
    CONDITION,
    FormatComparator,
    by_condition,
    deciding_loss,
    seeds_without,
    values_by_seed,
)
from altcore_reporters.format_comparison import ALL_ELSE
from altcore_reporters.frame_tables import (
    bullets,
    copies_text,
    count,
    frame_table,
    head,
    interval_text,
    listed,
    p_text,
    rows_table,
)
from altcore_reporters.intervals import (
    Interval,
    Values,
    comparable,
    difference,
    interval_of,
    seed_means,
)
from altcore_reporters.leads import ALPHA, lost_seeds
from altcore_reporters.markdown import text

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Manifold-Aware vs Standard Optimizer Comparison"
METRICS = ("final_loss", "val_loss", "best_loss", "bit_stall_final")
RESULTS = ("format", CONDITION, "optimizer", "seed", "state", *METRICS)
HYPOTHESIS = (
    "A step of a given size crosses many values of a format where its grid is fine, and none where "
    "it is coarse. A manifold-aware optimizer measures steps in units of the grid's spacing at "
    "each weight (its stiffness). If that helps, the loss and the share of stalled updates are "
    "lower than with the standard optimizer, in the same format and on the same batches."
)


@frozen
class Comparison:
    """One metric of a manifold-aware optimizer, held against a standard one."""

    format: str
    condition: str
    standard: str
    manifold: str
    metric: str
    base: float
    """The mean of the standard optimizer, in the seeds that were compared."""
    change: Interval
    """Manifold-aware minus standard: below 0 is better."""
    standard_failed: int
    """In how many seeds the standard optimizer failed, and the other has a value."""
    manifold_failed: int
    """And the other way round."""
    p: float = math.nan
    """As in `change`, corrected by Holm for the comparisons of this metric."""

    @property
    def improvement(self) -> Interval:
        """By how many percent of the standard optimizer's mean the metric is lower."""
        return self.change.scaled(-100 / abs(self.base) if self.base else math.nan)

    @property
    def where(self) -> str:
        """The format, the condition and the two optimizers, for a sentence."""
        condition = f" ({text(self.condition)})" if self.condition else ""
        return (
            f"{text(self.manifold)} against {text(self.standard)} in {text(self.format)}{condition}"
        )

    @property
    def verdict(self) -> str:
        """Which of the two is better, if the numbers allow to say."""
        if self.change.n < 2:
            return "no conclusion"
        if not (self.change.excludes_zero and self.p < ALPHA):
            return "not distinguishable"
        is_better = self.change.mean < 0
        if self.manifold_failed if is_better else self.standard_failed:
            return "no conclusion"
        return "better" if is_better else "worse"


def manifold_comparison(
    df: pd.DataFrame, problems: Sequence[str] = (), left_out: Sequence[str] = ()
) -> str:
    """Return the report as Markdown.

    Args:
        df: a row a run: optimizer, manifold_aware, and any of final_loss, val_loss, best_loss and
            bit_stall_final; format, seed, state and condition are used if they are there.
            `deciding_loss` says which loss decides.
        problems: what is wrong with the records of the runs, as `altcore.plugin.problems_of` says.
        left_out: runs that are not in ``df``, since all that share their configuration and data
            have optimizers of the same kind.
    """
    about = count(len(df), "run")
    top = head(TITLE, about if len(df) else "no run", problems)
    if left_out:
        why = "since no run of the other kind of optimizer shares their configuration and data"
        top.append(f"Left out, {why}: {listed(left_out)}.")
    parts = [*top, "## Hypothesis", HYPOTHESIS]
    if not len(df):
        return "\n\n".join([*parts, "## Results", "No data: there is no run to compare."]) + "\n"
    copies = copies_text(df, "optimizer")
    if "format" not in df:
        df = df.assign(format="E5M2")
    found = compare(df)
    decides = deciding_loss(FormatComparator(df).finished.df)
    deciding = [c for c in found if c.metric == decides]
    groups = {
        verdict: [_sentence(c) for c in deciding if c.verdict == verdict]
        for verdict in ("better", "worse", "not distinguishable", "no conclusion")
    }
    missing = [] if found else [_missing(df)]
    is_known = any(c.verdict != "no conclusion" for c in deciding)
    none = "Nowhere in these runs." if is_known else "The numbers allow no conclusion."
    parts += [
        "## Results",
        *([copies] if copies else []),
        frame_table(df, RESULTS),
        "## Difference",
        *(_differences(found) if found else missing),
        *([] if CONDITION in df else [ALL_ELSE]),
        "## When the manifold-aware optimizer helps",
        bullets(groups["better"]) or none,
        "## When it does not",
        bullets(groups["worse"] + groups["not distinguishable"]) or none,
        "## Conclusions",
        bullets([s for own in groups.values() for s in own] or missing),
    ]
    return "\n\n".join(parts) + "\n"


def compare(df: pd.DataFrame) -> list[Comparison]:
    """Return every comparison that the finished runs allow: those that differ in the optimizer."""
    finished = FormatComparator(df).finished
    failed = by_condition(finished.failed)
    found = []
    for metric in (m for m in METRICS if m in df):
        own = []
        for condition, runs in finished.conditions.items():
            for fmt, rows in runs.groupby(runs["format"].astype(str), sort=False):
                broken = failed.get(condition, df[:0])
                broken = broken[broken["format"].astype(str) == fmt]
                lacking = seeds_without(rows, broken, metric, "optimizer")
                standard, manifold = _sides(rows, metric)
                for (base, a), (test, b) in product(standard.items(), manifold.items()):
                    if not (a and b):
                        continue
                    own.append(
                        Comparison(
                            fmt,
                            condition,
                            base,
                            test,
                            metric,
                            interval_of(seed_means(comparable(a, b)[0])).mean,
                            difference(a, b),
                            lost_seeds(lacking.get(base, ()), a, b),
                            lost_seeds(lacking.get(test, ()), b, a),
                        )
                    )
        ps = holm({i: c.change.p for i, c in enumerate(own)})
        found += [evolve(c, p=ps[i]) for i, c in enumerate(own)]
    return found


def _sides(df: pd.DataFrame, metric: str) -> list[dict[str, Values]]:
    """Return a metric's values by optimizer, of the standard and of the manifold-aware ones."""
    is_aware = df["manifold_aware"].fillna(False).astype(bool)
    return [values_by_seed(df[own], metric, "optimizer") for own in (~is_aware, is_aware)]


def _differences(found: Sequence[Comparison]) -> Iterator[str]:
    yield (
        "Of finished runs; manifold-aware minus standard, so below 0 is better. Intervals are 95 % "
        "by Student's t over the seeds, paired by seed where both have at least two, and otherwise "
        "by Welch. The improvement is the same in percent of the standard optimizer's mean. p is "
        "corrected by Holm for the comparisons of a metric."
    )
    yield rows_table(
        {
            "format": c.format,
            **({CONDITION: c.condition} if any(x.condition for x in found) else {}),
            "standard": c.standard,
            "manifold-aware": c.manifold,
            "metric": c.metric,
            "mean difference": interval_text(c.change),
            "improvement, %": interval_text(c.improvement, digits=2),
            "by": c.change.method,
            "seeds": c.change.n,
            "p (Holm)": p_text(c.p),
            "verdict": c.verdict,
        }
        for c in found
    )


def _sentence(c: Comparison) -> str:
    """Say what one comparison shows."""
    name = {"val_loss": "Validation loss", "final_loss": "Final loss"}[c.metric]
    if c.change.n < 2:
        change = f"{name} {interval_text(c.change)}"
        return (
            f"{c.where}: with one seed of an optimizer, the numbers allow no conclusion. {change}."
        )
    better = interval_text(c.improvement, digits=2)
    change = f"{name} {interval_text(c.change)}, an improvement by {better} percent"
    lost = {c.standard: c.standard_failed, c.manifold: c.manifold_failed}
    lines = [f"{c.where}: {c.verdict}", f"{change}"]
    lines += [
        f"{text(optimizer)} failed in {count(n, 'seed')} that the other finished"
        for optimizer, n in lost.items()
        if n
    ]
    return f"{'. '.join(lines)}."


def _missing(df: pd.DataFrame) -> str:
    """Say which side has no run."""
    aware = df["manifold_aware"].fillna(False).astype(bool)
    sides = {"standard": int((~aware).sum()), "manifold-aware": int(aware.sum())}
    without = [name for name, n in sides.items() if not n]
    if without:
        return f"There is no run of a {without[0]} optimizer: the numbers allow no conclusion."
    return (
        "No finished run of a manifold-aware optimizer has a standard one of the same format and "
        "condition: the numbers allow no conclusion."
    )
