"""Configuration: what wins, what is equal, what is refused, and what repeats a run."""

import math
from contextlib import suppress
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
from altcore.config import check_name, defaults, load_config, loading, merge_sources
from altcore.config.original_keys import renamed_keys
from altcore.engine import build_workload
from altcore.errors import DEFAULT, Source, located
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
    "freeze": ["<embedding>"],
    "compile": True,
    "device": "cpu",
    "plugins": ["ulp-stats"],
    "no_plugins": ["progress"],
    "strict": True,
    "name": "mine",
    "label": "mine, too",
    "project": "altgrad",
    "tags": ["fp8", "short"],
    "runs_dir": "elsewhere",
    "seed": 7,
    "max_steps": 11,
    "learning_rate": 0.5,
    "min_lr_ratio": 0.25,
    "warmup_steps": 3,
    "gradient_accumulation_steps": 2,
    "grad_clip": 0.0,
    "log_interval": 2,
    "eval_interval": 5,
    "eval_steps": 6,
    "checkpoint_interval": 8,
    "max_checkpoints": 4,
    "snapshot_interval": 9,
    "max_snapshots": 2,
    "nan_patience": 4,
    "bit_stall_threshold": 0.75,
    "stall_window": 40,
    "overflow_threshold": 0.5,
    "dead_neuron_threshold": 0.0,
    "dead_neuron_window": 12,
    "diverged_ratio": 3.0,
    "original": {"use_fp8": True},
    "format_digests": {"E4M3": format_digest(get_format("E4M3"))},
}
"""For every key another value than the default."""


def write(path, text):
    path.write_text(text)
    return path


def by_flag(**keys):
    """Return keys as the command line gives them."""
    return [(key.replace("__", "."), value, SET) for key, value in keys.items()]


# ----------------------------------------------------------------------------- precedence


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    """Each key on its own: what is not given stays as it was below."""
    file = write(tmp_path / "a.yaml", "seed: 1\nmax_steps: 2\ngpt: {n_layer: 1, n_head: 1}\n")
    found = load_config(file, by_flag(max_steps=3, gpt__n_head=2))
    assert (found.seed, found.max_steps, found.learning_rate) == (1, 3, 1e-3)
    assert found.settings == {"gpt": {"n_layer": 1, "n_head": 2}}


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
    expected = ["ulp-stats", "progress", "failure-report"] if key == "plugins" else value
    assert found == expected


@pytest.mark.parametrize(("data", "wins"), [("file", "flag"), ("flag", "flag")])
def test_data_is_a_key_of_the_workload_whoever_names_it(data, wins, tmp_path):
    """The flat key and gpt.data are one key, in files and on the command line."""
    file = write(tmp_path / "a.yaml", "data: file\n" if data == "file" else "gpt: {data: file}\n")
    override = by_flag(gpt__data="flag") if data == "file" else by_flag(data="flag")
    assert load_config(file, override).settings == {"gpt": {"data": wins}}


def test_data_goes_to_the_workload_that_is_active(tmp_path):
    """Also when the workload is named after it."""
    found = load_config(None, by_flag(data="x", workload="other"))
    assert found.settings == {"other": {"data": "x"}}


def test_plugins_of_the_command_line_are_appended(tmp_path):
    """The order is the user's: the file's, then --plugin, then the default observers."""
    file = write(tmp_path / "a.yaml", "plugins: [ulp-stats, progress]\n")
    found = load_config(file, plugins=["mantissa-shift"])
    assert found.plugins == ("ulp-stats", "progress", "mantissa-shift", "failure-report")


# ------------------------------------------------------------------------- equal spellings

SPELLINGS = [
    "gpt.n_layer: 3\nadamw.beta1: 0.5\n",
    "gpt:\n  n_layer: 3\nadamw:\n  beta1: 0.5\n",
    "settings:\n  gpt: {n_layer: 3}\n  adamw: {beta1: 0.5}\n",
    "settings.gpt.n_layer: 3\nsettings.adamw: {beta1: 0.5}\n",
    "n_layer: 3\nbeta1: 0.5\n",
    "settings: {gpt: {n_layer: 3}}\nadamw.beta1: 0.5\n",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_short_nested_and_full_form_are_equal(text, tmp_path):
    """NAME.key, NAME with a mapping, settings with NAME, and the original flat key."""
    expected = {"gpt": {"n_layer": 3}, "adamw": {"beta1": 0.5}}
    assert load_config(write(tmp_path / "a.yaml", text)).settings == expected


@pytest.mark.parametrize("key", renamed_keys())
def test_the_original_experiments_keys_still_work(key):
    """A flat key is short for a key of today, whose name is in original-keys.yaml."""
    long = renamed_keys()[key]
    value = {"format": "E4M3", "label": "mine"}.get(long, 3)
    assert load_config(None, by_flag(**{key: value})) == load_config(None, [(long, value, SET)])
    assert load_config(None, by_flag(**{key: value})) != load_config()


def test_the_original_keys_are_settings_that_exist():
    """A workload or optimizer that loses a setting takes its flat key with it."""
    from altcore.hooks.settings import init_fields
    from altcore.registry import find

    for long in renamed_keys().values():
        owner, dot, key = long.partition(".")
        if not dot:
            assert owner in fields_dict(TrainConfig)
        else:
            cls = find(owner, ("workload", "optimizer")).load()
            assert key in init_fields(cls)


@pytest.mark.parametrize(
    ("text", "number"),
    [("6e-4", 6e-4), ("1E3", 1e3), ("+1e2", 1e2), ("-.5e1", -5.0), ("1.e2", 100.0), ("2e0", 2.0)],
)
def test_a_number_with_an_exponent_is_a_number(text, number):
    """YAML 1.1 reads 6e-4 as text."""
    assert load_yaml(text, Source("here")) == number
    assert isinstance(load_yaml(text, Source("here")), float)


@pytest.mark.parametrize("text", ["6e", "e4", "E4M3", "1e5x", "1.2.3e4", "0x1e-4", "E3M4"])
def test_what_looks_like_one_stays_text(text):
    """Formats' names above all."""
    assert load_yaml(text, Source("here")) == text


def test_learning_rate_in_a_file(tmp_path):
    """The key that everybody writes with an exponent."""
    assert load_config(write(tmp_path / "a.yaml", "learning_rate: 6e-4\n")).learning_rate == 6e-4
    assert load_config(write(tmp_path / "a.yaml", "learning_rate: 1\n")).learning_rate == 1.0


def test_anchors_and_merges_are_plain_yaml(tmp_path):
    """A key that overrides a merged one is not given twice."""
    text = "gpt: &small {n_layer: 1, n_head: 2}\nadamw:\n  beta1: 0.5\n"
    assert load_config(write(tmp_path / "a.yaml", text)).settings["gpt"] == {
        "n_layer": 1,
        "n_head": 2,
    }
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\n"
    assert load_yaml(text, Source("here"))["b"] == {"x": 3, "y": 2}
    assert load_yaml(text, Source("here"))["c"] == {"x": 1, "y": 2}


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    """Also one with comments only."""
    assert load_config(write(tmp_path / "a.yaml", "# nothing\n")) == load_config()


# --------------------------------------------------------------------- defaults and observers


def test_defaults_come_from_the_data_file():
    """The code of the core names no plugin: defaults.yaml does."""
    found = load_config()
    assert found.workload == defaults()["workload"] == "gpt"
    assert found.optimizer == defaults()["optimizer"] == "adamw"
    assert list(found.plugins) == defaults()["observers"] == ["progress", "failure-report"]
    assert found.format is None
    assert TrainConfig().workload == "gpt"


def test_observers_are_left_out_on_request():
    """--no-plugin and the key no_plugins; the configuration keeps what was left out."""
    found = load_config(without=["progress"])
    assert found.plugins == ("failure-report",)
    assert found.no_plugins == ("progress",)
    assert load_config(None, by_flag(no_plugins=["progress"])) == found
    assert load_config(without=["progress", "failure-report"]).plugins == ()


def test_a_listed_plugin_can_be_left_out(tmp_path):
    """A file's plugin too, so that a file can be used without one of its plugins."""
    file = write(tmp_path / "a.yaml", "plugins: [ulp-stats]\n")
    assert "ulp-stats" not in load_config(file, without=["ulp-stats"]).plugins


def test_an_observer_that_is_not_installed_is_no_error(monkeypatch):
    """It is left out, and named so that the command can say so in one line."""
    kept = tuple(e for e in loading.entries() if e.name != "progress")
    monkeypatch.setattr(loading, "entries", lambda: kept)
    assert load_config().plugins == ("failure-report",)
    assert loading.missing_observers() == ["progress"]
    assert load_config(without=["progress"]).plugins == ("failure-report",)


def test_a_missing_workload_says_what_to_install(monkeypatch):
    """The default that is not installed is an error, with the package's name."""
    from altcore import registry

    monkeypatch.setattr(registry, "entries", tuple)
    with pytest.raises(BadInput, match="pip install altcore-workloads"):
        registry.find("gpt", ("workload",))
    with pytest.raises(BadInput, match="pip install altcore-optimizers"):
        registry.find("adamw", ("optimizer",))


# ------------------------------------------------------------------------------ round trips


def test_a_plain_configuration_is_the_same_configuration():
    """What config.yaml holds, read again, decides the same run."""
    for found in (load_config(), load_config(None, by_flag(**CHANGED)), TrainConfig(format="E3M4")):
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


@given(text=st.text(max_size=40))
def test_any_text_is_yaml_or_bad_input(text):
    """Whatever a file or --set holds, the answer is a value or a message that names where."""
    with suppress(BadInput):
        load_yaml(text, Source("here"))


@pytest.mark.parametrize("text", ["2020-13-45", "0b_", "[" * 500, "a: b: c", "\x07", "!!set 3"])
def test_what_yaml_stumbles_over_is_bad_input(text):
    """Impossible dates and numbers, and what is nested too deep: the message names where."""
    with pytest.raises(BadInput, match=r"^here.*: not valid YAML: ."):
        load_yaml(text, Source("here"))


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


# -------------------------------------------------------------------------- where it was given


def test_messages_say_where_a_key_was_given(tmp_path):
    """The file for a file's key, the flag for a flag's, and neither for the other's."""
    file = write(tmp_path / "a.yaml", "max_steps: 3\nseed: x\n")
    words = r"^seed: 'x' is not a whole number \(given in .*a.yaml, line 2\)$"
    with pytest.raises(BadInput, match=words) as caught:
        load_config(file)
    assert (caught.value.key, caught.value.source) == ("seed", Source(str(file), 2))
    with pytest.raises(BadInput, match=r"^seed: 'y' is not a whole number \(given by --set\)$"):
        load_config(file, by_flag(seed="y"))
    with pytest.raises(BadInput, match=r"^seed: 'z' is not a whole number$") as caught:
        load_config(overrides=[("seed", "z", None)])
    assert caught.value.source is None


def test_each_key_has_a_source(tmp_path):
    """For errors that are found only when plugins and the workload are built."""
    file = write(tmp_path / "a.yaml", "seed: 1\ngpt:\n  n_layer: 1\n  n_head: 1\n")
    plain, sources = merge_sources(file, by_flag(gpt__n_head=2))
    assert plain["settings"] == {"gpt": {"n_layer": 1, "n_head": 2}}
    assert sources == {
        "workload": DEFAULT,
        "optimizer": DEFAULT,
        "seed": Source(str(file), 1),
        "gpt.n_layer": Source(str(file), 3),
        "gpt.n_head": SET,
    }


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("seed: 1\ngpt:\n  size: tiny\n  n_layer: 1.5\n", "gpt.n_layer", 4),
        ("settings:\n  gpt:\n    n_layer: 0\n", "gpt.n_layer", 3),
        ("tags:\n- a\n- 3\n", "tags", 1),
        ("\n\nnosuch: 1\n", "", 3),
        ("gpt: tiny\n", "gpt", 1),
        ("seed: 1\nulp-stats: {interval: 3}\n", "ulp-stats", 2),
        ("seed: 1\nuse_fp8: maybe\n", "use_fp8", 2),
        ("seed: 1\npreset: nosuch\n", "preset", 2),
        ("seed: 1\nworkload: gtp\n", "workload", 2),
        ("recipe:\n  weight: E4M3\n  activation: {format: E4M3,\n    scaling: x}\n", "recipe", 4),
        ("recipe:\n  weight: E4M3\n  skip:\n  - a\n  - <haed>\n", "recipe", 5),
        ("recipe:\n  layers:\n    a.*:\n      wieght: E4M3\n", "recipe", 4),
    ],
)
def test_a_wrong_value_of_a_file_names_its_line(text, key, line, tmp_path):
    """Below other keys, in settings, in a recipe, and in a list of a recipe's."""
    file = write(tmp_path / "a.yaml", text)

    def build():
        plain, sources = merge_sources(file)
        config = TrainConfig.from_plain(plain, sources)
        with located(sources):
            build_workload(config, torch.device("cpu"), None, None)

    with pytest.raises(BadInput, match=rf"a\.yaml, line {line}\b") as caught:
        build()
    assert (caught.value.key, caught.value.source) == (key, Source(str(file), line))


def test_a_wrong_value_of_a_recipes_file_names_its_line(tmp_path):
    """Whoever names the file; and the file itself is named with the flag that names it."""
    file = write(tmp_path / "r.yaml", "weight: E4M3\nskip:\n  - head\n  - <haed>\n")
    for overrides in (by_flag(recipe=str(file)), [("recipe", str(file), None)]):
        with pytest.raises(BadInput, match=r"^recipe r\.yaml: skip: unknown selector") as caught:
            load_config(overrides=overrides)
        assert caught.value.source == Source(str(file), 4)
    with pytest.raises(BadInput, match=r"^recipe .*nowhere\.yaml: cannot be read") as caught:
        load_config(overrides=[("recipe", str(tmp_path / "nowhere.yaml"), RECIPE)])
    assert caught.value.source == RECIPE


def test_a_presets_value_names_the_preset(monkeypatch):
    """As if it had been given where the preset was."""
    wrong = {"mine": {"max_steps": 0, "ulp-stats": {"interval": 0}, "plugins": ["ulp-stats"]}}
    monkeypatch.setattr("altcore.config.presets.presets", lambda: wrong)
    given = [("preset", "mine", Source(flag="--preset"))]
    words = r"^max_steps: must be >= 1: 0 \(given by --preset, through preset mine\)$"
    with pytest.raises(BadInput, match=words):
        load_config(overrides=given)
    _, sources = merge_sources(overrides=given)
    assert sources["ulp-stats.interval"] == Source(flag="--preset", through="preset mine")


def test_a_default_that_is_refused_is_called_one(monkeypatch):
    """The default workload may not be installed."""
    plain, sources = merge_sources()
    monkeypatch.setattr("altcore.registry.entries", tuple)
    words = r"^workload: unknown workload 'gpt': none .*altcore-workloads \(given by default\)$"
    with pytest.raises(BadInput, match=words), located(sources):
        build_workload(TrainConfig(), torch.device("cpu"), None, None)
    assert plain["workload"] == "gpt"


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
