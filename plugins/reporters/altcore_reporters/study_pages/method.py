"""How the runs of a study were made, and what limits its answer: the same for every study."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from altcore_reporters.study_pages.document import Bullets, Section
from altcore_reporters.study_pages.rows import interval
from altcore_reporters.study_pages.words import LEVEL, digits, loss_name, number, value

WHEN = {"train": "of the last tenth of the steps", "val": "at the end"}
"""Which losses are compared, by the metric of a comparison."""


def cautions(about: Mapping[str, Any]) -> list[Section]:
    """Return what limits the answer, beside it; nothing if nothing does."""
    found = [f"{caution[0].upper()}{caution[1:]}." for caution in about["cautions"]]
    return [Section("Cautions", [Bullets(found)])] if found else []


def runs(about: Mapping[str, Any]) -> str:
    """Return how the runs were made, and what a gap is."""
    kept = "".join(f" {name} is {copy}." for name, copy in about["recipe_files"].items())
    return (
        f"{made(about)} {gap(about)} {intervals()}{stops(about)}{plugins_and_settings(about)}{kept}"
    )


def made(about: Mapping[str, Any]) -> str:
    """Return how long the runs were, with which seeds."""
    seeds = ", ".join(map(str, about["seeds"]))
    return (
        f"{about['steps']} steps of {about['workload']} in each run, seeds {seeds}, products in "
        f"{about['compute']}."
    )


def gap(about: Mapping[str, Any]) -> str:
    """Return what a gap is."""
    return (
        f"A gap is the mean difference of the {loss_name(about)} "
        f"{WHEN[about.get('metric', 'train')]} to that of the float32 twin, on the same batches, "
        "paired by seed."
    )


def intervals(rows: int | None = None) -> str:
    """Return what intervals and p are, of a table with so many rows.

    >>> intervals(4)[66:125]
    'p alone is corrected, by Holm over the 4 rows of the table:'
    """
    over = "the rows of a table" if rows is None else f"the {rows} rows of the table"
    return (
        "Intervals are 95 % by Student's t over the seeds, each by itself; p alone is corrected, "
        f"by Holm over {over}: an interval may lie beside 0 where p is above {LEVEL}, and nothing "
        "is told from 0 then."
    )


def stops(about: Mapping[str, Any]) -> str:
    """Return after how many seeds an arm could stop.

    >>> stops({"looks": {"3": 0.216, "5": 0.784}})[:60]
    ' An arm whose verdict was settled after 3 seeds has no more '
    """
    *early, _ = about["looks"]
    if not early:
        return ""
    return (
        f" An arm whose verdict was settled after {' or '.join(early)} seeds has no more of them; "
        "intervals and p allow for these looks, and hold whatever stopped it."
    )


def note(about: Mapping[str, Any]) -> str:
    """Return what intervals are of, for a table that stands alone."""
    return f"{made(about)} {gap(about)} {intervals()}{stops(about)}"


def rates(about: Mapping[str, Any], what: str) -> str:
    """Return how the learning rates of some runs were chosen."""
    rate, factors = digits(about["learning_rate"]), about["rates"]
    if factors is None:
        return (
            f"{what} ran at its best learning rate by the {loss_name(about)}, searched for from "
            f"{rate} (the others from the twin's) by factors of 3 and then once by a factor of √3, "
            "on two seeds that are in no table"
        )
    if len(factors) == 1:
        return f"{what} ran at {digits(factors[0])} times the learning rate {rate}"
    return (
        f"{what} ran at the best of {', '.join(map(digits, factors))} times the learning rate "
        f"{rate} by the {loss_name(about)}, chosen on two seeds that are in no table"
    )


NULL = (
    "The null arm is the twin, perturbed by one part in 2^11: its gap is chaos. The detectable gap "
    "comes out significant, after the correction, with a probability of 80 % if it spreads over "
    "the seeds as the null arm's does. This is the least: what spreads more has to be larger."
)
FROZEN = "'frozen' is the gap of a control whose quantized layers keep their first weights."
NO_NULL = "No null arm ran, so what chaos alone does is not known."
OWN_SPREAD = (
    "'detectable' is the gap that comes out significant, after the correction, with a probability "
    "of 80 % if it spreads over the seeds as the arm's own does."
)


def null_arm(has_run: bool) -> str:
    """Return what the null arm is, or that there is none."""
    return NULL if has_run else NO_NULL


def detectable(null: Mapping[str, Any]) -> str:
    """Return what chaos lets a study detect, as a sentence that follows another; or nothing.

    >>> detectable({"detectable": "nan"})
    ''
    """
    smallest = value(null["detectable"])
    if math.isnan(smallest):
        return ""
    return (
        f" By chaos alone, a gap has to be {number(smallest)} at the least to be "
        f"detected with a probability of 80 %; that of the null arm is {interval(null)}."
    )


def verdicts(about: Mapping[str, Any]) -> str:
    """Return what the verdicts mean."""
    within = digits(about["within"])
    return (
        f"An arm is 'within' if the interval of its gap ends at {within} or before, ahead of the "
        "frozen control, and 'beyond' if the "
        f"interval begins above {within}, or if a run diverged, or none learned by the verdict of "
        "its summary; an arm that learned with some seeds only is not 'within', and nothing is "
        "told where the twin did not learn with every seed."
    )


def plugins_and_settings(about: Mapping[str, Any]) -> str:
    """Return the plugins of every run, and the settings that were given.

    >>> plugins_and_settings({"plugins": ["agc"], "settings": {"agc": {"limit": 0.1}}})
    ' Plugins: agc. Settings: agc.limit: 0.1.'
    """
    named = f" Plugins: {', '.join(about['plugins'])}." if about["plugins"] else ""
    given = [
        f"{owner}.{key}: {json.dumps(value)}"
        for owner, settings in about["settings"].items()
        for key, value in settings.items()
    ]
    return f"{named} Settings: {', '.join(given)}." if given else named
