"""The Lloyd-Max quantizer for altcore: sixteen values with the least error on normal numbers.

Max, "Quantizing for minimum distortion" (1960), and Lloyd, "Least squares quantization in PCM"
(1982): every value is the mean of what is rounded to it, and every boundary lies halfway between
two values. Here for the standard normal distribution, by Lloyd's iteration. There is no zero among
them; the recipe decides on the scale.
"""

from itertools import pairwise
from statistics import NormalDist

from altcore.plugin import table_format

__version__ = "1.0.0"


def lloyd_max(count: int, rounds: int = 3000) -> list[float]:
    """Return the values, ascending, the largest one 1."""
    normal = NormalDist()
    values = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    for _ in range(rounds):
        inner = [(a + b) / 2 for a, b in pairwise(values)]
        edges = [(-40.0, inner[0]), *pairwise(inner), (inner[-1], 40.0)]
        values = [
            (normal.pdf(a) - normal.pdf(b)) / (normal.cdf(b) - normal.cdf(a)) for a, b in edges
        ]
    # Symmetric to the last bit, which the iteration is not quite.
    half = [(b - a) / 2 for a, b in zip(values, reversed(values), strict=True)][count // 2 :]
    positive = [v / half[-1] for v in half]
    return [*(-v for v in reversed(positive)), *positive]


LLOYD16 = table_format("LLOYD16", lloyd_max(16))
