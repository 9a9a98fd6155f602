"""Digests of formats: the same for the same numbers, whatever the name, and for no others."""

import itertools
import math

import pytest
from attrs import evolve

import altcore
from altcore.formats import (
    BlockFormat,
    FloatFormat,
    code_format,
    digest,
    float_format,
    format_digest,
    table_format,
)

NAN = math.nan
E4M3 = float_format("X", 4, 3)
TABLE = [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
BLOCK = BlockFormat("X", E4M3)
TWO_LEVEL = {"rule": "two-level", "scale_format": E4M3}


class Wider(FloatFormat):
    """A class of one's own, which derives its values in another way."""

    @property
    def code_values(self):
        return tuple(2 * v for v in super().code_values)


DIFFERENT = {
    "float": E4M3,
    "bias": float_format("X", 4, 3, bias=8),
    "widths": float_format("X", 3, 4),
    "specials": float_format("X", 4, 3, specials="fn"),
    "other specials": float_format("X", 4, 3, specials="fnuz"),
    "subnormals": float_format("X", 4, 3, subnormals=False),
    "subclass": Wider("X", 4, 3, 7),
    "table": table_format("X", TABLE),
    "one value": table_format("X", [*TABLE[:-1], 2.0000000000000004]),
    "order of codes": code_format("X", TABLE[::-1]),
    "ties": code_format("X", TABLE, ties="up"),
    "beyond": code_format("X", TABLE, beyond=(-2, 4)),
    "boundaries": code_format("X", TABLE, boundaries=[-1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 2.5]),
    "two zeros": code_format("X", [*TABLE, -0.0]),
    "one zero twice": code_format("X", [*TABLE, 0.0]),
    "NaN": code_format("X", [*TABLE, NAN]),
    "NaN first": code_format("X", [NAN, *TABLE]),
    "infinities": code_format("X", [*TABLE, math.inf, -math.inf]),
    "block": BLOCK,
    "block size": evolve(BLOCK, block=16),
    "rule": evolve(BLOCK, rule="ceil"),
    "square": evolve(BLOCK, is_square=True),
    "element": evolve(BLOCK, element=float_format("X", 3, 4)),
    "two levels": evolve(BLOCK, **TWO_LEVEL),
    "scale": evolve(BLOCK, **TWO_LEVEL | {"scale_format": float_format("X", 5, 2)}),
}


def test_what_differs_in_a_value_or_rule_differs():
    """Every pair of the formats above, which all have one name."""
    for (one, a), (other, b) in itertools.combinations(DIFFERENT.items(), 2):
        assert format_digest(a) != format_digest(b), (one, other)


@pytest.mark.parametrize("fmt", DIFFERENT.values(), ids=DIFFERENT)
def test_the_name_is_nothing(fmt):
    """A format that was renamed, or made again, is known by what it holds."""
    assert format_digest(evolve(fmt, name="other")) == format_digest(fmt)


def test_the_name_of_an_element_is_nothing():
    """Nor that of a block's element and scale."""
    named = float_format("NAMED", 4, 3)
    made = BlockFormat("other", named, **TWO_LEVEL | {"scale_format": named})
    assert format_digest(made) == format_digest(DIFFERENT["two levels"])


def test_digests_are_the_same_everywhere():
    """They name runs that another machine or a later Python goes on with."""
    assert format_digest(altcore.get_format("E4M3"))[:12] == "5669fe6b938d"
    assert format_digest(DIFFERENT["table"])[:12] == "c7065edaaa52"
    assert digest({"b": [1.5, None], "a": "ü"}) == digest({"a": "ü", "b": [1.5, None]})
