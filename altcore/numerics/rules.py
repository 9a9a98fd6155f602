"""The rules by which tensors are rounded, and the meters that count meanwhile."""

from __future__ import annotations

from typing import NamedTuple

from attrs import define
from torch import Tensor

from altcore.formats import Stochastic

COUNTS = ("elements", "overflow", "flushed", "nonfinite")
"""The entries of a tensor of counts (int64).

``overflow``: finite elements whose rounding passed the largest (or smallest) value;
``flushed``: elements other than 0 and -0 that became zero without overflowing;
``nonfinite``: NaN and infinite elements. The last three exclude one another.
"""

ERRORS = ("noise", "signal")
"""The entries of a tensor of errors (float64): sums over the finite elements.

``noise``: of ``(q - y)^2``, ``signal``: of ``y^2``, where ``y`` is the scaled value ``x * r`` in
the compute dtype and ``q`` its grid value, or the largest value if rounding overflows. Both are
in grid units, in blocks times the block's scale, so that ``10 * log10(signal / noise)`` is the
signal-to-quantization-noise ratio in dB.
"""


class Rule(NamedTuple):
    """A rounding and an overflow rule, by the names of `altcore.formats`.

    A tuple rather than a class of attrs: rules are keys of caches, and hashing one in Python
    would take a tenth of the time of rounding a small tensor.
    """

    rounding: str = "nearest-even"
    overflow: str = "saturate"
    stochastic: Stochastic = Stochastic()
    """Settings of stochastic rounding; without effect on the others."""


# Functions, since torch 2.8 cannot compile the properties of a tuple.


def draws(rule: Rule) -> bool:
    """Whether rounding needs random bits."""
    return rule.rounding == "stochastic"


def has_few_bits(rule: Rule) -> bool:
    """Whether stochastic rounding has other settings than the usual ones."""
    return rule.stochastic != Stochastic()


def half_bit(settings: Stochastic) -> float:
    """What is added to the random bits, in units of the last one, before they are compared."""
    return 0.5 if settings.few_bits == "centred" else 0.0


def full_rule(rule: Rule) -> Rule:
    """Return the rule with the full name of its rounding: ``nearest`` is nearest-even."""
    return rule._replace(rounding=NEAREST.rounding) if rule.rounding == "nearest" else rule


NEAREST = Rule()
"""To nearest, ties to the even code, saturating."""


@define(eq=False)  # not frozen: torch.compile traces the making of one
class Meters:
    """Tensors to which the measurements of a call are added, on the rounded tensor's device.

    ``counts``: int64, one number for each of `COUNTS`; ``errors``: float64, one for each of
    `ERRORS`. None leaves a measurement out.
    """

    counts: Tensor | None = None
    errors: Tensor | None = None


UNMETERED = Meters()
