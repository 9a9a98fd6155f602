"""Recipes: what a file says, how it is resolved for a model, and what the named ones cover."""

import json

import pytest
import torch
from attrs import evolve
from torch import nn

from altcore import BadInput, float_format, get_format
from altcore.cli.summary import lines
from altcore.errors import Source
from altcore.quantization import find_layers
from altcore.quantization.discovery import find_heads
from altcore.recipes import (
    NAMED,
    OPERANDS,
    ROLES,
    Cast,
    Layer,
    Scaling,
    change,
    operands_of,
    read_recipe,
    resolved_from_plain,
    resolved_to_plain,
    takes_format,
)
from altcore.recipes.reading import parse
from altcore_workloads.gpt import Gpt

LAYERS = [
    Layer("emb", "embedding"),
    Layer("a.q", "linear"),
    Layer("a.k", "linear"),
    Layer("conv", "other"),
    Layer("head", "linear", is_head=True),
]


def covered(recipe, layers=LAYERS):
    """{layer: {operand: format name}} of what is quantized."""
    plan = recipe.resolve(layers)
    return {
        layer: {o: c.format.name for o, c in casts.items() if c}
        for layer, casts in plan.items()
        if any(casts.values())
    }


# ------------------------------------------------------------------------------ parsing


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"wieght": "E4M3"}, r"recipe r: unknown key 'wieght' \(did you mean weight\?\)"),
        ({"weight@fdw": "E4M3"}, r"'weight@fdw' \(did you mean weight@fwd\?\)"),
        ({"weight": "E4M"}, r"unknown format 'E4M' \(did you mean E4M3\?\)"),
        ({"weight": 4}, "recipe r: weight: 4 is neither a format's name"),
        ({"weight": {"scaling": "none"}}, "recipe r: weight: format is missing"),
        (
            {"weight": {"format": "E4M3", "scalign": "none"}},
            r"'scalign' \(did you mean scaling\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "rounding": "nearest-evn"}},
            r"weight\.rounding: 'nearest-evn' is unknown \(did you mean nearest-even\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "overflow": "saturat"}},
            r"weight\.overflow: 'saturat' is unknown \(did you mean saturate\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "overflow": "inf"}},
            r"weight\.overflow: format E4M3 has no inf code",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": "tensr"}},
            r"weight\.scaling: 'tensr' is unknown \(did you mean tensor\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"kind": "delayed", "histroy": 3}}},
            r"weight\.scaling: unknown key 'histroy' \(did you mean history\?\)",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"margin": "1"}}},
            r"weight\.scaling\.margin: '1' has the wrong type",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"history": True}}},
            r"weight\.scaling\.history: True has the wrong type",
        ),
        (
            {"weight": {"format": "E4M3", "scaling": {"power_of_two": 1}}},
            r"weight\.scaling\.power_of_two: 1 has the wrong type",
        ),
        ({"weight": {"format": "E4M3", "scaling": {"margin": 0}}}, r"weight\.scaling: .*margin"),
        ({"weight": {"format": "E4M3", "scaling": {"history": 0}}}, r"weight\.scaling: .*history"),
        ({"layers": ["a"]}, "layers: a mapping of patterns"),
        ({"layers": {"a.*": "E4M3"}}, r"layers\.a\.\*: a mapping of roles"),
        (
            {"layers": {"a.*": {"activaton": "E4M3"}}},
            r"layers\.a\.\*: unknown key 'activaton' \(did you mean activation\?\)",
        ),
        (
            {"layers": {"<lineer>": {"weight": "E4M3"}}},
            r"unknown selector '<lineer>' \(did you mean <linear>\?\)",
        ),
        ({"layers": {3: {"weight": "E4M3"}}}, "the pattern 3 is not text"),
        ({"skip": "head"}, "skip: a list of patterns"),
        ({"skip": ["<haed>"]}, r"unknown selector '<haed>' \(did you mean <head>\?\)"),
        ([], "is not a mapping"),
        ("E4M3", "is not a mapping"),
    ],
)
def test_errors_name_the_key_and_the_nearest(data, says):
    """Whatever is wrong, the message says where and what would be right."""
    with pytest.raises(BadInput, match=says):
        parse(data, "r")


def test_messages_name_the_file():
    """So that one knows which of several is meant."""
    with pytest.raises(BadInput, match=r"recipe mine: unknown key.*\(given in mine\.yaml\)"):
        parse({"x": 1}, "mine", Source("mine.yaml"))


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


# ----------------------------------------------------------------------------- matching


def test_a_role_means_all_its_operands():
    """weight, activation and gradient are two operands each, the others themselves."""
    assert operands_of("weight") == ("weight@fwd", "weight@dgrad", "weight@lookup")
    assert operands_of("gradient") == ("gradient@dgrad", "gradient@wgrad")
    assert operands_of("weight_gradient") == ("weight_gradient",)
    assert sorted(o for r in ROLES for o in operands_of(r)) == sorted(OPERANDS)
    with pytest.raises(BadInput, match="did you mean weight@dgrad"):
        operands_of("weight@dgrd")


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


# -------------------------------------------------------------------------------- named


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """The layers of the workload gpt at size tiny."""
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text("to be or not to be " * 100)
    model = Gpt(size="tiny", data=str(path)).build(0, torch.device("cpu")).model
    return [layer for layer, _ in find_layers(model).values()]


BLOCKS = [
    f"transformer.h.{i}.{part}"
    for i in (0, 1)
    for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
]
ALL = ["transformer.wte", "transformer.wpe", *BLOCKS, "lm_head"]
PRODUCTS = dict.fromkeys(OPERANDS[:6], "E3M4")


def test_master_covers_every_linear_but_the_head(gpt):
    """weight, activation and gradient of both operands' products, and nothing else."""
    assert covered(read_recipe("master", get_format("E3M4")), gpt) == dict.fromkeys(
        BLOCKS, PRODUCTS
    )


def test_pure_also_stores_every_matrix(gpt):
    """Embeddings and the head included, whose products stay in float32."""
    stored = {"stored_weight": "E3M4"}
    expected = {name: stored | (PRODUCTS if name in BLOCKS else {}) for name in ALL}
    assert covered(read_recipe("pure", get_format("E3M4")), gpt) == expected


def test_original_covers_weights_and_their_gradients(gpt):
    """Weights of two or more dimensions with delayed scaling, weight gradients with their own."""
    recipe = read_recipe("original", get_format("E3M4"))
    each = dict.fromkeys(("weight@fwd", "weight@dgrad", "weight_gradient"), "E3M4")
    looked_up = dict.fromkeys(("weight@lookup", "weight_gradient"), "E3M4")
    expected = {n: looked_up if n.endswith(("wte", "wpe")) else each for n in ALL}
    assert covered(recipe, gpt) == expected
    casts = recipe.resolve(gpt)["transformer.wte"]
    assert casts["weight@lookup"].scaling == Scaling("delayed", margin=1.01, history=16)
    assert casts["weight_gradient"].scaling == Scaling("tensor", margin=1.01)


def test_lookups_are_quantized_by_their_own_name_alone(gpt):
    """At the top level, where weight means products."""
    both = covered(parse({"weight": "E3M4", "weight@lookup": "E5M2"}, "mine"), gpt)
    products = dict.fromkeys(("weight@fwd", "weight@dgrad"), "E3M4")
    looked_up = {"weight@lookup": "E5M2"}
    assert both == {n: looked_up if n.endswith(("wte", "wpe")) else products for n in ALL}
    with pytest.raises(BadInput, match="weight@lookup, which none of its layers has"):
        parse({"weight": "E3M4", "weight@lookup": "E5M2"}, "mine").resolve(LAYERS[1:3])


@pytest.mark.parametrize("name", NAMED)
def test_without_a_format_nothing_is_quantized(gpt, name):
    """``--format none`` is the float32 run, whatever the recipe, unless it has its own formats."""
    if takes_format(name):
        assert covered(read_recipe(name, "none"), gpt) == {}
    else:
        assert covered(read_recipe(name, "none"), gpt)
        with pytest.raises(BadInput, match=f"recipe {name} has formats of its own: .* E4M3"):
            read_recipe(name, get_format("E4M3"))


def test_an_unknown_recipe_offers_the_nearest():
    """And says that a file may be given."""
    with pytest.raises(BadInput, match=r"'mastr' \(did you mean master\?\): .*\.yaml"):
        read_recipe("mastr", "none")


class Wrapper(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self):
        super().__init__()
        self.base_layer, self.lora = nn.Linear(2, 2), nn.Linear(2, 2)


def test_the_head_is_found():
    """By what the model says, else the last Linear, with what is wrapped around it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert find_heads(model) == [model[1]]
    model.get_output_embeddings = lambda: model[0]
    assert find_heads(model) == [model[0]]
    assert find_heads(model, None) == []
    assert find_heads(model, "1") == [model[1]]
    with pytest.raises(BadInput, match="the model has no module '2'"):
        find_heads(model, "2")
    model.get_output_embeddings = lambda: None
    assert find_heads(model) == [model[1]]
    model.base_model = model  # as base models of the transformers library
    assert find_heads(model) == []
    wrapped = nn.Sequential(nn.Linear(2, 2), Wrapper())
    assert find_heads(wrapped) == [wrapped[1]]
    heads = [layer.name for layer, _ in find_layers(wrapped).values() if layer.is_head]
    assert heads == ["1.base_layer", "1.lora"]


# ------------------------------------------------------------------------------- change


def plan_of(data):
    """A plan for LAYERS."""
    return parse(data, "r").resolve(LAYERS)


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


# --------------------------------------------------------------------------- plain data


def test_plans_round_trip_through_plain_data():
    """By way of JSON: everything that a cast holds comes back."""
    delayed = {"kind": "delayed", "margin": 1.5, "history": 3, "power_of_two": True}
    plan = plan_of(
        {
            "weight": {"format": "E5M2", "scaling": delayed, "overflow": "inf"},
            "gradient@wgrad": {"format": "E2M1", "rounding": "stochastic"},
            "stored_weight": "BF16",
            "layers": {"conv": {"weight_gradient": "E7M0"}},
            "skip": ["a.k"],
        }
    )
    assert resolved_from_plain(json.loads(json.dumps(resolved_to_plain(plan)))) == plan


def test_a_plan_may_hold_formats_that_are_not_installed():
    """They are whole in the data, since their names mean nothing elsewhere."""
    plan = plan_of({"weight": float_format("MINE", 3, 2), "gradient": float_format("E4M3", 4, 3)})
    plain = json.loads(json.dumps(resolved_to_plain(plan)))
    assert resolved_from_plain(plain) == plan
    assert {c["format"]["name"] for x in plain.values() for c in x.values()} == {"MINE", "E4M3"}


@pytest.mark.parametrize("scaling", ["delayed", {"kind": "tensor", "margin": 1.5}])
@pytest.mark.parametrize("role", ["stored_weight", "optimizer_state"])
def test_what_is_stored_has_a_scale_of_its_own(role, scaling):
    """A scaling that would be ignored is refused, naming the role."""
    with pytest.raises(BadInput, match=rf"{role}: .*one scale of its own"):
        parse({role: {"format": "E4M3", "scaling": scaling}}, "mine")


def test_a_run_is_called_by_what_it_quantizes(start):
    """By the format and the recipe; by the recipe alone where that has formats of its own."""
    mx = start(recipe="mxfp8", max_steps=1)
    assert (mx.run_directory.name, mx.format_name) == ("mxfp8", "MXFP8-E4M3-rceil")
    own = start(recipe={"weight": "E4M3", "activation": "E5M2"}, max_steps=1)
    assert (own.run_directory.name, own.format_name) == ("given", "E4M3, E5M2")
    placed = start(recipe={"weight": "FORMAT"}, format="E3M4", max_steps=1)
    assert (placed.run_directory.name, placed.format_name) == ("e3m4-given", "E3M4")
    plain = start(max_steps=1)
    assert (plain.run_directory.name, plain.format_name) == ("none-master", "none")


@pytest.mark.parametrize(
    ("file", "name"), [("Mine.yaml", "mine"), ("my (2).yml", "my-2"), ("ä.yaml", "given")]
)
def test_a_run_of_a_recipes_file_is_called_by_the_file(start, tmp_path, file, name):
    """As far as that makes a name; the record says the file and the formats."""
    (tmp_path / file).write_text("weight: E4M3\nactivation: E5M2\n")
    run = start(recipe=str(tmp_path / file), max_steps=1)
    assert run.run_directory.name == name
    assert (run.summary["format"], run.summary["recipe"]) == ("E4M3, E5M2", file)
    assert dict(lines(run.summary))["format, recipe"] == f"E4M3, E5M2 ({file})"


def test_format_stands_for_the_runs_format():
    """In a file, FORMAT without one is an error that says so."""
    with pytest.raises(BadInput, match="FORMAT stands for the run's format, and none is given"):
        parse({"weight": "FORMAT"}, "mine")
