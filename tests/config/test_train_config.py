"""Configuration: what wins, what is equal, what is refused, and what repeats a run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from attrs import fields_dict
from helpers import Starter
from hypothesis import assume, given
from hypothesis import strategies as st

import altcore
from altcore import BadInput, TrainConfig
from altcore.config import check_name, load_config
from altcore.errors import Source
from altcore.formats import format_digest, get_format
from altcore.hooks import to_plain
from altcore.yaml_files import load_yaml

SET, FORMAT, RECIPE = (Source(flag=f"--{flag}") for flag in ("set", "format", "recipe"))
CHANGED = {
    "workload": "other",
    "optimizer": "sgd",
    "format": "E4M3",
    "recipe": "pure",
    "compute": "bfloat16",
    "shared_amax": True,
    "freeze": ["<embedding>"],
    "compile": True,
    "activation_checkpointing": True,
    "device": "cpu",
    "plugins": ["ulp-stats"],
    "no_plugins": ["progress"],
    "strict": True,
    "check_observers": True,
    "hook_timeout": 5.0,
    "rank_timeout": 60.0,
    "name": "mine",
    "label": "mine, too",
    "project": "altgrad",
    "tags": ["fp8", "short"],
    "runs_dir": "elsewhere",
    "seed": 7,
    "max_steps": 11,
    "epochs": 2.5,
    "learning_rate": 0.5,
    "schedule": "wsd",
    "decay_share": 0.5,
    "warmup_epochs": 0.5,
    "evals_per_epoch": 4,
    "monitor": "val_accuracy",
    "monitor_mode": "max",
    "steps_per_epoch": 391,
    "min_lr_ratio": 0.25,
    "warmup_steps": 3,
    "gradient_accumulation_steps": 2,
    "grad_clip": 0.0,
    "log_interval": 2,
    "eval_interval": 5,
    "eval_steps": 6,
    "checkpoint_interval": 8,
    "max_checkpoints": 4,
    "keep_best": 2,
    "snapshot_interval": 9,
    "max_snapshots": 2,
    "nan_patience": 4,
    "bit_stall_threshold": 0.75,
    "stall_window": 40,
    "overflow_threshold": 0.5,
    "dead_neuron_threshold": 0.0,
    "dead_neuron_window": 12,
    "diverged_ratio": 3.0,
    "changes": [{"step": 3, "what": "grad_clip", "before": 1.0, "now": 0.0}],
    "original": {"use_fp8": True},
    "format_digests": {"E4M3": format_digest(get_format("E4M3"))},
    "format_origins": {"E4M3": "altcore-formats 1.0"},
}
"""For every key another value than the default."""


def write(path, text):
    path.write_text(text)
    return path


def by_flag(**keys):
    """Return keys as the command line gives them."""
    return [(key.replace("__", "."), value, SET) for key, value in keys.items()]


@pytest.mark.parametrize("key", [k for k in fields_dict(TrainConfig) if k != "settings"])
def test_every_key_can_be_given_in_a_file_and_on_the_command_line(key, tmp_path):
    """And means the same; the table above has a row for each key."""
    value = CHANGED[key]
    default = to_plain(getattr(load_config(), key))
    file = write(tmp_path / "a.yaml", yaml.safe_dump({key: value}))
    in_file, by_set = load_config(file), load_config(None, by_flag(**{key: value}))
    assert in_file == by_set
    assert getattr(in_file, key) != default
    # What is listed comes before the observers, which are always there.
    found = to_plain(getattr(in_file, key))
    observers = ["progress", "failure-report", "page"]
    expected = ["ulp-stats", *observers] if key == "plugins" else value
    assert found == expected


# ------------------------------------------------------------------------------ round trips


def test_a_plain_configuration_is_the_same_configuration():
    """What config.yaml holds, read again, decides the same run."""
    changed = {**CHANGED, "compile": False}  # which the blocks that are computed again exclude
    for found in (load_config(), load_config(None, by_flag(**changed)), TrainConfig(format="E3M4")):
        assert TrainConfig.from_plain(found.to_plain()) == found
        assert TrainConfig.from_plain(yaml.safe_load(yaml.safe_dump(found.to_plain()))) == found


def test_config_yaml_repeats_the_run(tmp_path, corpus):
    """`altcore train --config runs/x/config.yaml` is the run x: same keys, same numbers."""
    start = Starter(tmp_path / "runs", corpus)
    first = start(["ulp-stats"], format="E3M4", recipe="pure", name="x")
    again = load_config(first.run_directory / "config.yaml", by_flag(name="y"))
    assert again.evolve(name=None) == load_config(first.run_directory / "config.yaml")
    second = altcore.train(again)
    assert second.metrics_history == first.metrics_history
    texts = [(r.run_directory / "config.yaml").read_text() for r in (first, second)]
    assert texts[0] == texts[1]


def test_a_recipe_file_is_kept_whole(tmp_path):
    """The file may change afterwards; config.yaml holds what it said."""
    file = write(tmp_path / "r.yaml", "weight: E4M3\nskip: ['<head>']\n")
    found = load_config(None, by_flag(recipe=str(file)))
    file.unlink()
    assert found.recipe == {"name": "r.yaml", "weight": "E4M3", "skip": ["<head>"]}
    assert found.recipe_name == found.make_recipe().name == "r.yaml"
    assert TrainConfig.from_plain(found.to_plain()).make_recipe() == found.make_recipe()


def test_a_recipe_may_name_itself(tmp_path):
    """Its name goes before that of its file, and is text."""
    named = write(tmp_path / "r.yaml", "name: mine\nweight: E4M3\n")
    assert load_config(None, by_flag(recipe=str(named))).recipe_name == "mine"
    assert TrainConfig(recipe={"weight": "E4M3"}).recipe_name == "given"
    called = write(tmp_path / "FORMAT", "").with_name("FORMAT.yaml")
    write(called, "name: FORMAT\nweight: FORMAT\nlayers: {name: {weight: FORMAT}}\n")
    assert load_config(None, by_flag(recipe=str(called), format="E3M4")).recipe_name == "FORMAT"
    for wrong in (5, "", "a\nb"):
        with pytest.raises(BadInput, match=r"recipe given: name: .* is not a line of text"):
            TrainConfig(recipe={"name": wrong, "weight": "E4M3"})


@pytest.mark.parametrize(
    ("fmt", "recipe", "says"),
    [
        ("E4M3", "mxfp8", "recipe mxfp8 has formats of its own"),
        ("E4M3", {"weight": "E5M2"}, "only a recipe that says FORMAT takes one"),
        ("MXFP4", "pure", "recipe pure: stored_weight"),
        ("E3M4", {"weight": {"format": "FORMAT", "overflow": "inf"}}, "E3M4 has no inf code"),
    ],
)
def test_a_format_that_the_recipe_cannot_have_is_blamed(fmt, recipe, says):
    """Not the recipe, which is right with another one."""
    given = [("format", fmt, FORMAT), ("recipe", recipe, RECIPE)]
    with pytest.raises(BadInput, match=rf"^format {fmt}: .*{says}.*\(given by --format\)$"):
        load_config(overrides=given)


def test_what_is_wrong_with_every_format_is_the_recipes():
    """A typo in a recipe is no fault of the format."""
    recipe = {"weight": {"format": "FORMAT", "scaling": "tensro"}}
    given = [
        ("format", "E4M3", Source(flag="--format")),
        ("recipe", recipe, Source(flag="--recipe")),
    ]
    with pytest.raises(BadInput, match=r"^recipe given: weight.*tensor\?.*\(given by --recipe\)$"):
        load_config(overrides=given)


# -------------------------------------------------------------------------------- from Python


def test_a_format_by_name_is_a_format():
    """In TrainConfig, in a mapping, and none in every spelling."""
    e3m4 = altcore.get_format("E3M4")
    assert TrainConfig(format="E3M4").format is e3m4
    assert TrainConfig(format=e3m4) == TrainConfig(format="E3M4")
    assert load_config(overrides=[("format", "E3M4", None)]).format is e3m4
    for none in (None, "none"):
        assert TrainConfig(format=none).format is None
        assert load_config(None, by_flag(format=none)).format is None


def test_a_format_of_ones_own_can_be_given_from_python():
    """A Format that is not installed; the configuration holds it whole."""
    mine = altcore.table_format("MINE", [-1, 0, 1])
    assert TrainConfig(format=mine).make_recipe().rules
    assert TrainConfig(format=mine).to_plain()["format"] == {"name": "MINE", "values": [-1, 0, 1]}


def test_train_config_is_checked():
    """As from files: a name is no path, a setting's owner is active, a recipe parses."""
    for keys, words in [
        ({"name": "../x"}, "is not a name"),
        ({"settings": {"ulp-stats": {}}}, "not active: add --plugin ulp-stats"),
        ({"settings": {"ulp-stat": {}}}, "did you mean ulp-stats"),
        ({"plugins": ("a", "a")}, "a is listed twice"),
        ({"recipe": "mastre"}, "did you mean master"),
        ({"recipe": {"weight": "E9"}}, "unknown format 'E9'"),
        ({"device": "gpu"}, "auto, cpu, cuda or cuda:N"),
        ({"format": "E3M5Q"}, "unknown format"),
    ]:
        with pytest.raises(BadInput, match=words):
            TrainConfig(**keys)


def test_numpy_s_numbers_and_paths_are_python_s(tmp_path):
    """In a mapping, in a TrainConfig and in a copy, in settings and in a recipe; and in a file."""
    (tmp_path / "r.yaml").write_text("weight: E4M3\n")
    given = {
        "max_steps": np.int64(7),
        "learning_rate": np.float32(0.5),
        "compile": np.bool_(False),
        "runs_dir": tmp_path,
        "freeze": [np.str_("x")],
        "settings": {"gpt": {"n_layer": np.int32(2), "data": tmp_path / "d.txt"}},
        "recipe": {"weight": {"format": "E4M3", "scaling": {"margin": np.float32(0.5)}}},
    }
    settings = given.pop("settings")
    flat = [(f"gpt.{k}", v, None) for k, v in settings["gpt"].items()]
    loaded = load_config(overrides=[*((k, v, None) for k, v in given.items()), *flat])
    for made in (loaded, TrainConfig(**given, settings=settings)):
        plain = made.to_plain()
        assert (made.max_steps, made.learning_rate, made.compile) == (7, 0.5, False)
        assert (made.runs_dir, made.freeze) == (str(tmp_path), ("x",))
        assert made.settings["gpt"] == {"n_layer": 2, "data": str(tmp_path / "d.txt")}
        assert type(made.max_steps) is int
        assert made.make_recipe().rules[0].casts["weight@fwd"].scaling.margin == 0.5
        assert TrainConfig.from_plain(yaml.safe_load(yaml.safe_dump(plain))).to_plain() == plain
        assert made.evolve(seed=np.int64(3)).seed == 3
    by_path = load_config(overrides=[("recipe", tmp_path / "r.yaml", None)])
    assert by_path.recipe_name == "r.yaml"
    with pytest.raises(BadInput, match=r"^max_steps: 7.0 is not a whole number"):
        load_config(overrides=[("max_steps", np.float64(7), None)])


def test_train_config_is_frozen_and_evolves():
    """A changed copy is checked like a new one."""
    found = TrainConfig(seed=1)
    with pytest.raises(AttributeError):
        found.seed = 2
    assert found.evolve(seed=2).seed == 2
    with pytest.raises(BadInput):
        found.evolve(name="a/b")


def test_keys_have_help():
    """Each key says what it is for."""
    assert all(f.metadata["help"] for f in fields_dict(TrainConfig).values())
    assert set(CHANGED) | {"settings"} == set(fields_dict(TrainConfig))


# --------------------------------------------------------------------- nothing is converted

KEYS = {
    "max_steps": (int, "a whole number"),
    "learning_rate": (float, "a number"),
    "strict": (bool, "true or false"),
    "runs_dir": (str, "text"),
    "gpt.n_layer": (int, "a whole number or null"),
    "gpt.bias": (bool, "true or false"),
}
scalars = st.one_of(
    st.integers(1, 1000),
    st.floats(1e-3, 1e3).filter(lambda x: x != int(x)),
    st.booleans(),
    st.sampled_from(["true", "false", "yes", "3", "1e-3", "", "none", "E3M4"]),
    st.none(),
    st.lists(st.integers(), max_size=2),
)


@pytest.mark.parametrize("key", ["max_steps", "learning_rate", "strict", "runs_dir"])
@given(value=scalars)
def test_a_value_of_another_type_is_refused(key, value):
    """And one of the right type is kept: nothing but an integer becomes a float."""
    kind, words = KEYS[key]
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits:
        assert getattr(TrainConfig.from_plain({key: value}), key) == value
    else:
        with pytest.raises(BadInput, match=f"^{key}: .* is not {words}$"):
            TrainConfig.from_plain({key: value})


@pytest.mark.parametrize("key", ["n_layer", "bias"])
@given(value=scalars)
def test_a_setting_of_another_type_is_refused(key, value):
    """Settings of plugins, workloads and optimizers as strictly as the keys."""
    from altcore.hooks import build
    from altcore.registry import find

    kind, words = KEYS[f"gpt.{key}"]
    cls = find("gpt", ("workload",)).load()
    if type(value) is kind or (value is None and key == "n_layer"):
        assert getattr(build(cls, {key: value}, "gpt"), key) == value
    else:
        with pytest.raises(BadInput, match=f"^gpt.{key}: .* is not {words}$"):
            build(cls, {key: value}, "gpt")


@given(value=st.floats(allow_nan=False))
def test_floats_survive_a_file(value):
    """A learning rate comes back from config.yaml bit by bit."""
    assume(value > 0 and math.isfinite(value))
    text = yaml.safe_dump(TrainConfig.from_plain({"learning_rate": value}).to_plain())
    assert TrainConfig.from_plain(load_yaml(text, Source("here"))).learning_rate == value


@given(name=st.text(max_size=120))
def test_a_name_stays_within_its_folder(name):
    """A name that is taken is a single part of a path, whatever was typed."""
    try:
        found = check_name(name, "name")
    except BadInput:
        return
    path = Path("runs") / found
    assert path.parent == Path("runs")
    assert path.name == name
    assert found.isascii()
    assert not set(found) & set("<>/\\:\0 ")


@pytest.mark.parametrize(
    "given", [{"data": 3}, {"data": ["a"]}, {"model": "foo"}, {"config": 3}], ids=str
)
def test_train_refuses_what_it_cannot_use(given):
    """Silently training on something else would be the worst answer."""
    name = next(iter(given))
    with pytest.raises(BadInput, match=f"^{name}: "):
        altcore.train(**{"config": {"max_steps": 1}, **given})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_train_trains_where_gradients_are_off(mode, tmp_path, corpus):
    """As if they were on, and leaves the caller's mode; a model that was made for inference
    cannot be trained.
    """
    start = Starter(tmp_path, corpus)
    wanted = altcore.train(start.config(name="on"))
    with mode():
        found = altcore.train(start.config(name="off"))
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert found.final_loss == wanted.final_loss
    assert found.metrics_history == wanted.metrics_history
    with torch.inference_mode():
        model = torch.nn.BatchNorm1d(3, affine=False)
    with pytest.raises(BadInput, match=r"^model: it was made under torch.inference_mode"):
        altcore.train(start.config(name="made"), model=model)
    assert not (tmp_path / "made").exists()
