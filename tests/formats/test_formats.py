"""Formats as data: what `float_format` and `table_format` make, and what they refuse."""

import copy
import itertools
import math
import pickle
from fractions import Fraction
from typing import get_args

import pytest

from altcore.errors import BadInput
from altcore.formats import (
    BlockFormat,
    Format,
    Specials,
    code_format,
    float_format,
    format_digest,
    from_plain,
    get_format,
    table_format,
)

E0M7 = float_format("E0M7", 0, 7)
E1M6 = float_format("E1M6", 1, 6)
E3M4 = float_format("E3M4", 3, 4)
E7M0 = float_format("E7M0", 7, 0)
E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
FNUZ = float_format("E4M3FNUZ", 4, 3, bias=8, specials="fnuz")
FLAT = float_format("flat", 2, 2, subnormals=False)


@pytest.mark.parametrize(
    ("fmt", "bits", "values", "largest", "smallest"),
    [
        (E0M7, 8, 255, 127 / 128, 1 / 128),
        (E1M6, 8, 255, 127 / 32, 1 / 32),
        (E3M4, 8, 255, 31.0, 2**-6),
        (E7M0, 8, 255, 2.0**64, 2.0**-62),
        (E4M3, 8, 253, 448.0, 2**-9),
        (E5M2, 8, 247, 57344.0, 2**-16),
        (FNUZ, 8, 255, 240.0, 2**-10),
        (FLAT, 5, 25, 7.0, 1.0),
        (table_format("nine", range(-4, 5)), 4, 9, 4.0, 1.0),
    ],
)
def test_facts(fmt, bits, values, largest, smallest):
    assert (fmt.bits, len(fmt.values)) == (bits, values)
    assert (fmt.max, fmt.smallest) == (largest, smallest)
    assert list(fmt.values) == sorted(set(fmt.values))
    assert len(fmt.code_values) <= 2**fmt.bits


def test_fixed_point_is_uniform_and_e1m6_is_four_times_e0m7():
    """With subnormals, one exponent bit adds no binade: code by code, E1M6 is 4 × E0M7."""
    assert E1M6.code_values == tuple(4 * v for v in E0M7.code_values)
    assert E0M7.values == tuple(m / 128 for m in range(-127, 128))
    assert (
        float_format("E1M6", 1, 6, subnormals=False).values[128 - 64 :] != E1M6.values[128 - 64 :]
    )


def test_without_subnormals():
    """Zero and the normal values, nothing between."""
    assert [v for v in FLAT.values if v >= 0] == [0, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7]


def test_special_codes():
    """NaN, infinities and -0 are where the standards put them."""
    assert E4M3.nan_codes == (0x7F, 0xFF)
    assert E5M2.inf_codes == (0x7C, 0xFC)
    assert len(E5M2.nan_codes) == 6
    assert FNUZ.nan_codes == (0x80,)
    assert E3M4.nan_codes + E3M4.inf_codes == ()
    assert math.copysign(1, E4M3.code_values[0x80]) == -1


def test_code_and_index_of_every_value():
    for fmt in (E4M3, FNUZ, FLAT, table_format("few", [-1, 0.5, 3])):
        for i, value in enumerate(fmt.values):
            assert fmt.index_of(value) == i
            assert fmt.code_values[fmt.code_of(value)] == value
    assert E4M3.code_of(-0.0) == 0x80
    assert FNUZ.code_of(-0.0) == 0
    assert E4M3.code_of(math.nan) == 0x7F
    for call in (E4M3.code_of, E4M3.index_of):
        with pytest.raises(BadInput, match=r"1\.01 is not a value of format E4M3"):
            call(1.01)


def test_where_the_grid_would_go_on():
    """One step past the largest value of a float format; a table repeats its last interval."""
    assert E4M3.beyond == (-480, 480)
    assert E5M2.beyond == (-65536, 65536)
    assert E7M0.beyond[1] == 2**65
    assert E0M7.beyond[1] == 1
    assert table_format("few", [-1, 0, 4]).beyond == (-2, 8)


def test_boundaries_are_midpoints():
    fmt = table_format("few", [-1, 0.1, 4])
    assert fmt.boundaries == ((Fraction(0.1) - 1) / 2, (Fraction(0.1) + 4) / 2)


def test_even_values():
    """The even code of a float format; in a table positions are counted from zero outwards."""
    codes = {E3M4.code_values[c]: c for c in range(128)}
    assert all(E3M4.even[E3M4.index_of(v)] == (c % 2 == 0) for v, c in codes.items())
    for values in ([-3, -1, 0, 1, 3], [-3, -1, 1, 3]):
        even = table_format("symmetric", values).even
        assert even == even[::-1]
    assert table_format("natural", [0, 1, 2]).even == (True, False, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"format bad has 1 value\(s\): a format needs at least two"),
        ([], "at least two"),
        ([0, 2, 1], r"value 2 \(1\.0\) does not come after 2\.0; give the values in ascending"),
        ([0, 1, 1], "does not come after"),
        ([0, math.nan], "value 1 is nan; a table holds finite values only"),
        ([0, math.inf], "finite"),
        ([-2, -1, 0], "format bad has no positive value"),
        (["a"], "format bad: its values are a list of numbers"),
        (None, "format bad: its values are a list of numbers"),
    ],
)
def test_bad_tables(values, message):
    """The message names the format, the value and what would be right."""
    with pytest.raises(BadInput, match=message):
        table_format("bad", values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exponent_bits": 0, "mantissa_bits": 0}, "format bad has 1 bits: 2 to 19"),
        ({"exponent_bits": 8, "mantissa_bits": 23}, "32 bits"),
        ({"exponent_bits": 15, "mantissa_bits": 0}, "beyond float64's"),
        ({"exponent_bits": -1, "mantissa_bits": 4}, "at least 0, not -1"),
        ({"exponent_bits": 0, "mantissa_bits": 4, "subnormals": False}, "every value is subnormal"),
        ({"exponent_bits": 0, "mantissa_bits": 4, "specials": "ieee"}, "need exponent bits"),
        ({"exponent_bits": 1, "mantissa_bits": 0, "specials": "fn"}, "no value but zero"),
        ({"exponent_bits": 4, "mantissa_bits": 3, "specials": "ocp"}, "specials is none"),
        ({"exponent_bits": "4", "mantissa_bits": 3}, "bits are whole numbers, not '4' and 3"),
    ],
)
def test_bad_floats(arguments, message):
    with pytest.raises(BadInput, match=message):
        float_format("bad", **arguments)


def test_every_float_format_has_two_values():
    """And a largest one above zero; the rest are refused. Their codes are as defined."""
    for exponent, mantissa, special, subnormals in itertools.product(
        range(4), range(4), get_args(Specials), (True, False)
    ):
        try:
            fmt = float_format("F", exponent, mantissa, specials=special, subnormals=subnormals)
        except BadInput:
            continue
        assert len(fmt.values) >= 3
        assert fmt.max == fmt.values[-1] > 0
        assert fmt.smallest > 0
        finite = [float(fmt.magnitude_value(m)) for m in range(fmt.top_magnitude + 1)]
        assert list(fmt.code_values[: len(finite)]) == finite
        rest = fmt.code_values[len(finite) : 1 << exponent + mantissa]
        infinities = special in ("ieee", "p3109")
        assert list(map(math.isinf, rest)) == [infinities and i == 0 for i in range(len(rest))]
        assert all(map(math.isnan, rest[infinities:]))
    for mantissa in range(8):
        with pytest.raises(BadInput, match="no value but zero"):
            float_format("F", 1, mantissa, specials="ieee", subnormals=False)


def test_equal_by_name_and_data():
    """Copies and pickles are equal and hash alike, and nothing can be changed."""
    for fmt in (E4M3, table_format("few", [-1, 0, 4])):
        for same in (copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt))):
            assert same == fmt
            assert hash(same) == hash(fmt)
        with pytest.raises(AttributeError):
            fmt.name = "other"
    assert float_format("E4M3", 4, 3) != E4M3
    assert table_format("a", [0, 1]) != table_format("b", [0, 1])
    assert isinstance(E4M3, Format)
    assert str(E4M3) == "E4M3"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": 5}, "format 5: its name is a line of text"),
        ({"name": ""}, "format '': its name is a line of text"),
        ({"name": "B\n"}, r"format 'B\\n': its name is a line of text"),
        ({"element": "E2M1"}, "format B: its element is a Format, not 'E2M1'"),
        ({"block": True}, "format B: a block holds at least 1 element, not True"),
        ({"block": 0}, "format B: a block holds at least 1 element, not 0"),
        ({"rule": "flor"}, "format B: the rule is one of floor"),
        ({"rule": "two-level"}, "format B: two-level, and only it, has a scale_format"),
        (
            {"rule": "two-level", "scale_format": "E4M3"},
            "format B: its scale_format is a Format, not 'E4M3'",
        ),
        ({"is_square": 3}, "format B: is_square is true or false, not 3"),
    ],
    ids=str,
)
def test_a_block_format_that_cannot_be_is_refused(wrong, says):
    """By name, as a format of single numbers is."""
    with pytest.raises(BadInput, match=says):
        BlockFormat(**{"name": "B", "element": get_format("E2M1")} | wrong)


@pytest.mark.parametrize("width", [(-1, 3), (3, -1)])
def test_a_negative_width_is_refused_by_name(width):
    with pytest.raises(BadInput, match="format N: its widths are at least 0, not -1"):
        float_format("N", *width)


def test_numbers_that_python_does_not_write_are_refused():
    """Python writes no integer of more than 4,300 digits; records and digests need to."""
    with pytest.raises(BadInput, match="format N has a number of about 5001 digits bits"):
        float_format("N", 3, 10**5000)
    near = Fraction(1, 2) + Fraction(1, 10**5000)
    for rules in (
        {"boundaries": [Fraction(-1, 2), near, Fraction(3, 2)]},
        {"beyond": (-1, 1 + near)},
    ):
        with pytest.raises(BadInput, match="format N: a fraction of its boundaries or beyond has"):
            code_format("N", [0, 1], **rules)
    longest = Fraction(1, 2**4095)
    made = code_format("N", [0, 1], boundaries=[-longest, longest, 1 + longest])
    assert from_plain(made.to_plain()) == made
    assert format_digest(made)
