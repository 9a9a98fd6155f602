"""Changes of a resolved recipe while a run goes."""

import pytest
from attrs import evolve
from helpers_recipes import plan_of

from altcore import BadInput, get_format
from altcore.recipes import (
    Cast,
    Scaling,
    change,
)


def test_a_change_without_roles_touches_what_is_quantized():
    """What was left alone stays so."""
    plan = plan_of({"weight": "E4M3", "skip": ["a.k"]})
    changed = change(plan, ["*"], [], format=get_format("E5M2"))
    assert changed["a.q"]["weight@fwd"] == Cast(get_format("E5M2"), Scaling("tensor"))
    assert changed["a.q"]["activation@fwd"] is None
    assert changed["a.k"] == plan["a.k"]
    assert plan["a.q"]["weight@fwd"].format.name == "E4M3", "the plan that was given stays"


def test_a_change_with_roles_may_add():
    """A role that is named is quantized from now on."""
    changed = change(plan_of({}), ["a.q"], ["gradient@wgrad"], format=get_format("E5M2"))
    assert {o for o, c in changed["a.q"].items() if c} == {"gradient@wgrad"}


def test_a_change_of_one_part_keeps_the_others():
    """Format, scaling and rounding are changed each on its own."""
    plan = plan_of({"weight": {"format": "E4M3", "scaling": "none", "rounding": "up"}})
    before = plan["a.q"]["weight@fwd"]
    for part, value in (
        ("format", get_format("E5M2")),
        ("scaling", Scaling("delayed")),
        ("rounding", "down"),
    ):
        changed = change(plan, ["a.q"], ["weight"], **{part: value})
        assert changed["a.q"]["weight@fwd"] == evolve(before, **{part: value})


def test_a_shift_to_float32s_range_drops_the_scale_and_back():
    """BF16 needs none, and E4M3 cannot do without."""
    plan = plan_of({"weight": "E4M3"})
    wide = change(plan, ["a.q"], [], format=get_format("BF16"))
    assert wide["a.q"]["weight@fwd"].scaling.kind == "none"
    assert change(wide, ["a.q"], [], format=get_format("E4M3"))["a.q"] == plan["a.q"]


def test_a_shift_keeps_a_scaling_that_was_chosen():
    """Powers of two, delayed scaling or none at all are what the user wanted."""
    for scaling in ("none", "power-of-two", "delayed"):
        plan = plan_of({"weight": {"format": "E4M3", "scaling": scaling}})
        shifted = change(plan, ["a.q"], [], format=get_format("E5M2"))
        assert shifted["a.q"]["weight@fwd"].scaling == plan["a.q"]["weight@fwd"].scaling


def test_a_shift_to_a_format_without_infinities_saturates():
    """An overflow rule that the new format has no code for cannot go with it."""
    plan = plan_of({"weight": {"format": "E5M2", "overflow": "inf"}})
    shifted = change(plan, ["a.q"], [], format=get_format("E4M3"))
    assert shifted["a.q"]["weight@fwd"].overflow == "saturate"
    nan = plan_of({"weight": {"format": "E5M2", "overflow": "nan"}})
    shifted = change(nan, ["a.q"], [], format=get_format("E4M3"))
    assert shifted["a.q"]["weight@fwd"].overflow == "nan", "E4M3 has a NaN code"


def test_a_change_to_none():
    """The operand is left alone from now on."""
    changed = change(plan_of({"weight": "E4M3"}), ["*"], [], format=None)
    assert not any(c for casts in changed.values() for c in casts.values())


def test_a_change_that_matches_nothing_is_refused():
    """Patterns are as in a recipe."""
    with pytest.raises(BadInput, match=r"for b\.\* matches no layer"):
        change(plan_of({}), ["b.*"], [], format=None)
