"""The null arm: the twin, rounded so finely that nothing but chaos sets the two apart.

Its gap is what any arm's is that does no harm, so it says how small a gap a study can detect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

from altcore.estimates import LEVEL, quantile, student
from altcore.recipes import Layer, read_recipe
from altcore.study.arms import WIDE, Arm, select

OPERAND = "activation@fwd"
"""What the null arm rounds."""
POWER = 0.8
"""Probability with which a gap of the smallest detectable size is significant."""


def null_arm(layers: Sequence[Layer]) -> Arm | None:
    """Return the null arm of a model, or None if no layer of it multiplies an activation.

    Forward activations are rounded to 11 significant bits: by one part in 2^12 at most, or by half
    of one in 2^11. Weights stay off every grid, since some optimizers follow theirs.
    """
    plan = read_recipe({OPERAND: {"format": WIDE.format, "scaling": "none"}}).resolve(layers)
    casts = {name: own for name, own in select(plan, [OPERAND]).items() if own}
    return Arm("null", casts) if casts else None


def detectable(gaps: Sequence[float], seeds: int, rows: int, level: float = LEVEL) -> float:
    """Return the smallest gap that a study would find significant with the probability POWER.

    Args:
        gaps: of the null arm, by seed: they say how far paired differences spread.
        seeds: of the study, which may be more.
        rows: of its table: by Holm's correction its smallest p counts as many times.
        level: of all rows together.

    NaN if the gaps do not spread, or one of them is not known.
    """
    if len(set(gaps)) < 2 or not all(map(math.isfinite, gaps)):
        return math.nan
    bound = quantile(1 - level / rows / 2, seeds - 1)
    shift = float(student().nctdtrinc(seeds - 1, 1 - POWER, bound))  # of the noncentral t
    return stdev(gaps) * shift / math.sqrt(seeds)
