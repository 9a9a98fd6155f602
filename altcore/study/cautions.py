"""What a study cannot tell with so few steps or seeds, or at the learning rates that it tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from altcore.builtin_types import digits
from altcore.estimates import LEVEL, quantile
from altcore.runs import several
from altcore.study.outcome import Outcome, tail_length
from altcore.study.rates import Curve
from altcore.study.setup import FEWEST_STEPS

LARGEST_GAP = 3.0
"""Standard deviations over the seeds; few gaps are as large."""


def before_running(
    steps: int, shares: Mapping[int, float], rows: int, metric: str = "train"
) -> list[str]:
    """Return a sentence for each reason why a study cannot tell much.

    Args:
        steps: of each run.
        shares: the looks of the study, the last at all seeds; as of `looks`.
        rows: of the table by whose number of rows p values are corrected.
        metric: the loss that is compared.
    """
    found = []
    if steps < FEWEST_STEPS:
        few = f"{steps} steps are too few to tell whether a format trains"
        if metric == "train":
            few += f": losses are compared over the last {tail_length(steps)}"
        found.append(few)
    if (least := smallest_gap(shares, rows)) > LARGEST_GAP:
        found.append(
            f"{max(shares)} seeds are too few to tell small differences: in a table of {rows} rows "
            f"a gap is significant from {least:.1f} standard deviations on, its own over seeds"
        )
    return found


def smallest_gap(shares: Mapping[int, float], rows: int) -> float:
    """Return the smallest gap that is significant with all seeds, in their standard deviations.

    >>> round(smallest_gap({3: 0.216, 5: 0.784}, 1), 1), round(smallest_gap({3: 1.0}, 4), 1)
    (1.4, 5.1)
    """
    seeds = max(shares)
    level = LEVEL * shares[seeds] / rows
    return quantile(1 - level / 2, seeds - 1) / math.sqrt(seeds)


def about_same_runs(groups: Iterable[Sequence[str]]) -> list[str]:
    """Return a sentence for each group of arms that nothing sets apart, by their names."""
    return [
        f"the runs of {', '.join(group)} are the same, and their differences 0 whatever is true"
        for group in groups
    ]


def about_twins(twins: Mapping[str, Mapping[str, Any]], seeds: int) -> list[str]:
    """Return a sentence for each twin that did not learn with every seed, by its optimizer."""
    return [
        f"the float32 twin ({name}) learned in {twin['learned']} of {seeds} seeds, so nothing is "
        "told of its arms: take more steps, or another learning rate"
        for name, twin in twins.items()
        if twin["learned"] < seeds
    ]


def about_runs(made_again: Mapping[str, str]) -> list[str]:
    """Return a sentence on each run that was not what the study had accepted, and why."""
    return [
        f"the run {name} was made again, and what lay in its place, if anything did, is in "
        f"`retired`: {problem}"
        for name, problem in made_again.items()
    ]


def about_platforms(identities: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence if runs were made under other versions, flags or devices than others.

    ``identities`` are those of the runs, by name.

    >>> about_platforms({"a": {"platform": {"threads": 2}}, "b": {"platform": {"threads": 4}}})
    ['not all runs were made alike, and bits may differ: threads is 2 in 1 run (a), 4 in 1 (b)']
    >>> about_platforms({"a": {"platform": {"threads": 2}}, "b": {}})
    []
    """
    platforms = [identity.get("platform") or {} for identity in identities.values()]
    rows = [
        (key, [str(where[key]) if key in where else None for where in platforms])
        for key in dict.fromkeys(key for where in platforms for key in where)
    ]
    told = several(list(identities), [(key, row) for key, row in rows if len({*row} - {None}) > 1])
    return [f"not all runs were made alike, and bits may differ: {'; '.join(told)}"] if told else []


def about_chaos(nulls: Iterable[Mapping[str, Any]], within: float) -> list[str]:
    """Return a sentence if gaps that count as none, or as small, cannot be detected.

    ``nulls`` are the rows of null arms.
    """
    smallest = max((null["detectable"] for null in nulls), default=0.0)
    if not smallest > within:
        return []
    return [
        f"chaos alone hides gaps below {smallest:.2g}, and {digits(within)} is the distance in "
        "question: take more seeds, more steps, or a larger distance"
    ]


def about_runs_of_twins(twins: Mapping[str, Mapping[int, Outcome]]) -> list[str]:
    """Return a sentence for each twin to which gaps tell nothing; twins are given by seed."""
    found = []
    for name, outcomes in twins.items():
        if lost := [str(seed) for seed, outcome in outcomes.items() if outcome.diverged]:
            seeds = f"seed{'s' * (len(lost) > 1)} {', '.join(lost)}"
            found.append(f"{name} diverged with {seeds}: do not rely on gaps to it")
        elif len(outcomes) > 1 and len({outcome.losses for outcome in outcomes.values()}) == 1:
            found.append(
                f"{name} has the same losses with every seed, to the bit: its seeds are one run, "
                "and intervals over them tell nothing"
            )
    return found


def about_validation(metric: str, found: Mapping[str, Any]) -> list[str]:
    """Return a sentence if arms are compared by too few batches of validation."""
    batches, wanted = found["batches"], found["enough"]
    if metric != "val" or (wanted is not None and wanted <= batches):
        return []
    wanted_batches = "more are needed" if wanted is None else f"{wanted} are enough"
    return [
        f"a validation loss over {batches} batches is less certain than --within: {wanted_batches} "
        "for every run (eval_steps)"
    ]


def about_rates(curves: Mapping[str, Curve]) -> list[str]:
    """Return a sentence on the arms that ended best at the lowest or highest rate that was tried.

    The frozen controls are left out: most of what they have does not learn.
    """
    found = []
    for edge, beyond in (("highest", "higher"), ("lowest", "lower")):
        at_edge = [
            f"{key} ({curve.best:.3g})"
            for key, curve in curves.items()
            if curve.edge == edge and not key.startswith("frozen")
        ]
        if at_edge:
            found.append(
                f"the best learning rate of {', '.join(at_edge)} is the {edge} that was tried: a "
                f"{beyond} one may be better"
            )
    return found
