"""What a user is told before the first step."""

import pytest
from helpers import events
from helpers_cli import call

from altcore import code_format
from altcore.engine.remarks import about_schedule


def remarks(run):
    return [e["message"] for e in events(run.run_directory, "warning")]


@pytest.mark.parametrize(
    ("keys", "is_told"),
    [
        ({}, False),
        ({"recipe": "pure"}, True),
        ({"recipe": "pure", "format": "E5M10"}, False),
        ({"recipe": {"weight": "E5M10"}}, False),
    ],
)
def test_a_recipe_without_a_format_quantizes_nothing(keys, is_told, start):
    """It is said, unless the recipe names formats itself."""
    told = remarks(start(max_steps=1, **keys))
    assert any("without a format quantizes nothing: give --format" in x for x in told) == is_told


def test_also_the_default_recipe_if_it_is_asked_for(tmp_path, corpus, capsys):
    """Whoever types --recipe wants something quantized."""
    common = ["--steps", "1", "--data", corpus, "--set", "gpt.size=tiny"]
    common += ["--set", f"runs_dir={tmp_path}"]
    told = "recipe master without a format quantizes nothing"
    assert told in call(capsys, "train", "--recipe", "master", *common).err
    assert told not in call(capsys, "train", *common).err


def test_an_unsigned_format_for_signed_tensors(start):
    """The operands are named; signed formats are not."""
    unsigned = code_format("U2", [0.0, 0.25, 0.5, 1.0])
    recipe = {"weight": "E4M3", "activation": unsigned, "gradient": unsigned}
    (told,) = remarks(start(recipe=recipe, max_steps=1))
    assert told.startswith("U2 has no negative values, and is the format of activation, gradient,")


def test_a_run_that_ends_before_its_warm_up_is_told(start):
    """With the rate that it reaches."""
    (told,) = remarks(start(max_steps=3, warmup_steps=4, learning_rate=0.01))
    assert told.startswith("the warm-up of 4 steps is longer than the run of 3: ")
    assert "reaches 0.006 of 0.01" in told
    assert remarks(start(max_steps=3, warmup_steps=3)) == []


def test_more_steps_change_the_schedule(start):
    """The jump of the learning rate is told, with both rates."""
    keys = {"learning_rate": 1e-3, "min_lr_ratio": 0.1, "warmup_steps": 0}
    start(name="r", max_steps=10, **keys)
    run = start.resume("r", max_steps=20)
    (told,) = remarks(run)
    assert "was to make 10 steps and is to make 20" in told
    rate = run.metrics_history[10]["learning_rate"]
    assert rate > 4e-4
    assert f"the learning rate, 0.0001 at step 10, is {rate:.3g} at step 11" in told
    assert about_schedule(20, start.config(max_steps=20), 10) == []
