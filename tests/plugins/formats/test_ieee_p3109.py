"""The family of IEEE P3109: all widths, precisions, signs and domains, against two definitions."""

import math
from fractions import Fraction

import gfloat
import pytest
import torch
from format_checks import PATHS, ROUNDINGS, assert_rounds, assert_same, edges, path, random_floats
from gfloat import Domain, RoundMode
from gfloat.formats import format_info_p3109
from gfloat.types import Signedness

import altcore
from altcore import BadInput, get_format
from altcore.numerics import Rule, round_to_grid

ALL = [
    (width, precision, sign, domain)
    for width in range(3, 17)
    for sign in "su"
    for precision in range(1, width + (sign == "u"))
    for domain in "ef"
]
BIAS = {"s": lambda k, p: 2 ** (k - p - 1), "u": lambda k, p: 2 ** (k - p)}
HELD = [f for f in ALL if BIAS[f[2]](*f[:2]) <= 1024]
SMALL = [f for f in HELD if f[0] <= 8]
SIGNED = {"s": Signedness.Signed, "u": Signedness.Unsigned}
DOMAIN = {"e": Domain.Extended, "f": Domain.Finite}


def name_of(width, precision, sign, domain):
    return f"binary{width}p{precision}{sign}{domain}"


def by_gfloat(width, precision, sign, domain):
    """Gfloat's description of a format."""
    return format_info_p3109(width, precision, SIGNED[sign], DOMAIN[domain])


def decoded(code, width, precision, sign, domain):
    """The value of a code, step by step as the interim report decodes it; a word if special."""
    if sign == "s":
        if code == 2 ** (width - 1):
            return "nan"
        if code > 2 ** (width - 1):
            value = decoded(code - 2 ** (width - 1), width, precision, sign, domain)
            return "-inf" if value == "inf" else -value
        if domain == "e" and code == 2 ** (width - 1) - 1:
            return "inf"
    else:
        if code == 2**width - 1:
            return "nan"
        if domain == "e" and code == 2**width - 2:
            return "inf"
    trailing = code % 2 ** (precision - 1)
    exponent = code // 2 ** (precision - 1)
    bias = BIAS[sign](width, precision)
    if exponent == 0:
        return Fraction(trailing, 2 ** (precision - 1)) * Fraction(2) ** (1 - bias)
    return (1 + Fraction(trailing, 2 ** (precision - 1))) * Fraction(2) ** (exponent - bias)


def check_codes(about):
    """Every code of a format means what both definitions say."""
    fmt, info = get_format(name_of(*about)), by_gfloat(*about)
    assert len(fmt.code_values) == 2 ** about[0]
    for code, value in enumerate(fmt.code_values):
        wanted = decoded(code, *about)
        assert (str(value) if isinstance(wanted, str) else Fraction(value)) == wanted, code
        theirs = gfloat.decode_float(info, code).fval
        assert theirs == value or (math.isnan(theirs) and math.isnan(value)), code
        assert value != 0 or math.copysign(1, value) == 1


@pytest.mark.parametrize("width", range(3, 9))
def test_codes_of_small_formats(width):
    """All codes of all formats of 3 to 8 bits."""
    for about in (f for f in HELD if f[0] == width):
        check_codes(about)


@pytest.mark.parametrize(
    "about", [(9, 4, "u", "e"), (12, 1, "s", "e"), (13, 7, "s", "f"), (16, 6, "u", "f")], ids=str
)
def test_codes_of_some_large_formats(about):
    """Those with float64's subnormal numbers among them; the exhaustive test takes all."""
    check_codes(about)


@pytest.mark.exhaustive
@pytest.mark.parametrize("width", range(9, 17))
def test_codes_of_large_formats(width):
    """All codes of all formats of 9 to 16 bits."""
    for about in (f for f in HELD if f[0] == width):
        check_codes(about)


def test_the_family_is_whole():
    """504 formats, of which 50 have values that no float64 is: those are refused, saying so."""
    assert (len(ALL), len(HELD)) == (504, 454)
    for about in set(ALL) - set(HELD):
        with pytest.raises(BadInput, match=f"{name_of(*about)}.*beyond float64's"):
            get_format(name_of(*about))
    for about in HELD:
        if about[0] < 12:
            assert get_format(name_of(*about)).name == name_of(*about)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("binary8p3", r"se \(signed, extended\), sf \(signed, finite\), ue .*, uf "),
        ("binary8p3es", "se "),
        ("binary2p1se", "3 to 16 bits, not 2"),
        ("binary17p3se", "3 to 16 bits, not 17"),
        ("binary8p0uf", "unsigned formats of 8 bits is 1 to 8"),
        ("binary8p8se", "signed formats of 8 bits is 1 to 7"),
        ("binary8p9ue", "unsigned formats of 8 bits is 1 to 8"),
        ("binary08p3se", "did you mean binary8p3se"),
    ],
)
def test_names_that_cannot_be(name, said):
    """The message has the name, and says which part of it is wrong."""
    with pytest.raises(BadInput, match=f"{name}.*{said}"):
        get_format(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("binary16p16se", "binary16p15se"),
        ("binary8p9ue", "binary8p8ue"),
        ("binary8p0uf", "binary8p1uf"),
        ("binary2p1se", "binary3p1se"),
        ("binary17p3sf", "binary16p5sf"),
        ("binary16p1ue", "binary16p6ue"),
        ("binary16p6xe", "binary16p6se"),
        ("binary16p6u", "binary16p6ue"),
    ],
)
def test_the_format_that_is_offered_is_the_closest_one_that_there_is(name, meant):
    """Of its width and kind: not the one that is spelt most alike."""
    with pytest.raises(BadInput) as said:
        get_format(name)
    assert said.value.meant == meant
    assert get_format(meant).name == meant


@pytest.mark.parametrize("about", SMALL[::7], ids=lambda f: name_of(*f))
def test_rounding_is_that_of_gfloat(about):
    """To nearest, ties to the even code, saturating and not; gfloat has no negative unsigned."""
    fmt, info = get_format(name_of(*about)), by_gfloat(*about)
    x = torch.cat([edges(fmt, torch.float64, most=150), random_floats(100).double()])
    x = x[torch.isfinite(x) & ((x >= 0) | fmt.signed)]
    for overflow, saturates in (("saturate", True), ("inf" if fmt.inf_codes else "nan", False)):
        wanted = [gfloat.round_float(info, v, RoundMode.TiesToEven, saturates) for v in x.tolist()]
        got = round_to_grid(x, fmt, Rule(overflow=overflow))
        assert_same(got + 0.0, torch.tensor(wanted, dtype=torch.float64) + 0.0, x)


@pytest.mark.parametrize("name", ["binary8p3ue", "binary7p1uf", "binary12p1se", "binary14p4ue"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_both_paths_are_the_reference(name, rounding):
    """Unsigned formats and those with float64's subnormal numbers, which are tables here."""
    fmt = get_format(name)
    assert_rounds(edges(fmt, torch.float64, most=60), fmt, rounding)


def test_below_an_unsigned_format():
    """Numbers below half the smallest step overflow: to 0, or to NaN if that is asked for."""
    fmt = get_format("binary8p4uf")
    x = torch.tensor([-1.0, -fmt.smallest / 4, 1.0])
    for way in PATHS:
        with path(way):
            assert round_to_grid(x, fmt).tolist() == [0, 0, 1]
            found = round_to_grid(x, fmt, Rule(overflow="nan")).tolist()
            assert math.isnan(found[0])
            assert found[1:] == [0, 1]


def test_minus_infinity_has_no_code_in_an_unsigned_format():
    """So it is NaN there; and refused by a format that has none."""
    x = torch.tensor([-1.0, 1.0, math.inf])
    codes = altcore.encode(x, "binary8p4ue", overflow="inf")
    assert codes.tolist() == [0xFF, 0x80, 0xFE]
    bare = altcore.code_format("BARE", [0.0, 1.0, math.inf])
    with pytest.raises(BadInput, match=r"^-inf cannot be encoded: format BARE has neither"):
        altcore.encode(x, bare, overflow="inf")
    assert altcore.encode(x[1:], bare, overflow="inf").tolist() == [1, 2]
