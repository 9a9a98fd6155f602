"""Keys in epochs, and the keys in steps that they take the place of."""

from fractions import Fraction

import pytest
import yaml

from altcore import BadInput
from altcore.config import TrainConfig, load_config, read_interval
from altcore.errors import DEFAULT, Source

SET = Source(flag="--set")


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [
        ("epochs", "max_steps"),
        ("warmup_epochs", "warmup_steps"),
        ("evals_per_epoch", "eval_interval"),
    ],
)
def test_steps_and_epochs_together_are_an_error(epochs, steps, tmp_path):
    """Wherever they are given, and whatever their values: the default's number is given, too."""
    default = getattr(TrainConfig(), steps)
    with pytest.raises(BadInput, match=rf"^{epochs}: {steps} is given, too, by --set: .*--set\)$"):
        load_config(None, [(epochs, 3, SET), (steps, default, SET)])
    file = tmp_path / "a.yaml"
    file.write_text(f"{steps}: 30\n")
    with pytest.raises(BadInput, match=rf"{steps} is given, too, in .*a.yaml, line 1"):
        load_config(file, [(epochs, 3, SET)])
    with pytest.raises(BadInput, match=steps):
        load_config(overrides=[(epochs, 3, None), (steps, 30, None)])
    assert getattr(load_config(file, [(epochs, None, SET)]), steps) == 30


def test_a_configuration_made_in_python_has_not_both():
    """However it is made; a study's own defaults give way."""
    for make in (
        lambda: TrainConfig(epochs=2.0, max_steps=5),
        lambda: TrainConfig(max_steps=5).evolve(epochs=2.0),
        lambda: TrainConfig(warmup_epochs=2.0, warmup_steps=0),
        # The default's number is given, too.
        lambda: TrainConfig(epochs=2.0, max_steps=300),
        lambda: TrainConfig(max_steps=300).evolve(epochs=2.0),
        lambda: TrainConfig(epochs=2.0).evolve(max_steps=300),
        lambda: TrainConfig(evals_per_epoch=2, eval_interval=100),
    ):
        with pytest.raises(BadInput, match=r"(_steps|_interval) is given, too"):
            make()
    assert TrainConfig().evolve(epochs=2.0) == TrainConfig(epochs=2.0)
    config = load_config(None, [("evals_per_epoch", 2, SET), ("eval_interval", 0, DEFAULT)])
    assert (config.evals_per_epoch, config.eval_interval) == (2, 100)


def test_a_default_that_nobody_gave_is_written_as_a_number():
    """In the configuration, and among the settings that the documentation lists."""
    text = yaml.safe_dump(TrainConfig().to_plain())
    assert yaml.safe_load(text)["max_steps"] == 300
    given = TrainConfig.from_plain({**yaml.safe_load(text), "format": None})
    with pytest.raises(BadInput, match="max_steps is given, too"):
        given.evolve(epochs=2.0)


def record(tmp_path):
    """Write a configuration as a run of three epochs of 7 steps has it."""
    file = tmp_path / "config.yaml"
    counted = TrainConfig(epochs=3.0, max_steps=21, steps_per_epoch=7)
    file.write_text(yaml.safe_dump(counted.to_plain()))
    return file


def test_the_record_of_a_run_keeps_both(tmp_path):
    """It may be repeated, with other epochs too; its steps were nobody's wish."""
    file = record(tmp_path)
    assert load_config(file).epochs == 3
    assert load_config(file, [("epochs", 5, SET)]).epochs == 5


def test_steps_that_are_given_beside_a_record_are_an_error(tmp_path):
    """Unless they are given in the place of its epochs."""
    file = record(tmp_path)
    with pytest.raises(BadInput, match="max_steps is given, too, by --set"):
        load_config(file, [("max_steps", 30, SET)])
    assert load_config(file, [("max_steps", 30, SET), ("epochs", None, SET)]).max_steps == 30


def test_a_configuration_that_is_not_counted_yet_can_be_written():
    """And is the same when it is read."""
    config = load_config(overrides=[("epochs", 3, None), ("evals_per_epoch", 4, None)])
    plain = config.to_plain()
    assert plain.keys().isdisjoint({"max_steps", "eval_interval"})
    assert TrainConfig.from_plain(plain) == config


@pytest.mark.parametrize(
    ("text", "epochs"),
    [("2 epochs", Fraction(2)), ("0.25 epoch", Fraction(1, 4)), ("1/3 epoch", Fraction(1, 3))],
)
def test_an_interval_in_epochs_is_exact(text, epochs):
    assert read_interval(text, "p.interval") == epochs


@pytest.mark.parametrize("value", [50, "50 steps", "50 step", "5e1 steps"])
def test_an_interval_in_steps_is_a_whole_number(value):
    found = read_interval(value, "p.interval")
    assert (found, type(found)) == (50, int)


def test_no_interval_stays_none():
    assert read_interval(None, "p.interval") is None


NONE = [
    *("epoch", "2", "0 epochs", "-1 epoch", "1/0 epoch", "1.5 steps", "-2 steps", "0 steps", "x"),
    *("inf epochs", "nan epochs", "1e999999999 epochs", "1/2/3 epochs", "1e999999999 steps"),
    *({}, [2], 1.5, True),
]


@pytest.mark.parametrize("value", NONE, ids=str)
def test_another_value_is_no_interval(value):
    """The message shows what would be one."""
    with pytest.raises(
        BadInput, match=r"^p.interval: .* is not an interval: 50 \(steps\), 2 epochs"
    ):
        read_interval(value, "p.interval")
