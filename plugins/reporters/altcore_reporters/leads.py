"""Which of several contenders is the best, and whether the numbers allow to say so.

Contenders are formats in the reports, and configurations on the page. Both go by this one rule.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import frozen

from altcore.plugin import holm
from altcore_reporters.intervals import (
    Interval,
    Values,
    common_seeds,
    comparable,
    difference,
    interval_of,
    is_one_run,
    seed_means,
)

ALPHA = 0.05
"""Below which a corrected p makes two contenders distinguishable."""


@frozen
class Rival:
    """Another contender, held against the one with the best mean."""

    format: str
    change: Interval
    """Its metric minus the leader's."""
    p: float
    """As in `change`, corrected by Holm for the number of rivals."""
    is_ahead: bool = False
    """Whether it is better than the leader in the seeds that both have."""

    @property
    def is_distinguishable(self) -> bool:
        """Whether the numbers tell it from the leader."""
        return self.change.excludes_zero and self.p < ALPHA

    @property
    def is_equal(self) -> bool:
        """Whether the two have the same metric in every seed."""
        return self.change.low == self.change.high == 0


@frozen
class Lead:
    """The contender with the best mean under a condition, and its rivals, best first."""

    condition: str
    format: str
    metric: str
    mean: float
    seeds: int
    rivals: tuple[Rival, ...]
    failed: int = 0
    """In how many seeds it has no value, since it failed, and another has one."""
    differ: bool = False
    """Whether the contenders have different seeds."""
    common: tuple[object, ...] = ()
    """The seeds that all contenders have; none if these are fewer than two."""
    repeated: tuple[str, ...] = ()
    """The contenders that have the same metric in each of several seeds."""

    @property
    def is_clear(self) -> bool:
        """Whether the numbers allow to call it the best.

        They tell it from every other, none is ahead of it, and it failed in no seed of another.
        """
        told = all(r.is_distinguishable and not r.is_ahead for r in self.rivals)
        return bool(self.rivals) and told and not self.failed

    @property
    def about_seeds(self) -> str:
        """Over which seeds the means are, if the contenders have different ones."""
        if not self.differ:
            return ""
        if not self.common:
            return (
                "The seeds differ, and fewer than two are common to all: each mean is over its own."
            )
        common = ", ".join(map(str, self.common))
        return f"The seeds differ: the means are over those that all have ({common})."

    @property
    def about_repeats(self) -> str:
        """Ends a sentence on the `repeated`."""
        return "the same value with every seed, which tells nothing of another seed"

    @property
    def about_failures(self) -> str:
        """In how many seeds it failed, to stand behind its mean."""
        if not self.failed:
            return ""
        seeds = "1 seed" if self.failed == 1 else f"{self.failed} seeds"
        return f" (it failed in {seeds} in which another finished)"


def ranked(values: Mapping[str, Values], ascending: bool = True) -> dict[str, Interval]:
    """Return the mean of each contender that has any value, with its interval, the best first.

    If they have different seeds, it is over those that all have, unless these are fewer than two.
    """
    known = {name: own for name, own in values.items() if own}
    kept = comparable(*known.values())
    means = {n: interval_of(seed_means(v)) for n, v in zip(known, kept, strict=True)}
    return dict(sorted(means.items(), key=lambda item: item[1].mean * (1 if ascending else -1)))


def lead_of(
    values: Mapping[str, Values],
    failed: Mapping[str, Collection[object]],
    *,
    ascending: bool = True,
    metric: str = "",
    condition: str = "",
) -> Lead | None:
    """Return the contender with the best mean, held against the others; None without any value.

    Args:
        values: a metric by contender and seed.
        failed: the seeds in which a contender failed; None for each that is not known.
        ascending: whether the lowest is the best.
        metric: what the values are.
        condition: under which they were measured.
    """
    means = ranked(values, ascending)
    if not means:
        return None
    best, *others = means
    changes = {name: difference(values[best], values[name]) for name in others}
    ps = holm({name: change.p for name, change in changes.items()})
    rivals = tuple(
        Rival(name, change, ps[name], is_ahead=change.mean * (1 if ascending else -1) < 0)
        for name, change in changes.items()
    )
    keys = [values[name].keys() for name in means]
    return Lead(
        condition,
        best,
        metric,
        means[best].mean,
        means[best].n,
        rivals,
        failed=lost_seeds(failed.get(best, ()), values[best], *(values[name] for name in others)),
        differ=any(own != keys[0] for own in keys),
        common=common_seeds(*(values[name] for name in means)),
        repeated=tuple(name for name in means if is_one_run(values[name])),
    )


def lost_seeds(failed: Collection[object], own: Values, *others: Values) -> int:
    """Return in how many seeds a contender failed and has no value, and another has one.

    A failure with an unknown seed counts as one of them, whatever the others' seeds are.
    """
    unknown = sum(seed is None for seed in failed) if any(others) else 0
    theirs = {seed for other in others for seed in other}
    return unknown + len(({*failed} - own.keys() - {None}) & theirs)
