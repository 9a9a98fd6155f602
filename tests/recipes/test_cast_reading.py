"""Reading one cast: a format's name, none, or a mapping of its parts."""

import pytest
from attrs import evolve
from helpers_recipes import LAYERS

from altcore import BadInput, ChangeRecipe, Stochastic, get_format
from altcore.formats import float_format
from altcore.recipes import Cast, Scaling, read_recipe
from altcore.recipes.cast_reading import Place, read_cast
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
    with pytest.raises(BadInput, match=rf"{role}: .*a single scale"):
        parse({role: {"format": "E4M3", "scaling": scaling}}, "mine")


@pytest.mark.parametrize("overflow", ["inf", "nan", "raise"])
def test_a_stored_weight_saturates(overflow, tmp_path):
    """Another rule would be ignored, and is refused by its line; a moment keeps it."""
    path = tmp_path / "r.yaml"
    path.write_text(f"stored_weight:\n  format: E5M2\n  overflow: {overflow}\n")
    with pytest.raises(BadInput, match=r"stored_weight\.overflow: a stored weight sat") as caught:
        read_recipe(str(path))
    assert caught.value.source.line == 3
    moment = parse({"optimizer_state": {"format": "E5M2", "overflow": overflow}}).resolve(LAYERS)
    assert moment["a.q"]["optimizer_state"].overflow == overflow


@pytest.mark.parametrize(
    ("rounding", "settings"),
    [
        ({"kind": "stochastic", "random_bits": 4, "few_bits": "floor"}, Stochastic(4, "floor")),
        ({"random_bits": 8}, Stochastic(8)),
        (Stochastic(3), Stochastic(3)),
    ],
)
def test_stochastic_rounding_by_a_few_bits(rounding, settings):
    """As a mapping; a plain form keeps it, and the usual rounding stays a name there."""
    cast = read_cast({"format": "E4M3", "rounding": rounding}, Place())
    assert cast == Cast(get_format("E4M3"), Scaling("tensor"), "stochastic", stochastic=settings)
    assert read_cast(cast.to_plain(), Place()) == cast
    assert evolve(cast, stochastic=Stochastic()).to_plain()["rounding"] == "stochastic"


@pytest.mark.parametrize(
    ("rounding", "problem"),
    [
        ({"random_bits": 0}, r"rounding\.random_bits: 0 is not from 1 to 32"),
        ({"random_bits": 33}, "33 is not from 1 to 32"),
        ({"random_bits": "4"}, "'4' has the wrong type"),
        ({"random_bit": 4}, r"unknown key 'random_bit' \(did you mean random_bits\?\)"),
        ({"few_bits": "flor"}, r"few_bits: 'flor' is unknown \(did you mean floor\?\)"),
        ({"kind": "nearest"}, "rounding.kind: 'nearest' is unknown"),
    ],
)
def test_a_wrong_setting_of_stochastic_rounding(rounding, problem):
    with pytest.raises(BadInput, match=problem):
        parse({"weight": {"format": "E4M3", "rounding": rounding}})


def test_nearest_is_nearest_even():
    """In a recipe, in a change of one, and in a cast that Python makes."""
    short = parse({"weight": {"format": "E4M3", "rounding": "nearest"}})
    assert short == parse({"weight": {"format": "E4M3", "rounding": "nearest-even"}})
    assert ChangeRecipe(rounding="nearest", reason="r").rounding == "nearest-even"
    assert Cast(get_format("E4M3"), Scaling("none"), rounding="nearest").rounding == "nearest-even"


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("margin: 1.0e39", "'margin' must be <= 3.4"),
        ("margin: 1" + "0" * 400, "is beyond float64"),
        ("history: 100000000000000000000", "is beyond 64 bits"),
        ("history: 100000000000", "'history' must be <= 1000000"),
        ("block: 100000000000000000000", "is beyond 64 bits"),
        ("quantile: 1" + "0" * 400, "is beyond float64"),
    ],
)
def test_numbers_that_nothing_holds_are_refused(part, problem, tmp_path):
    """Before torch or C meets them: by the line, and not printed whole."""
    path = tmp_path / "r.yaml"
    path.write_text(f"weight:\n  format: E4M3\n  scaling:\n    kind: delayed\n    {part}\n")
    with pytest.raises(BadInput, match=r"weight\.scaling.*") as caught:
        read_recipe(str(path))
    assert problem in str(caught.value)
    assert caught.value.source.line == 5
    assert len(str(caught.value)) < 300


def test_a_whole_margin_is_a_float():
    """Torch multiplies by no whole number of more than 64 bits."""
    cast = read_cast({"format": "E4M3", "scaling": {"margin": 10**30}}, Place())
    assert type(cast.scaling.margin) is float


def test_a_misspelt_placeholder_is_named(tmp_path):
    """Whatever --format says: the recipe is at fault."""
    path = tmp_path / "r.yaml"
    path.write_text("name: mine\nweight: FROMAT\n")
    with pytest.raises(BadInput, match=r"unknown format 'FROMAT' \(did you mean FORMAT\?\)") as hit:
        read_recipe(str(path), "E4M3")
    assert (hit.value.key, hit.value.source.line) == ("recipe", 2)


def test_a_cast_that_saturates_lists_no_codes():
    """A wide format has half a million, and its cast is read a hundred times in a run."""
    fmt = float_format("E8M10", 8, 10, specials="ieee")
    assert read_cast({"format": fmt, "scaling": "none"}, Place()).overflow == "saturate"
    assert not {"code_values", "inf_codes", "nan_codes"} & vars(fmt).keys()
    small = float_format("E4M3", 4, 3, specials="ieee")
    assert read_cast({"format": small, "overflow": "inf"}, Place()).overflow == "inf"
