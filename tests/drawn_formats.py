"""Strategies of hypothesis that draw formats of every kind."""

import itertools
import math
from fractions import Fraction

from hypothesis import assume
from hypothesis import strategies as st

from altcore.formats import code_format, float_format

float_formats = st.builds(
    lambda e, m, bias, s, n: float_format(
        "random",
        e,
        m,
        bias=bias,
        specials=s if e else "none",
        subnormals=n or e < (s == "ieee") + 1,
    ),
    st.integers(0, 7),
    st.integers(1, 6),
    st.none() | st.integers(-5, 70),
    st.sampled_from(["none", "ieee", "fn", "fnuz"]),
    st.booleans(),
) | st.builds(
    lambda e, bias: float_format("random", e, 0, bias=bias), st.integers(2, 7), st.integers(1, 9)
)


@st.composite
def table_formats(draw):
    """Of any values, of float32 or not, one-sided too; perhaps with boundaries, infinities, NaN."""
    low, lowest = draw(st.sampled_from([(-60, -1e4), (0, 0.0), (1, 2**-9)]))
    numbers = st.integers(low, 60).map(lambda v: v / 16)
    for width in (32, 64):
        numbers |= st.floats(lowest, 1e4, width=width).map(lambda v: v + 0.0)
    values = sorted(draw(st.lists(numbers, min_size=2, max_size=40, unique=True)))
    assume(values[-1] > 0)
    infinities = [[], [math.inf, -math.inf], *([[math.inf]] if values[0] >= 0 else [])]
    special = [*draw(st.sampled_from(infinities)), *draw(st.sampled_from([[], [math.nan]]))]
    fmt = code_format("random", [*values, *special])
    shares = draw(st.none() | st.lists(st.sampled_from([0, Fraction(1, 3), 1]), min_size=1))
    if shares is None:
        return fmt
    grid = [fmt.beyond[0], *map(Fraction, values), fmt.beyond[1]]
    gaps = zip(itertools.pairwise(grid), itertools.cycle(shares), strict=False)
    boundaries = [a + share * (b - a) for (a, b), share in gaps]
    return code_format("random", fmt.table, boundaries=boundaries)
