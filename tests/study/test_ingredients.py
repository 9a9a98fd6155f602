"""An ablation leaves out one ingredient of a recipe, and nothing else."""

import pytest
from helpers_contenders import LAYERS, made

from altcore import BadInput
from altcore.recipes import read_recipe
from altcore.study.differences import pairs
from altcore.study.ingredients import ablations

LAST = "h.3.fc"


@pytest.fixture(scope="module")
def nvfp4():
    """Its casts, by layer, and those without each ingredient."""
    recipe = read_recipe("nvfp4")
    found = ablations(recipe, LAYERS)
    return recipe.resolve(LAYERS), {name: left.resolve(LAYERS) for name, left in found.items()}


def test_the_ingredients_of_nvfp4_are_those_of_its_paper(nvfp4):
    """Of arXiv 2509.25149: all that its recipe says besides the format."""
    assert list(nvfp4[1]) == [
        *("no-stochastic", "no-hadamard", "no-square-blocks"),
        *("no-wide-last-15%", "no-wide-head", "bare"),
    ]


@pytest.mark.parametrize(
    ("name", "part", "before", "after"),
    [
        ("no-stochastic", "gradient@dgrad", "stochastic", "nearest-even"),
        ("no-hadamard", "gradient@wgrad", 16, 0),
        ("no-square-blocks", "weight@dgrad", True, False),
    ],
)
def test_one_thing_is_another(nvfp4, name, part, before, after):
    whole, left = nvfp4

    def held(plan):
        cast = plan["h.0.fc"][part]
        return {"no-stochastic": cast.rounding, "no-hadamard": cast.hadamard}.get(
            name, cast.blocks.is_square
        )

    assert (held(whole), held(left[name])) == (before, after)
    assert held(left["bare"]) == after
    assert whole.keys() == left[name].keys()
    for layer in (LAST, "head"):
        assert whole[layer] == left[name][layer]


def test_square_blocks_become_those_along_the_axis(nvfp4):
    """As activations have them; nothing but blocks is another."""
    cast = nvfp4[1]["no-square-blocks"]["h.0.fc"]["weight@fwd"]
    plain = read_recipe("NVFP4").resolve(LAYERS)["h.0.fc"]["weight@fwd"].format
    parts = ("element", "block", "rule", "scale_format", "is_square")
    assert [getattr(cast.format, p) for p in parts] == [getattr(plain, p) for p in parts]


def test_layers_that_are_left_wide_are_an_ingredient_each(nvfp4):
    whole, left = nvfp4
    assert not any(whole[LAST].values())
    assert left["no-wide-last-15%"][LAST] == whole["h.0.fc"]
    assert not any(left["no-wide-last-15%"]["head"].values())
    assert any(left["no-wide-head"]["head"].values())
    assert not any(left["no-wide-head"][LAST].values())


def test_scales_and_delays_are_ingredients():
    mxfp8 = ablations(read_recipe("mxfp8"), LAYERS)
    cast = mxfp8["no-scale-rule"].resolve(LAYERS)["h.0.fc"]["weight@fwd"]
    assert (cast.format.rule, cast.format.element.name) == ("floor", "E4M3")
    ((name, left), *others) = ablations(read_recipe("original", "E4M3"), LAYERS).items()
    scaling = left.resolve(LAYERS)["h.0.fc"]["weight@fwd"].scaling
    assert (name, scaling.kind, scaling.margin, others) == (
        "no-delayed-scaling",
        "tensor",
        1.01,
        [],
    )


def test_the_whole_recipe_is_held_against_each_that_lacks_something():
    """With every rounding and optimizer for itself; the share closed is then the ingredient's."""
    arms = made(ablate={"mx": "mxfp8"}, optimizers=["adamw", "sgd"])
    left = ["mx-no-scale-rule", "mx-no-wide-head", "mx-bare"]
    assert pairs(arms, None) == [(f"mx/{o}", f"{n}/{o}") for n in left for o in ("adamw", "sgd")]


def test_a_recipe_without_ingredients_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("weight: FORMAT\n")
    with pytest.raises(BadInput, match=r"--ablate E4M3:mine\.yaml: it has no ingredient"):
        made(ablate={"mine": "E4M3:mine.yaml"})
