"""The two hypotheses of the loss-slope study, over all runs and by variant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attrs import Attribute, field, frozen

from altcore_reporters.slope_study.estimates import Estimate, pearson, share, spearman

ALL, ALL_VARIANTS = "all", "all variants"
"""The runs of all variants; the second if a variant is called by the first."""


def _in_unit(result: Result, attribute: Attribute[float | None], value: float | None) -> None:
    # Rounding can leave a fit that explains nothing just below 0.
    if value is not None and not -1e-9 <= value <= 1:
        raise ValueError(f"{attribute.name} of {result.run_id} is {value:g}, and no R² is")


@frozen(kw_only=True)
class Result:
    """What the study has of one run; None for what was not fitted or measured."""

    run_id: str
    variant: str
    r_squared: float | None = field(validator=_in_unit)
    """Of the power law after the burn-in."""
    alpha_early: float | None
    """Slope of the loss over the early epochs."""
    best_val_ce: float | None
    """Validation cross entropy of the best evaluation: the lowest, unless `monitor` is another."""


@frozen(kw_only=True)
class Limits:
    """What the hypotheses ask for."""

    r_squared: float = 0.98
    share: float = 0.9
    correlation: float = 0.7


@frozen(kw_only=True)
class Verdict:
    """Whether a hypothesis holds in some runs."""

    of: str
    """The variant, or what all of them are called."""
    estimate: Estimate
    limit: float
    holds: bool | None
    """None if it cannot be told."""
    is_certain: bool
    """Whether the whole interval is on that side of the limit."""
    beside: Estimate | None = None
    """Spearman's correlation beside Pearson's."""
    left_out: int = 0
    """Runs without a value."""

    @property
    def word(self) -> str:
        """The verdict in words."""
        if self.holds is None:
            return "cannot be told"
        held = "holds" if self.holds else "does not hold"
        return held if self.is_certain else f"{held}, but the interval has the limit in it"


def first_hypothesis(results: Sequence[Result], limits: Limits) -> list[Verdict]:
    """H1: the loss follows a power law after the burn-in in more than 90 % of the runs.

    That is R² of at least 0.98. A run whose burn-in never ended is not fitted, and counts against
    it. Runs count as independent of each other.
    """
    found = []
    for of, own in _groups(results):
        hits = sum(r.r_squared is not None and r.r_squared >= limits.r_squared for r in own)
        at = share(hits, len(own))
        holds = at.value > limits.share if own else None
        is_certain = at.low > limits.share or at.high <= limits.share
        unfitted = sum(r.r_squared is None for r in own)
        found.append(
            Verdict(
                of=of,
                estimate=at,
                limit=limits.share,
                holds=holds,
                is_certain=is_certain,
                left_out=unfitted,
            )
        )
    return found


def second_hypothesis(results: Sequence[Result], limits: Limits) -> list[Verdict]:
    """H2: the early slope tells the best validation loss, by a correlation of at least 0.7.

    Pearson's correlation decides. Runs that lack one of the two are left out, and counted.
    """
    found = []
    for of, own in _groups(results):
        pairs = [
            (r.alpha_early, r.best_val_ce)
            for r in own
            if _is_number(r.alpha_early) and _is_number(r.best_val_ce)
        ]
        x, y = ([float(p[i]) for p in pairs if p[i] is not None] for i in (0, 1))
        at = pearson(x, y)
        is_told = not math.isnan(at.low)
        found.append(
            Verdict(
                of=of,
                estimate=at,
                limit=limits.correlation,
                holds=at.value >= limits.correlation if is_told else None,
                is_certain=at.low >= limits.correlation or at.high < limits.correlation,
                beside=spearman(x, y),
                left_out=len(own) - len(pairs),
            )
        )
    return found


def _groups(results: Sequence[Result]) -> Iterable[tuple[str, Sequence[Result]]]:
    """Yield all runs, and then those of each variant if there are several."""
    by_variant: dict[str, list[Result]] = {}
    for result in results:
        by_variant.setdefault(result.variant, []).append(result)
    yield ALL_VARIANTS if ALL in by_variant else ALL, results
    yield from by_variant.items() if len(by_variant) > 1 else ()


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def results_of(rows: Iterable[Mapping[str, object]]) -> list[Result]:
    """Return the results in the rows of an exported results.csv.

    Raises:
        KeyError: for a column that is not there.
        ValueError: for text where a number is needed, an R² that is none, and a run twice.
    """
    found = [
        Result(
            run_id=str(row["run_id"]),
            variant=str(row["variant"]),
            r_squared=_number(row["r_squared"]),
            alpha_early=_number(row["alpha_early"]),
            best_val_ce=_number(row["best_val_ce"]),
        )
        for row in rows
    ]
    if twice := [name for name, count in Counter(r.run_id for r in found).items() if count > 1]:
        raise ValueError(f"run {twice[0]} has more than one row")
    return found


def _number(value: object) -> float | None:
    text = str(value).strip()
    if value is None or not text:
        return None
    number = float(text)
    return None if math.isnan(number) else number
