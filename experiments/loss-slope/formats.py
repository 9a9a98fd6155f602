"""Compare the loss slopes of formats with those of float32: the tables of a page in docs/results.

    python experiments/loss-slope/formats.py EXPORT --page docs/results/loss-slope-formats.md

EXPORT is what ``altcore sweep export`` wrote of experiments/loss-slope/formats.yaml. The tables
replace what the page has between its two markers; without a page they are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from attrs import evolve

from altcore.estimates import LEVEL, Estimate, estimate, holm
from altcore_reporters import ExportedStudy
from altcore_reporters.slope_study.estimates import Estimate as Correlation
from altcore_reporters.slope_study.estimates import pearson
from altcore_reporters.slope_study.hypotheses import (
    Limits,
    Result,
    first_hypothesis,
    results_of,
    second_hypothesis,
)

MARKERS = ("<!-- tables: begin -->", "<!-- tables: end -->")
FLOAT32 = "float32"
MEASURES = ("alpha_early", "r_squared", "best_val_ce")
POINT = ("lr", "weight_decay", "seed")
"""What a run and its twin in float32 have in common, beside the variant."""


def read(export: Path) -> pd.DataFrame:
    """Return the runs of an export, with the variant of the study and the format apart."""
    found = ExportedStudy(export).results
    parts = found["variant"].str.partition("-")
    return found.assign(study=parts[0], format=parts[2].replace("", FLOAT32))


def means(runs: pd.DataFrame) -> list[str]:
    """Return the table of what was measured: mean and standard deviation over the runs."""
    rows = []
    for (study, fmt), own in runs.groupby(["study", "format"], sort=False):
        cells = [f"{own[m].mean():.3f} ± {own[m].std():.3f}" for m in MEASURES]
        rows.append([study, fmt, str(len(own)), *cells])
    return table(["variant", "format", "runs", *MEASURES], rows)


def paired(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run in a format: its measures minus those of its twin in float32."""
    is_twin = runs["format"] == FLOAT32
    both = runs[~is_twin].merge(runs[is_twin], on=["study", *POINT], suffixes=("", "_twin"))
    return both.assign(**{m: both[m] - both[f"{m}_twin"] for m in MEASURES})


def differences(pairs: pd.DataFrame) -> list[str]:
    """Return the table of differences to float32, with p corrected for all rows of a measure."""
    by_format = {("all", fmt): own for fmt, own in pairs.groupby("format", sort=False)}
    groups = {**by_format, **dict(list(pairs.groupby(["study", "format"], sort=False)))}
    told = {key: [*key, str(len(own))] for key, own in groups.items()}
    for measure in MEASURES:
        found = {key: estimate(list(own[measure].dropna())) for key, own in groups.items()}
        corrected = holm({key: each.p for key, each in found.items()})
        for key, each in found.items():
            told[key] += [told_difference(each, corrected[key]), f"{corrected[key]:.3f}"]
    head = ["variant", "format", "pairs"]
    return table([*head, *(cell for m in MEASURES for cell in (m, "p"))], told.values())


def told_difference(found: Estimate, p: float) -> str:
    """Return a difference with its interval, bold if it is told from 0."""
    mean = f"{found.mean:+.3f}"
    return f"{f'**{mean}**' if p < LEVEL else mean} [{found.low:.3f}, {found.high:.3f}]"


def hypotheses(runs: pd.DataFrame) -> list[str]:
    """Return the table of H1 and H2: over all runs, within each format, and within each variant."""
    results = results_of(runs.to_dict("records"))
    rows = []
    for by in ("format", "study"):
        groups = dict(zip(runs["run_id"], runs[by], strict=True))
        own = [evolve(result, variant=groups[result.run_id]) for result in results]
        rows += _verdicts(own) if by == "format" else _verdicts(own)[1:]
    head = ["runs of", "runs", "R² ≥ 0.98", "H1", "Pearson", "Spearman", "H2"]
    return table(head, rows)


def _verdicts(results: Sequence[Result]) -> list[list[str]]:
    limits = Limits()
    both = zip(first_hypothesis(results, limits), second_hypothesis(results, limits), strict=True)
    return [
        [
            one.of,
            str(one.estimate.n),
            f"{one.estimate.value:.0%} [{one.estimate.low:.0%}, {one.estimate.high:.0%}]",
            one.word,
            told_correlation(two.estimate),
            told_correlation(two.beside) if two.beside else "",
            two.word,
        ]
        for one, two in both
    ]


def told_correlation(found: Correlation) -> str:
    """Return a correlation with its interval."""
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def about_their_means(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs less the mean of those with the same variant, format and point."""
    points = runs.groupby(["study", "format", *POINT[:-1]])
    return runs.assign(**{m: runs[m] - points[m].transform("mean") for m in MEASURES})


def correlations(runs: pd.DataFrame) -> list[str]:
    """Return the correlation of early slope and best loss: of all, by format, and by variant."""
    groups: dict[str, pd.DataFrame] = {"all": runs}
    for by in ("format", "study"):
        groups |= dict(list(runs.groupby(by, sort=False)))
    rows = []
    for name, own in groups.items():
        known = own.dropna(subset=["alpha_early", "best_val_ce"])
        found = pearson(list(known["alpha_early"]), list(known["best_val_ce"]))
        rows.append([name, str(found.n), told_correlation(found)])
    return table(["of", "number", "Pearson"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


PARTS: Mapping[str, Callable[[pd.DataFrame], list[str]]] = {
    "What was measured": means,
    "Differences to float32": lambda runs: differences(paired(runs)),
    "H1 and H2": hypotheses,
    "Early slope and best loss, less the mean of a point": lambda runs: correlations(
        about_their_means(runs)
    ),
    "Changes of the slope, and of the best loss": lambda runs: correlations(paired(runs)),
}


def tables(runs: pd.DataFrame) -> str:
    """Return all tables, each under its title."""
    parts = ["\n".join([f"### {title}", "", *made(runs)]) for title, made in PARTS.items()]
    return "\n\n".join(parts).replace("nan", "–")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or put them into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("export", type=Path, help="folder of the export")
    parser.add_argument("--page", type=Path, help="whose tables are replaced")
    asked = parser.parse_args(arguments)
    made = tables(read(asked.export))
    if asked.page is None:
        print(made)
        return
    begin, end = MARKERS
    before, _, rest = asked.page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    text = f"{before}{begin}\n\n{made}\n\n{end}{after}"
    asked.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
