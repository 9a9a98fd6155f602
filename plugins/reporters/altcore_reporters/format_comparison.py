"""The report that compares formats: what the numbers say, and when they say nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from altcore.plugin import BadInput, nearest
from altcore_reporters.columns import labels
from altcore_reporters.comparison import (
    CONDITION,
    FormatComparator,
    by_condition,
    deciding_loss,
    without_copies,
)
from altcore_reporters.failures import FailureAnalyzer
from altcore_reporters.frame_tables import (
    Markdown,
    bullets,
    cell,
    copies_text,
    count,
    frame_table,
    head,
    interval_text,
    listed,
    p_text,
    rows_table,
    run_link,
    runs_text,
)
from altcore_reporters.intervals import Interval
from altcore_reporters.leads import ALPHA, Lead, Rival
from altcore_reporters.markdown import text

if TYPE_CHECKING:
    import pandas as pd

TITLE = "FP8 Format Comparison Report"
LOSS, VAL_LOSS, STALL = "final_loss", "val_loss", "bit_stall_final"
RESULTS = (
    CONDITION,
    "format",
    "seed",
    "state",
    "learned",
    "steps",
    LOSS,
    VAL_LOSS,
    "best_loss",
    STALL,
)
FAILURES = (
    CONDITION,
    "format",
    "name",
    "run_id",
    "state",
    "collapse_step",
    "reason",
    "failure_mode",
)
WORDS = {LOSS: "final loss", VAL_LOSS: "validation loss"}
ALL_ELSE = (
    "It is not known what else differs between the runs: the frame has no column `condition`. All "
    "count as made under the same."
)
NO_CONCLUSION = "the numbers allow no conclusion"


def format_comparison(
    df: pd.DataFrame,
    sweet_spot: str | None,
    failures: pd.DataFrame | None = None,
    layer_metrics: pd.DataFrame | None = None,
    left_out: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> str:
    """Return the report as Markdown.

    Args:
        df: a row a run, as for `FormatComparator`; `deciding_loss` says which loss decides.
        sweet_spot: what `FormatComparator.identify_sweet_spot` returned.
        failures: as `FailureAnalyzer` returns them; from ``df`` if None.
        layer_metrics: a row a layer and run, as for `FormatComparator.compare_by_layer_type`,
            with ``format``.
        left_out: runs that are not in ``df``, since no other format shares their configuration and
            data.
        problems: what is wrong with the records of the runs, as `altcore.plugin.problems_of` says.
    """
    if not len(df):
        return (
            "\n\n".join([*head(TITLE, "no run", problems), "No data: there is no run to compare."])
            + "\n"
        )
    formats = dict.fromkeys(df["format"].astype(str))
    if sweet_spot is not None and sweet_spot not in formats:
        problem = f"there is no run of {sweet_spot!r}"
        raise BadInput(problem, key="sweet_spot", meant=nearest(sweet_spot, list(formats)))
    if failures is None:
        failures = FailureAnalyzer().extract_failures(df)
    failures = without_copies(failures)
    compared = FormatComparator(df).finished
    if len(_by_data(df)) > 1:
        sweet_spot = None  # The losses of all cannot be compared.
    metrics = [m for m in (LOSS, VAL_LOSS) if m in df and compared.df[m].notna().any()]
    decides = deciding_loss(compared.df)
    leads = {metric: compared.lead(metric) for metric in metrics}
    lowest = min(leads.get(LOSS, []), key=lambda found: found.mean, default=None)
    conclusions = [_of_lead(found) for found in leads.get(decides, [])]
    parts = [
        *head(TITLE, f"{count(len(df), 'run')} of {count(len(formats), 'format')}", problems),
        f"Left out, since no other format shares their configuration and data: {listed(left_out)}."
        if left_out
        else "",
        copies_text(df),
        "## Summary",
        _sweet_spot(leads.get(decides, []), sweet_spot, lowest),
        bullets(conclusions),
        "## Results",
        frame_table(df, RESULTS),
        *_rankings(compared, leads),
        *_between_conditions(df, decides),
        *_layer_types(compared, layer_metrics),
        "## Failures",
        frame_table(failures, FAILURES) if len(failures) else "No run failed.",
        "## Conclusions",
        bullets([*conclusions, *_of_failures(df, failures)] or [f"None: {NO_CONCLUSION}."]),
        "## Runs",
        bullets(map(run_link, df.to_dict("records"))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ------------------------------------------------------------------------- what is concluded


def _sweet_spot(leads: Sequence[Lead], given: str | None, lowest: Lead | None) -> str:
    """Name a format only if it is distinguishable from every other.

    Args:
        leads: by the loss that decides.
        given: what the caller takes for the sweet spot.
        lowest: the lead with the lowest mean final loss of all.
    """
    if not leads:
        return f"**No sweet spot**: no finished run has a loss, so {NO_CONCLUSION}."
    clear = [found for found in leads if found.is_clear]
    if clear:
        named = "; ".join(
            f"{text(f.format)}{f' ({text(f.condition)})' if f.condition else ''}" for f in clear
        )
        said = f"**Sweet spot: {named}**, by {WORDS[leads[0].metric]}."
    else:
        said = "**The numbers name no sweet spot.**"
    if given is None or lowest is None or given in {found.format for found in clear}:
        return said
    of_all = f"{text(lowest.format)} has the lowest mean final loss of all"
    if given == lowest.format:
        return f"{said} {of_all}{lowest.about_failures}."
    return f"{said} {text(given)} was given as the sweet spot, but {of_all}."


def _of_lead(found: Lead) -> str:
    """Say which format has the lowest mean, and from which others it can be told."""
    where = f"{text(found.condition)}: " if found.condition else ""
    name = text(found.format)
    if not found.rivals:
        return f"{where}only {name} has finished runs, so there is nothing to compare it with."
    lowest = f"{where}{name} has the lowest mean {WORDS[found.metric]}, {cell(found.mean)}"
    lowest += found.about_failures
    unknown = [r.format for r in found.rivals if r.change.n < 2]
    if len(unknown) == len(found.rivals):
        return f"{lowest}, but with one seed of a format {NO_CONCLUSION}."
    ahead = [r.format for r in found.rivals if r.is_ahead]
    apart = [r.format for r in found.rivals if r.is_distinguishable and not r.is_ahead]
    same = [r.format for r in found.rivals if r.is_equal]
    near = [
        r.format
        for r in found.rivals
        if r.change.n > 1 and not (r.is_distinguishable or r.is_equal or r.is_ahead)
    ]
    said = [f"{lowest}."]
    if found.differ:
        said.append(text(found.about_seeds))
    if found.repeated:
        said.append(f"{listed(found.repeated)}: {found.about_repeats}.")
    if ahead:
        said.append(f"In the seeds that both have, it is above {listed(ahead)}.")
    if apart:
        said.append(f"It is distinguishable from {listed(apart)}.")
    if same:
        said.append(f"It equals {listed(same)} in every seed.")
    if near:
        said.append(f"It is not distinguishable from {listed(near)}.")
    if unknown:
        said.append(f"Of {listed(unknown)} there is one seed, which allows no conclusion.")
    return " ".join(said)


# --------------------------------------------------------------------------------- rankings


def _rankings(compared: FormatComparator, leads: Mapping[str, Sequence[Lead]]) -> list[str]:
    parts = [
        "## Rankings",
        "Of finished runs. Intervals are 95 % by Student's t over the seeds. Formats with "
        "different seeds are ranked in those that all of them have, if these are at least two. "
        "Differences are "
        "paired by seed where two formats share at least two seeds, and otherwise by Welch. Two "
        "formats are distinguishable if the interval of their difference excludes 0 and its p, "
        f"corrected by Holm for the number of rivals, is below {ALPHA:g}.",
    ]
    if CONDITION not in compared.df:
        parts.append(ALL_ELSE)
    for metric in dict.fromkeys([LOSS, *leads]):
        rivals = {(f.condition, r.format): r for f in leads.get(metric, ()) for r in f.rivals}
        parts += [f"### By {WORDS[metric]}", _ranking(compared, metric, rivals)]
    return [*parts, "### By bit stall", _ranking(compared, STALL, {}), _about_stall(compared.df)]


def _ranking(
    compared: FormatComparator, metric: str, rivals: Mapping[tuple[str, str], Rival]
) -> str:
    if metric not in compared.df or not compared.df[metric].notna().any():
        return "No finished run has one."
    rows = []
    for own in compared.rank_by_metric(metric).to_dict("records"):
        row = {k: own[k] for k in (CONDITION, "rank", "format", "seeds") if k in own}
        own_mean = Interval(own[metric], own["low"], own["high"], math.nan, own["seeds"])
        row[f"mean {metric}"] = interval_text(own_mean)
        if rivals:
            condition = own.get(CONDITION, next(iter(compared.conditions)))
            row |= _against_first(rivals.get((condition, own["format"])))
        rows.append(row)
    return rows_table(rows)


def _against_first(rival: Rival | None) -> dict[str, str]:
    if rival is None:
        return dict.fromkeys(("minus the first", "by", "p (Holm)", "distinguishable"), "")
    told = "yes" if rival.is_distinguishable else "no"
    return {
        "minus the first": interval_text(rival.change),
        "by": rival.change.method,
        "p (Holm)": p_text(rival.p),
        "distinguishable": f"{told}, but it is lower" if rival.is_ahead else told,
    }


def _about_stall(df: pd.DataFrame) -> str:
    """Say what the rate is of. A low one is no success, and a high one no failure."""
    kinds = df["bit_stall_of"].dropna().unique() if "bit_stall_of" in df else []
    said = []
    if len(kinds):
        said.append(f"The rate is that of {listed(f'{kind} weights' for kind in kinds)}.")
    if len(kinds) > 1:
        said.append("The two are not comparable.")
    said.append(
        "It does not rank how well a format trains: the view of a float32 master weight follows "
        "late, and a weight that is rounded stochastically stalls as often as it should."
    )
    return " ".join(said)


def _between_conditions(df: pd.DataFrame, metric: str) -> list[str]:
    """Compare the conditions of each format, where there are several, as formats are compared."""
    if CONDITION not in df or metric not in df:
        return []
    swapped = df.assign(**{CONDITION: df["format"], "format": labels(df, CONDITION, "")})
    rows = [
        {
            "format": found.condition,
            f"lowest {metric}": f"{found.format}{found.about_failures}",
            "against": rival.format,
        }
        | _against_first(rival)
        for own in _by_data(swapped)
        for found in FormatComparator(own).finished.lead(metric)
        for rival in found.rivals
    ]
    return ["## The same format under several conditions", rows_table(rows)] if rows else []


def _by_data(df: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the runs on the same data, whose losses alone are comparable."""
    if "data" not in df:
        return [df]
    return [own for _, own in df.groupby(labels(df, "data", ""), sort=False)]


def _layer_types(compared: FormatComparator, layer_metrics: pd.DataFrame | None) -> list[str]:
    """Show a measure of the layers by the part of the model that they are in."""
    if layer_metrics is None or not len(layer_metrics):
        return []
    found = compared.compare_by_layer_type(layer_metrics)
    keys = [c for c in (CONDITION, "layer_type") if c in found]
    parts = ["## By layer type", "Means over the layers of a type, at the end of the runs."]
    for metric in found.columns.drop([*keys, "layers"]).drop("format", errors="ignore"):
        wide = found.pivot(index=keys, columns="format", values=metric).dropna(how="all")
        shown = wide.map(lambda x: Markdown(f"{x:.3g}") if x == x else None).reset_index()
        parts += [f"### {text(metric)}", frame_table(shown, [*keys, *wide.columns])]
    return parts


# ------------------------------------------------------------------ failures and conditions


def _of_failures(df: pd.DataFrame, failures: pd.DataFrame) -> Iterator[str]:
    """Say which formats failed, and how often."""
    runs = dict(_grouped(without_copies(df)))
    for (condition, fmt), own in _grouped(failures):
        where = f" under {text(condition)}" if condition else ""
        of = runs_text(runs.get((condition, fmt), own))
        yield f"{text(fmt)} failed in {len(own)} of {of}{where}."


def _grouped(df: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    return [
        ((condition, str(fmt)), rows)
        for condition, own in by_condition(df).items()
        for fmt, rows in own.groupby(own["format"].astype(str), sort=False)
    ]
