"""How many random bits stochastic rounding draws, and how a few of them decide."""

from __future__ import annotations

from typing import NamedTuple

ALL_BITS = 32
FEW_BITS = ("centred", "floor")


class Stochastic(NamedTuple):
    """Settings of stochastic rounding; ``rounding=Stochastic(4, "floor")`` gives them.

    With R random bits a value at the fraction f of its interval is rounded away from zero with the
    probability floor(2^R f) / 2^R (``floor``: biased towards zero), or floor(2^R f + 1/2) / 2^R
    (``centred``: half of the last random bit is added, as in IEEE P3109's StochasticB; floor is its
    StochasticA). Where all of the fraction has no more than R bits, both are f itself.

    ``random_bits``: 1 to 32. A format given by its values uses at most 23.
    ``few_bits``: ``centred`` or ``floor``.
    """

    random_bits: int = ALL_BITS
    few_bits: str = "centred"
