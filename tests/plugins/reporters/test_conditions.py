"""Conditions: what differs between runs but what is compared."""

from helpers_records import Told

from altcore_reporters.conditions import apart_from_format, apart_from_optimizer, optimizers_of


def told(**config):
    return Told("r", {"optimizer": config.get("optimizer")}, config)


def test_format_seed_and_names_make_no_condition():
    """Nor does what changes no weight, such as diagnostics and their settings."""
    runs = [
        told(format="E5M2", seed=1, name="a", plugins=["progress", "ulp-stats"], recipe="pure",
             settings={"ulp-stats": {"interval": 10}}),
        told(format="E3M4", seed=2, name="b", plugins=[], eval_interval=50, recipe="pure"),
        told(fp8_format="E3M4", run_name="c", recipe="pure"),
    ]  # fmt: skip
    assert apart_from_format(runs) == ["", "", ""]


def test_a_condition_is_called_by_what_tells_it_apart():
    """Interventions count; a second key that goes with the first is not repeated."""
    first = told(recipe={"name": "mine.yaml", "weight": "E5M2"}, learning_rate=1e-3, max_steps=9)
    second = told(recipe="pure", learning_rate=2e-3, max_steps=9)
    third = told(recipe="pure", learning_rate=2e-3, max_steps=9, plugins=["mantissa-shift"])
    assert apart_from_format([first, second, second, third]) == [
        "recipe mine, plugins none",
        "recipe pure, plugins none",
        "recipe pure, plugins none",
        "recipe pure, plugins mantissa-shift",
    ]
    assert apart_from_format([]) == []


def test_two_recipes_of_one_name_are_two_conditions():
    """They are called by their digests."""
    runs = [told(recipe={"name": "mine", "weight": fmt}) for fmt in ("E5M2", "E3M4", "E5M2")]
    one, other, again = apart_from_format(runs)
    assert one == again != other
    assert one.startswith("recipe mine ")


def test_settings_count_by_their_owner():
    """As --set calls them."""
    runs = [told(settings={"gpt": {"size": size}}) for size in ("tiny", "small")]
    assert apart_from_format(runs) == ["gpt.size tiny", "gpt.size small"]


def test_an_optimizer_and_its_settings_make_no_condition_of_it():
    """But the settings of anything else do."""
    aware = {"optimizer": "manifold-adamw", "use_manifold_aware": True}
    runs = [
        told(optimizer="adamw", settings={"adamw": {"weight_decay": 0.1}}),
        told(**aware, settings={"manifold-adamw": {"mode": "gradient"}}),
        told(**aware, settings={"manifold-adamw": {"mode": "update"}}),
        told(optimizer="adamw", settings={"gpt": {"size": "small"}}),
    ]
    assert apart_from_optimizer(runs) == ["gpt.size none"] * 3 + ["gpt.size small"]
    assert optimizers_of(runs) == [
        "adamw weight_decay=0.1",
        "manifold-adamw mode=gradient",
        "manifold-adamw mode=update",
        "adamw weight_decay=none",
    ]
