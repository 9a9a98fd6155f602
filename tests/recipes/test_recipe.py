"""Recipes resolved for a model: which rule wins, and which layers a pattern means."""

import pytest
from helpers_recipes import LAYERS, covered

from altcore import BadInput, get_format
from altcore.recipes import Layer, change
from altcore.recipes.reading import parse


def test_a_name_with_brackets_is_meant_by_itself():
    """A key of a ModuleDict may have some; as a pattern they stand for one character."""
    layers = [Layer(name, "linear") for name in ("x[1]", "x1", "y")]
    recipe = parse({"layers": {"x[1]": {"weight": "E4M3"}}}, "r")
    assert list(covered(recipe, layers)) == ["x[1]", "x1"]
    changed = change(recipe.resolve(layers), ["x[1]"], [], format=get_format("E5M2"))
    assert changed["x[1]"]["weight@fwd"].format.name == "E5M2"
    with pytest.raises(BadInput, match="matches no layer"):
        change(recipe.resolve(layers), ["x[2]"], [], format=None)


def test_an_operand_wins_over_its_role_whatever_the_order():
    """The narrower key is meant."""
    for keys in (("weight", "weight@dgrad"), ("weight@dgrad", "weight")):
        data = {k: {"weight": "E4M3", "weight@dgrad": "E5M2"}[k] for k in keys}
        assert covered(parse(data, "r"))["a.q"] == {"weight@fwd": "E4M3", "weight@dgrad": "E5M2"}


def test_top_level_roles_mean_layers_with_products_and_stored_ones_every_layer():
    """An embedding has no product; what is stored is any parameter with two dimensions."""
    found = covered(parse({"activation": "E4M3", "stored_weight": "E5M2"}, "r"))
    both = {"activation@fwd": "E4M3", "activation@wgrad": "E4M3", "stored_weight": "E5M2"}
    alone = {"stored_weight": "E5M2"}
    assert found == {"emb": alone, "a.q": both, "a.k": both, "conv": both, "head": both}


def test_the_last_match_wins():
    """Patterns are tried in the order of the file, an operand at a time."""
    layers = {
        "a.*": {"weight": "E5M2", "activation": "E5M2"},
        "*.q": {"weight": "E3M4"},
        "<head>": {"weight": "none"},
    }
    found = covered(parse({"weight": "E4M3", "layers": layers}, "r"))
    assert {k: v.get("weight@fwd") for k, v in found.items()} == {
        "a.q": "E3M4",
        "a.k": "E5M2",
        "conv": "E4M3",
    }
    assert found["a.q"]["activation@fwd"] == "E5M2"
    turned = covered(parse({"weight": "E4M3", "layers": dict(reversed(layers.items()))}, "r"))
    assert {k: v.get("weight@fwd") for k, v in turned.items()} == {
        "a.q": "E5M2",
        "a.k": "E5M2",
        "conv": "E4M3",
    }


def test_skip_wins_over_everything():
    """Whatever else is said of the layer, stored weights included."""
    data = {
        "stored_weight": "E4M3",
        "weight": "E4M3",
        "layers": {"a.q": {"weight": "E5M2"}},
        "skip": ["a.*", "<embedding>"],
    }
    assert set(covered(parse(data, "r"))) == {"conv", "head"}


@pytest.mark.parametrize(
    ("selector", "hits"),
    [
        ("<linear>", {"a.q", "a.k", "head"}),
        ("<embedding>", {"emb"}),
        ("<head>", {"head"}),
        ("<any>", {"emb", "a.q", "a.k", "conv", "head"}),
        ("a.?", {"a.q", "a.k"}),
        ("[ah]*", {"a.q", "a.k", "head"}),
    ],
)
def test_selectors_and_patterns(selector, hits):
    """Selectors go by what a layer is, patterns by its name."""
    assert set(covered(parse({"layers": {selector: {"weight": "E4M3"}}}, "r"))) == hits


@pytest.mark.parametrize("data", [{"layers": {"b.*": {"weight": "E4M3"}}}, {"skip": ["b.*"]}])
def test_a_pattern_that_matches_nothing_is_an_error(data):
    """It is always a typo; the message shows the layers that there are."""
    with pytest.raises(BadInput, match=r"pattern 'b\.\*' matches no layer.*layers are emb, a\.q"):
        parse(data, "r").resolve(LAYERS)


def test_a_selector_that_matches_nothing_is_none():
    """A model may have no embedding, and a recipe that skips it is right."""
    data = {"weight": "E4M3", "skip": ["<embedding>"]}
    assert set(covered(parse(data, "r"), LAYERS[1:2])) == {"a.q"}
