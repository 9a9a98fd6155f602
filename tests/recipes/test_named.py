"""The named recipes: what each covers, and the names of runs."""

import pytest
import torch
from helpers_recipes import LAYERS, covered

from altcore import BadInput, get_format
from altcore.cli.summary import lines
from altcore.quantization import find_layers
from altcore.recipes import (
    NAMED,
    OPERANDS,
    Scaling,
    read_recipe,
    takes_format,
)
from altcore.recipes.reading import parse
from altcore_workloads.gpt import Gpt


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


def test_a_named_recipe_leaves_out_what_no_layer_has(gpt):
    """A model without embeddings trains under `original`; a recipe of the user's is refused."""
    linear = [layer for layer in gpt if not layer.name.endswith(("wte", "wpe"))]
    recipe = read_recipe("original", get_format("E3M4"))
    each = dict.fromkeys(("weight@fwd", "weight@dgrad", "weight_gradient"), "E3M4")
    assert covered(recipe, linear) == {n: each for n in ALL if not n.endswith(("wte", "wpe"))}
    given = read_recipe({"layers": {"<any>": {"weight@lookup": "E3M4", "weight@fwd": "E3M4"}}})
    with pytest.raises(BadInput, match="weight@lookup, which none of its layers has"):
        given.resolve(linear)


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
