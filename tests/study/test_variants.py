"""Counterfactual casts differ from theirs in one thing: the rounding, or the format."""

import pytest
from attrs import evolve

from altcore import get_format, table_format
from altcore.recipes.cast_reading import Place, read_cast
from altcore.study.variants import above, below, finer, is_fixed_point, rescaled, variants

NAMES = (
    *("E4M3", "E5M2", "E3M4", "E7M0", "E2M1", "E0M7", "INT8"),
    *("posit8_1", "LOG4_3-by-value", "FP4-BNB"),
)


@pytest.mark.parametrize("name", NAMES)
def test_each_keeps_the_values_and_changes_one_thing(name):
    """Above: only beyond the largest. Below: only under the smallest. Finer: only between."""
    fmt = get_format(name)
    values = {v for v in fmt.values if abs(v) <= fmt.max}
    top, least = fmt.max, fmt.smallest
    wide, deep, fine = (
        {v for v in f(fmt).values if v > 0 and v not in values} for f in (above, below, finer)
    )
    for made in (above(fmt), below(fmt), finer(fmt)):
        assert values <= set(made.values), made.name
    assert wide
    assert all(v > top for v in wide)
    assert deep
    assert all(v < least for v in deep) or not is_fixed_point(fmt)
    assert max(deep) < top
    assert fine
    assert all(v < top for v in fine)
    assert all(v > least for v in fine) or is_fixed_point(fmt)


def test_signs_that_differ_are_extended_by_themselves():
    """A table's negative values go on as they do, not as the positive ones."""
    fmt = table_format("T", [-8, -2, 0, 0.5, 1])
    assert [v for v in above(fmt).values if v < 0][-3:] == [-16, -8, -2]
    assert {-1, -0.5} <= set(below(fmt).values)
    assert [v for v in finer(fmt).values if v < 0] == [-8, -6.5, -5, -3.5, -2]
    assert [v for v in finer(fmt).values if v > 0] == [0.5, 0.625, 0.75, 0.875, 1]
    assert not is_fixed_point(table_format("U", [-4, -1, 0, 1, 2]))


def test_finer_has_two_more_bits():
    """Three new values in each interval, evenly."""
    fmt, fine = get_format("E4M3"), finer(get_format("E4M3"))
    assert len([v for v in fine.values if 1 <= v < 2]) == 4 * len(
        [v for v in fmt.values if 1 <= v < 2]
    )


def test_which_make_sense():
    """None above where nothing can overflow; fixed point does not tell finer from lower."""
    assert set(variants(read_cast("E4M3", Place()))) == {"stochastic", "below", "finer"}
    assert set(variants(read_cast("E0M7", Place()))) == {"stochastic", "finer"}
    unscaled = read_cast({"format": "E4M3", "scaling": "none"}, Place())
    assert set(variants(unscaled)) == {"stochastic", "above", "below", "finer"}
    delayed = variants(read_cast({"format": "E4M3", "scaling": "delayed"}, Place()))
    assert delayed["above"].scaling.margin == above(get_format("E4M3")).max / 448
    assert set(variants(read_cast("MXFP4", Place()))) == {"stochastic", "below", "finer"}


def test_nothing_is_made_that_cannot_differ():
    """A format with the range of float32 misses no size; the widest ones have no code left."""
    assert set(variants(read_cast("BF16", Place()))) == {"stochastic", "finer"}
    assert set(variants(read_cast("TF32", Place()))) == {"stochastic"}


@pytest.mark.parametrize("rounding", ["nearest-even", "to-zero", "stochastic"])
def test_stochastic_rounding_keeps_the_format(rounding):
    """Only the rule of rounding differs; there is no such variant of what has it already."""
    cast = read_cast({"format": "E7M0", "rounding": rounding}, Place())
    made = variants(cast)
    assert ("stochastic" in made) == (rounding != "stochastic")
    if "stochastic" in made:
        assert evolve(made["stochastic"], rounding=rounding) == cast
    assert made["finer"].rounding == cast.rounding


def test_few_random_bits_have_a_variant_with_all():
    """They may be biased, too."""
    few = {"kind": "stochastic", "random_bits": 4, "few_bits": "floor"}
    cast = read_cast({"format": "E7M0", "rounding": few}, Place())
    wanted = read_cast({"format": "E7M0", "rounding": "stochastic"}, Place())
    assert variants(cast)["stochastic"] == wanted


@pytest.mark.parametrize(
    ("scaling", "wanted"),
    [
        ("none", "tensor"),
        ("delayed", "tensor"),
        ({"kind": "tensor", "margin": 0.5}, "tensor"),
        ({"kind": "tensor", "power_of_two": True}, {"kind": "tensor", "power_of_two": True}),
        ({"kind": "channel", "margin": 2.0**40}, "channel"),
        ({"kind": "block", "block": 16}, {"kind": "block", "block": 16}),
    ],
)
def test_a_scale_becomes_the_exact_amax(scaling, wanted):
    """In the same format; what has it already stays as it is."""
    made = rescaled(read_cast({"format": "E4M3", "scaling": scaling}, Place()))
    assert made == read_cast({"format": "E4M3", "scaling": wanted}, Place())
    assert made.uses_amax
    blocks = read_cast("MXFP4", Place())
    assert rescaled(blocks) == blocks


def test_they_are_made_once():
    """Kernels are prepared for each format object: equal casts get the same one."""
    first, second = (variants(read_cast("E4M3", Place())) for _ in range(2))
    assert all(first[cause].format is second[cause].format for cause in ("below", "finer"))
