"""The arms of a comparison: what options make, what they are called, what holds against what."""

import pytest
from helpers_contenders import made

from altcore import BadInput
from altcore.formats import Stochastic
from altcore.study.cautions import about_same_runs
from altcore.study.contenders import same_runs
from altcore.study.differences import differences, pairs


def casts(contender, operand, layer="h.0.fc"):
    """The format and the rounding of an operand."""
    cast = contender.plan[layer][operand]
    return cast and (cast.format.name, cast.rounding)


# ------------------------------------------------------------------------------------ names


def test_an_arm_is_called_by_what_differs():
    assert [c.name for c in made(formats=["E4M3", "E7M0"])] == ["E4M3", "E7M0"]
    both = made(formats=["E4M3"], recipes=["master", "pure"], roundings=["up", "down"])
    assert [c.name for c in both] == [
        *("E4M3/master/up", "E4M3/master/down"),
        *("E4M3/pure/up", "E4M3/pure/down"),
    ]
    (one,) = made(formats=["E4M3"], roundings=["stochastic"], optimizers=["sgd:momentum=0.5"])
    assert one.name == "E4M3"
    assert (one.rounding, one.keys["optimizer"]) == ("stochastic", "sgd")


def test_runs_of_an_arm_have_one_name_whatever_it_is_compared_with():
    (one,) = made(formats=["E4M3"])
    several = made(formats=["E4M3", "E7M0"], roundings=["nearest"], optimizers=["adamw", "sgd"])
    assert one.key == "E4M3-master-adamw"
    assert [c.key for c in several] == [
        *("E4M3-master-nearest-adamw", "E4M3-master-nearest-sgd"),
        *("E7M0-master-nearest-adamw", "E7M0-master-nearest-sgd"),
    ]


def test_runs_of_one_name_are_refused():
    """They have fewer characters than those of arms: no mix-up."""
    with pytest.raises(BadInput, match=r"a:b would be called a_b-adamw, as those of a_b are"):
        made(arms={"a_b": "nvfp4", "a:b": "mxfp8"})


# --------------------------------------------------------------------------- what they hold


def test_a_rounding_is_that_of_all_casts_or_of_some_roles():
    """What a recipe leaves alone stays alone."""
    asked = ["nearest", "stochastic", "stored_weight+gradient=stochastic"]
    nearest, stochastic, some = made(formats=["E7M0"], recipes=["pure"], roundings=asked)
    for operand in ("weight@fwd", "gradient@wgrad", "stored_weight"):
        assert casts(nearest, operand) == ("E7M0", "nearest-even")
        assert casts(stochastic, operand) == ("E7M0", "stochastic")
    assert casts(some, "weight@fwd") == ("E7M0", "nearest-even")
    assert casts(some, "gradient@wgrad") == casts(some, "stored_weight") == ("E7M0", "stochastic")
    assert all(casts(c, "weight@fwd", "head") is None for c in (nearest, stochastic, some))


def test_a_rounding_may_have_settings():
    asked = ["stored_weight=stochastic:random_bits=8:few_bits=centred", "stochastic"]
    few, all_bits = made(formats=["E7M0"], recipes=["pure"], roundings=asked)
    held = [c.plan["h.0.fc"]["stored_weight"].stochastic for c in (few, all_bits)]
    assert held == [Stochastic(8, "centred"), Stochastic()]


def test_arms_are_published_recipes_files_formats_and_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("weight: E4M3\n")
    (tmp_path / "any.yaml").write_text("weight: FORMAT\n")
    arms = {"full": "nvfp4", "own": "own.yaml", "any": "E2M1:any.yaml", "E5M2": "E5M2"}
    found = {c.name: c for c in made(arms={**arms, "float32": "none"})}
    assert list(found) == [*arms, "float32"]
    assert casts(found["full"], "weight@fwd") == ("NVFP4-square", "nearest-even")
    assert casts(found["own"], "weight@fwd") == ("E4M3", "nearest-even")
    assert casts(found["any"], "weight@fwd") == ("E2M1", "nearest-even")
    assert casts(found["E5M2"], "gradient@dgrad") == ("E5M2", "nearest-even")
    assert not found["float32"].quantized


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "compare needs --formats, or recipes as --arms"),
        ({"roundings": ["nearst"]}, r"--roundings: nearst: 'nearst' is unknown .*nearest-even"),
        ({"roundings": ["stochastic:random_bits=0"]}, r"random_bits: 0 is not from 1 to 32"),
        ({"roundings": ["stochastic:random_bits"]}, r"'random_bits' is not KEY=VALUE"),
        ({"roundings": ["wight=up"]}, r"--roundings: unknown role 'wight' .*weight"),
        ({"arms": {"mine": "pure"}}, r"recipe pure: it says FORMAT.*E4M3:pure.*--arms mine"),
        ({"arms": {"mine": "E4M9x"}}, r"E4M9x.*--arms mine"),
        ({"arms": {"mine": "E4M3:nvfp4"}}, r"recipe nvfp4 has formats of its own.*--arms mine"),
    ],
)
def test_what_cannot_be_an_arm_is_refused(asked, words):
    formats = {} if "arms" in asked or not asked else {"formats": ["E4M3"]}
    with pytest.raises(BadInput, match=words):
        made(**formats, **asked)


def test_a_rounding_of_what_a_recipe_leaves_alone_is_refused():
    """Or two arms would be the same runs, and found alike; the recipes that have it are named."""
    asked = {"formats": ["E4M3"], "roundings": ["weight+stored_weight=stochastic"]}
    words = (
        r"the recipe master leaves stored_weight alone, so its rounding changes nothing.*"
        r"--recipes full or pure would have it"
    )
    with pytest.raises(BadInput, match=words):
        made(**asked)
    with pytest.raises(BadInput, match="nvfp4 leaves stored_weight alone"):
        made(arms={"mine": "nvfp4"}, roundings=["stored_weight=up"])
    assert len(made(**asked, recipes=["pure"], arms={"float32": "none"})) == 2


def test_arms_that_nothing_sets_apart_are_found():
    """By what is trained, not by what was asked; formats of other names are other formats."""
    lists = {"roundings": ["nearest", "nearest-even"], "optimizers": ["adamw", "sgd"]}
    found = made(formats=["E0M7", "E1M6"], arms={"float32": "none"}, **lists)
    assert same_runs(found) == [
        [f"{start}/{rounding}/{optimizer}" for rounding in lists["roundings"]]
        for start in ("E0M7", "E1M6", "float32")
        for optimizer in lists["optimizers"]
    ]
    told = about_same_runs([["a", "b", "c"]])
    assert told == ["the runs of a, b, c are the same, and their differences 0 whatever is true"]
    assert same_runs(made(formats=["E4M3"], roundings=["up", "down"])) == []


# ----------------------------------------------------------------------- held against what


def test_all_are_held_against_an_arm():
    arms = made(formats=["E4M3", "E7M0"], arms={"full": "nvfp4"})
    assert pairs(arms, "full") == [("E4M3", "full"), ("E7M0", "full")]
    assert pairs(arms, None) == []


@pytest.mark.parametrize(
    ("against", "expected"),
    [
        ("up", {"E4M3/pure/up": None, "E4M3/pure/down": "E4M3/pure/up"}),
        ("pure", {"E4M3/pure/up": None, "E4M3/master/up": "E4M3/pure/up"}),
        ("E4M3", {"E4M3/pure/up": None, "E7M0/pure/up": "E4M3/pure/up"}),
        ("E4M3/pure", {"E7M0/pure/up": "E4M3/pure/up", "mine/down": "E4M3/pure/down"}),
        ("mine", {"mine/up": None, "E7M0/pure/down": "mine/down"}),
    ],
)
def test_each_is_held_against_the_one_that_differs_in_one_thing(against, expected):
    lists = {"recipes": ["master", "pure"], "roundings": ["up", "down"]}
    arms = made(formats=["E4M3", "E7M0"], arms={"mine": "nvfp4"}, **lists)
    found = dict(pairs(arms, against))
    assert {name: found.get(name) for name in expected} == expected


def test_a_rounding_of_one_role_is_meant_by_its_name():
    roundings = ["stored_weight=up", "stored_weight=stochastic:random_bits=8"]
    arms = made(formats=["E4M3"], recipes=["pure"], roundings=roundings)
    down, up = (arm.name for arm in reversed(arms))
    assert pairs(arms, "up") == [(down, up)]
    assert pairs(arms, "stochastic:random_bits=8") == [(up, down)]
    several = made(formats=["E4M3"], recipes=["pure"], roundings=[*roundings, "weight=up"])
    known = "; or stored_weight=up, stored_weight=stochastic:random_bits=8, weight=up"
    with pytest.raises(BadInput, match=f"an arm: .*{known}"):
        pairs(several, "up")


def test_an_arm_that_there_is_not_is_refused():
    with pytest.raises(BadInput, match=r"--against stochstic: .*did you mean stochastic"):
        pairs(made(formats=["E4M3"], roundings=["up", "stochastic"]), "stochstic")


# --------------------------------------------------------------------------------- differences


def test_a_difference_is_narrower_than_the_gaps():
    """The chaos of the twin that both share is in neither; p is corrected over the rows."""
    twin = [0.05, -0.07, 0.08, -0.04, 0.02]
    noisy = [t + e for t, e in zip(twin, (0.01, -0.01, 0.0, 0.01, -0.01), strict=True)]
    gaps = {
        "full": [0.30 + t for t in twin],
        "closer": [
            0.10 + t + e for t, e in zip(twin, (0.01, -0.01, 0.0, 0.01, -0.01), strict=True)
        ],
        "same": [0.30 + t for t in noisy],
        "rough": [0.30 + 2 * t for t in twin],
        "worse": [0.90 + 1.1 * t for t in twin],
    }
    held = [(arm, "full") for arm in list(gaps)[1:]]
    rows = differences(held, gaps, 0.05, {5: 1.0}, {})
    assert [r["verdict"] for r in rows] == ["better", "alike", "cannot tell", "worse"]
    closer = rows[0]
    assert closer["difference"]["high"] - closer["difference"]["low"] < 0.03
    assert closer["share_closed"]["mean"] == pytest.approx(1 - 0.108 / 0.308)
    assert closer["p_holm"] == pytest.approx(3 * closer["difference"]["p"])


def test_nothing_is_told_of_arms_whose_twin_did_not_learn():
    """That they are alike says nothing where nothing learned; nor does anything else."""
    gaps = {"a": [0.001, 0.0], "b": [0.0, 0.0], "c": [1.0, 1.0001]}
    held = [("a", "b"), ("b", "c"), ("a", "c")]
    rows = differences(held, gaps, 0.05, {2: 1.0}, {"c": "the twin did not learn in 1 of 2 seeds"})
    assert [(r["verdict"], r["reason"][:8]) for r in rows] == [
        ("alike", ""),
        *[("cannot tell", "the twin")] * 2,
    ]
