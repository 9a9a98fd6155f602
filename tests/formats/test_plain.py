"""Formats as plain data: what is written gives the same format, and nothing is guessed."""

import itertools
import json
import math
from fractions import Fraction

import pytest
from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import FAMILIES

import altcore
from altcore.errors import BadInput, Source
from altcore.formats import (
    ROUNDINGS,
    BlockFormat,
    FloatFormat,
    Format,
    code_format,
    float_format,
    format_digest,
    from_plain,
    get_format,
    get_scalar_format,
    round_scalar,
    table_format,
)
from altcore.registry import entries
from altcore.yaml_files import dump_yaml, load_yaml

INSTALLED = sorted(e.name for e in entries() if e.kind == "format" and not e.is_family)
IN_FAMILIES = [name for names in FAMILIES.values() for name in names]


def through_text(plain):
    """Plain data after YAML and after JSON, which must not differ; long data after JSON only."""
    if max(len(plain.get(key, ())) for key in ("values", "codes")) > 1000:
        return json.loads(json.dumps(plain, allow_nan=False))
    by_yaml = load_yaml(dump_yaml(plain), Source("text"))
    assert json.loads(json.dumps(plain, allow_nan=False)) == by_yaml
    return by_yaml


def check(fmt):
    """What is read back is the format: equal, of one digest, with the same codes and rules."""
    back = from_plain(through_text(fmt.to_plain()))
    assert back == fmt
    assert type(back) is type(fmt)
    assert format_digest(back) == format_digest(fmt)
    assert from_plain(back.to_plain()) == fmt
    return back


names = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda s: s.isprintable() and s.strip()
)
numbers = st.floats(-1e300, 1e300, allow_nan=False) | st.integers(-64, 64).map(lambda n: n / 8)


@st.composite
def floats(draw):
    exponent = draw(st.integers(0, 6))
    mantissa = draw(st.integers(0, 5))
    bias = draw(st.none() | st.integers(-300, 300))
    specials = draw(st.sampled_from(["none", "ieee", "fn", "fnuz", "p3109"]))
    subnormals = draw(st.booleans())
    try:
        return float_format(
            draw(names),
            exponent,
            mantissa,
            bias=bias,
            specials=specials,
            subnormals=subnormals,
        )
    except BadInput:
        assume(False)


@st.composite
def tables(draw):
    values = draw(st.lists(numbers, min_size=2, max_size=20))
    if draw(st.booleans()):
        values = sorted({v + 0.0 for v in values})
    else:
        values += draw(st.sampled_from([[], [math.nan], [-0.0], [math.inf, -math.inf]]))
        values = draw(st.permutations(values))
    rules = {"ties": draw(st.sampled_from(["even", "up", "down"]))}
    finite = sorted({Fraction(v) for v in values if math.isfinite(v)})
    if draw(st.booleans()):
        step = draw(st.fractions(min_value="1/1000"))
        rules["beyond"] = (finite[0] - step, finite[-1] + step)
        if draw(st.booleans()):
            share = draw(st.fractions(0, 1, max_denominator=10**6))
            grid = [rules["beyond"][0], *finite, rules["beyond"][1]]
            rules["boundaries"] = [a + share * (b - a) for a, b in itertools.pairwise(grid)]
    try:
        return code_format(draw(names), values, **rules)
    except BadInput:
        assume(False)


@st.composite
def blocks(draw):
    rule = draw(st.sampled_from(["floor", "even", "amax", "two-level"]))
    return BlockFormat(
        draw(names),
        draw(floats() | tables()),
        draw(st.integers(1, 64)),
        rule,
        draw(floats()) if rule == "two-level" else None,
        draw(st.booleans()),
    )


@given(floats() | tables(), st.lists(numbers, max_size=10), st.fractions(0, 1, max_denominator=8))
@settings(deadline=None)
def test_what_is_written_is_the_format(fmt, xs, uniform):
    """Equal, and rounds every number alike in every rounding."""
    back = check(fmt)
    for rounding in ROUNDINGS:
        for x in (*xs, *map(float, fmt.boundaries[:3])):
            one, other = (round_scalar(x, f, rounding, uniform=uniform) for f in (fmt, back))
            assert (one, math.copysign(1, one)) == (other, math.copysign(1, other))


@given(blocks())
@settings(deadline=None)
def test_what_is_written_is_the_block_format(fmt):
    """Its element and its scale are whole, and need no distribution."""
    check(fmt)
    assert isinstance(fmt.to_plain()["element"], dict)


@pytest.mark.parametrize("name", [*INSTALLED, *IN_FAMILIES, "posit10_2", "LOG5_5-by-log"])
def test_every_installed_format(name):
    """And members of every family, those with irrational boundaries too."""
    fmt = get_format(name)
    back = check(fmt)
    if isinstance(fmt, Format):
        assert str(back.code_values) == str(fmt.code_values)
        assert (back.even, back.limits, back.beyond) == (fmt.even, fmt.limits, fmt.beyond)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "pattern", ["E{}M{}", "posit{}_{}", "Q{}_{}", "E{}M{}FNUZ", "LOG{}_{}-by-log"]
)
def test_every_member_of_families(pattern):
    """All there are."""
    found = 0
    for one in range(17):
        for other in range(17):
            try:
                fmt = get_format(pattern.format(one, other))
            except BadInput:
                continue
            check(fmt)
            found += 1
    assert found > 30


# ------------------------------------------------------------------------------- written by hand


@pytest.mark.parametrize(
    ("plain", "fmt"),
    [
        ({"name": "MINE", "values": [-1, 0, 1.5]}, table_format("MINE", [-1, 0, 1.5])),
        ({"name": "E4M1", "exponent": 4, "mantissa": 1}, float_format("E4M1", 4, 1)),
        (
            {"name": "A", "exponent": 4, "mantissa": 3, "bias": 8, "specials": "fnuz"},
            float_format("A", 4, 3, bias=8, specials="fnuz"),
        ),
        (
            {"name": "A", "exponent": 2, "mantissa": 2, "subnormals": False},
            float_format("A", 2, 2, subnormals=False),
        ),
        (
            {"name": "A", "codes": [0, 1, -1, "nan"], "ties": "up"},
            code_format("A", [0, 1, -1, math.nan], ties="up"),
        ),
        (
            {"name": "A", "values": [0, 1], "beyond": [-1, 2], "boundaries": ["-1/3", 0.25, 1]},
            code_format("A", [0, 1], beyond=(-1, 2), boundaries=[Fraction(-1, 3), 0.25, 1]),
        ),
        (
            {"name": "A", "element": "E2M1", "block": 8},
            BlockFormat("A", altcore.get_format("E2M1"), 8),
        ),
        (
            {
                "name": "A",
                "element": {"name": "B", "values": [-1, 1]},
                "block": 4,
                "rule": "two-level",
                "scale": "E4M3",
                "square": True,
            },
            BlockFormat(
                "A",
                table_format("B", [-1, 1]),
                4,
                "two-level",
                altcore.get_format("E4M3"),
                is_square=True,
            ),
        ),
    ],
)
def test_forms_that_people_write(plain, fmt):
    """Short ones, with what is left out by default; get_format takes them too."""
    assert from_plain(plain) == fmt
    assert altcore.get_format(plain) == fmt


def test_what_is_written_is_short():
    """What is by default is left out."""
    assert get_format("E3M4").to_plain() == {"name": "E3M4", "exponent": 3, "mantissa": 4}
    assert get_format("E4M3").to_plain() == {
        "name": "E4M3",
        "exponent": 4,
        "mantissa": 3,
        "specials": "fn",
    }
    assert get_format("TERNARY").to_plain() == {"name": "TERNARY", "values": [-1.0, 0.0, 1.0]}
    assert get_format("E8M0-ties-up").to_plain().keys() == {"name", "codes", "ties", "beyond"}
    assert dump_yaml(get_format("TERNARY").to_plain()) == (
        "name: TERNARY\nvalues: [-1.0, 0.0, 1.0]\n"
    )


FLOAT = {"name": "A", "exponent": 4, "mantissa": 3}
TABLE = {"name": "A", "values": [0, 1, 2]}
BLOCK = {"name": "A", "element": "E2M1", "block": 8}


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ({}, "^format: name is missing$"),
        ({"values": [0, 1]}, "^format: name is missing$"),
        ({"nam": "X", "values": [0, 1]}, r"unknown key 'nam' \(did you mean name\?\)$"),
        ({"name": "FORMAT", "values": [0, 1]}, "format FORMAT: the name is reserved"),
        (
            {"name": "none", "element": "E2M1", "block": 8},
            "format none: the name is reserved",
        ),
        (
            {"name": "A", "values": [0, 1], "beyond": [-1, "1" * 5000]},
            "beyond: item 1, '1+.*, has too many digits",
        ),
        ({"name": None, "values": [0, 1]}, "name: None is not text"),
        ({"name": 3, "values": [0, 1]}, "name: 3 is not text"),
        ({"name": " ", "values": [0, 1]}, "its name is a line of text"),
        ({"name": "A\n", "values": [0, 1]}, "its name is a line of text"),
        ({"name": "A"}, "one of values, codes, exponent, element is needed"),
        ({"name": "A", "valeus": [0, 1]}, "did you mean values"),
        (FLOAT | TABLE, "not values and exponent"),
        (FLOAT | {"mantisa": 3}, "unknown key 'mantisa'.*did you mean mantissa"),
        (FLOAT | {"ties": "up"}, "unknown key 'ties'"),
        (FLOAT | {3: 4}, "unknown key 3"),
        ({"name": "A", "exponent": 4}, "mantissa is missing"),
        (FLOAT | {"exponent": "4"}, "exponent: '4' is not a whole number"),
        (FLOAT | {"exponent": 4.0}, "exponent: 4.0 is not a whole number"),
        (FLOAT | {"exponent": True}, "exponent: True is not a whole number"),
        (FLOAT | {"mantissa": -1}, r"at least 0, not -1 \(exponent: 4, mantissa: -1\)"),
        (FLOAT | {"mantissa": 40}, r"45 bits.*mantissa: 40"),
        (FLOAT | {"exponent": 10**9}, r"exponent: 1000000000"),
        (FLOAT | {"bias": None}, "bias: None is not a whole number"),
        (FLOAT | {"bias": 10**9}, "beyond float64's.*bias: 1000000000"),
        (FLOAT | {"specials": "ocp"}, "specials is none.*specials: ocp"),
        (FLOAT | {"specials": ["ieee"]}, "specials: .* is not text"),
        (FLOAT | {"subnormals": 1}, "subnormals: 1 is not true or false"),
        (TABLE | {"values": 3}, "values: a list of numbers is needed, not 3"),
        (TABLE | {"values": "123"}, "values: a list of numbers"),
        (TABLE | {"values": [0, "1"]}, "values: item 1, '1', is not a number"),
        (TABLE | {"values": [0, True]}, "values: item 1, True, is not a number"),
        (TABLE | {"values": [0, 10**400]}, "values: item 1.* is beyond float64"),
        (TABLE | {"values": [0, 2, 1]}, r"value 2 \(1.0\) does not come after.*given by values"),
        (TABLE | {"values": [0, "nan"]}, "value 1 is nan.*given by values"),
        (TABLE | {"values": [0]}, r"1 value\(s\).*given by values"),
        (TABLE | {"ties": "away"}, "ties is even, up or down, not 'away'"),
        (TABLE | {"ties": 1}, "ties: 1 is not even, up or down"),
        (TABLE | {"beyond": [-1]}, "beyond: two numbers"),
        (TABLE | {"beyond": [0, 3]}, "beyond"),
        (TABLE | {"beyond": [-1, "inf"]}, "beyond: item 1, 'inf', is not a finite number"),
        (TABLE | {"boundaries": [0.5]}, "boundaries.*values need 4.*boundaries"),
        (TABLE | {"boundaries": [-0.5, 0.5, "1/0", 2.5]}, "boundaries: item 2, '1/0'"),
        (TABLE | {"boundaries": [-0.5, 0.5, 7, 2.5]}, "boundary 2"),
        ({"name": "A", "codes": [0, 1, "inf"], "ties": None}, "ties: None"),
        ({"name": "A", "codes": [0, -1, 1, "inf"]}, "one infinity.*given by codes"),
        ({"name": "A", "element": "E2M1"}, "block is missing"),
        (BLOCK | {"element": "NOSUCH"}, "element: unknown format 'NOSUCH'"),
        (BLOCK | {"element": "MXFP4"}, "element: format MXFP4: its numbers share scales"),
        (BLOCK | {"element": BLOCK}, "element: a format's name is needed"),
        (BLOCK | {"element": "a.yaml"}, "element: a format's name is needed"),
        (BLOCK | {"element": 3}, "element: a format is given by its name"),
        (BLOCK | {"element": TABLE | {"tie": "up"}}, "element: format A: unknown key 'tie'"),
        (BLOCK | {"block": 0}, "block holds at least 1"),
        (BLOCK | {"block": "8"}, "block: '8' is not a whole number"),
        (BLOCK | {"rule": "flor"}, "rule is one of floor"),
        (BLOCK | {"rule": "two-level"}, "two-level"),
        (BLOCK | {"scale": "E4M3"}, "two-level, and only it"),
        (BLOCK | {"square": "yes"}, "square: 'yes' is not true or false"),
    ],
)
def test_what_cannot_be_is_refused(plain, says):
    """Unknown keys, wrong types and impossible values, by their keys."""
    with pytest.raises(BadInput, match=says) as error:
        from_plain(plain)
    assert "format" in str(error.value)


def test_a_class_of_ones_own_cannot_be_written():
    """Plain data would lose what it derives."""

    class Wider(FloatFormat):
        """Rounds in a way of its own."""

    with pytest.raises(BadInput, match="format W: plain data cannot hold a Wider"):
        Wider("W", 4, 3, 7).to_plain()
    with pytest.raises(BadInput, match="format W: plain data cannot hold a Wider"):
        evolve(BlockFormat("B", Wider("W", 4, 3, 7))).to_plain()


# ----------------------------------------------------------------------------------------- files


def test_a_file_is_a_format(tmp_path, monkeypatch):
    """By its path as text or as a Path; it is called by its file unless it names itself."""
    path = tmp_path / "mine.yaml"
    path.write_text("values: [-1, 0, 6e-1]\n")
    assert get_format(path) == get_format(str(path)) == table_format("mine", [-1, 0, 0.6])
    path.write_text("name: MINE\nexponent: 4\nmantissa: 1\n")
    assert get_scalar_format(path) == float_format("MINE", 4, 1)
    path.write_text("{name: MINE, element: E2M1, block: 8}")
    with pytest.raises(BadInput, match="MINE: its numbers share scales"):
        get_scalar_format(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "format .*a.yaml: cannot be read: No such file"),
        ("[1, 2]", "format .*a.yaml: a mapping"),
        ("values: [0, 1", "a.yaml, line 1.* not valid YAML"),
        ("values: [0, 1]\nvalues: [0, 2]", "'values' is given twice"),
        ("", "format a: one of values, codes, exponent, element is needed.*given in .*a.yaml"),
        ("values: [0, x]", "format a: values: item 1.*given in .*a.yaml, line 1"),
    ],
)
def test_a_file_that_holds_no_format(text, says, tmp_path):
    """The message names the file."""
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=says):
        get_format(str(path))
