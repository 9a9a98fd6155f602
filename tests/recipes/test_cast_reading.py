"""Reading one cast: a format's name, none, or a mapping of its parts."""

import pytest
from helpers_recipes import LAYERS

from altcore import BadInput, ChangeRecipe, get_format
from altcore.recipes import (
    Cast,
    Scaling,
)
from altcore.recipes.reading import parse


@pytest.mark.parametrize(
    ("value", "cast"),
    [
        ("E4M3", Cast(get_format("E4M3"), Scaling("tensor"))),
        ("BF16", Cast(get_format("BF16"), Scaling("none"))),
        ("none", None),
        (None, None),
        ({"format": "none"}, None),
        ({"format": "E4M3", "scaling": "none"}, Cast(get_format("E4M3"), Scaling("none"))),
        (
            {"format": "E4M3", "scaling": "power-of-two", "rounding": "stochastic"},
            Cast(get_format("E4M3"), Scaling("tensor", power_of_two=True), "stochastic"),
        ),
        (
            {"format": "E5M2", "scaling": {"kind": "delayed", "margin": 2}, "overflow": "inf"},
            Cast(get_format("E5M2"), Scaling("delayed", margin=2), overflow="inf"),
        ),
    ],
)
def test_what_a_role_may_say(value, cast):
    """A format, none, or the four parts; scaling has a short and a long form."""
    plan = parse({"weight": value}, "r").resolve(LAYERS)
    assert plan["a.q"]["weight@fwd"] == plan["a.q"]["weight@dgrad"] == cast


@pytest.mark.parametrize("scaling", ["delayed", {"kind": "tensor", "margin": 1.5}])
@pytest.mark.parametrize("role", ["stored_weight", "optimizer_state"])
def test_what_is_stored_has_a_scale_of_its_own(role, scaling):
    """A scaling that would be ignored is refused, naming the role."""
    with pytest.raises(BadInput, match=rf"{role}: .*one scale of its own"):
        parse({role: {"format": "E4M3", "scaling": scaling}}, "mine")


def test_nearest_is_nearest_even():
    """In a recipe, in a change of one, and in a cast that Python makes."""
    short = parse({"weight": {"format": "E4M3", "rounding": "nearest"}})
    assert short == parse({"weight": {"format": "E4M3", "rounding": "nearest-even"}})
    assert ChangeRecipe(rounding="nearest", reason="r").rounding == "nearest-even"
    assert Cast(get_format("E4M3"), Scaling("none"), rounding="nearest").rounding == "nearest-even"
