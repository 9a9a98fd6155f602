"""Loading a configuration: what wins, what is equal, and where each key was given."""

import pytest
import torch
from attrs import fields_dict

from altcore import BadInput, TrainConfig
from altcore.config import defaults, load_config, loading, merge_sources
from altcore.config.original_keys import renamed_keys
from altcore.engine import build_workload
from altcore.errors import DEFAULT, Source, located

SET, FORMAT, RECIPE = (Source(flag=f"--{flag}") for flag in ("set", "format", "recipe"))


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
    assert found.plugins == ("ulp-stats", "progress", "mantissa-shift", "failure-report", "page")


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


def test_learning_rate_in_a_file(tmp_path):
    """The key that everybody writes with an exponent."""
    assert load_config(write(tmp_path / "a.yaml", "learning_rate: 6e-4\n")).learning_rate == 6e-4
    assert load_config(write(tmp_path / "a.yaml", "learning_rate: 1\n")).learning_rate == 1.0


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    """Also one with comments only."""
    assert load_config(write(tmp_path / "a.yaml", "# nothing\n")) == load_config()


# --------------------------------------------------------------------- defaults and observers


def test_keys_in_the_place_of_the_file_are_refused():
    with pytest.raises(BadInput, match=r"overrides=\{"):
        load_config({"max_steps": 3})


def test_defaults_come_from_the_data_file():
    """The code of the core names no plugin: defaults.yaml does."""
    found = load_config()
    assert found.workload == defaults()["workload"] == "gpt"
    assert found.optimizer == defaults()["optimizer"] == "adamw"
    observers = ["progress", "failure-report", "page"]
    assert list(found.plugins) == defaults()["observers"] == observers
    assert found.format is None
    assert TrainConfig().workload == "gpt"


def test_observers_are_left_out_on_request():
    """--no-plugin and the key no_plugins; the configuration keeps what was left out."""
    found = load_config(without=["progress"])
    assert found.plugins == ("failure-report", "page")
    assert found.no_plugins == ("progress",)
    assert load_config(None, by_flag(no_plugins=["progress"])) == found
    assert load_config(without=["progress", "failure-report", "page"]).plugins == ()


def test_a_listed_plugin_can_be_left_out(tmp_path):
    """A file's plugin too, so that a file can be used without one of its plugins."""
    file = write(tmp_path / "a.yaml", "plugins: [ulp-stats]\n")
    assert "ulp-stats" not in load_config(file, without=["ulp-stats"]).plugins


def test_an_observer_that_is_not_installed_is_no_error(monkeypatch):
    """It is left out, and named so that the command can say so in one line."""
    kept = tuple(e for e in loading.entries() if e.name != "progress")
    monkeypatch.setattr(loading, "entries", lambda: kept)
    assert load_config().plugins == ("failure-report", "page")
    assert loading.missing_observers() == ["progress"]
    assert load_config(without=["progress"]).plugins == ("failure-report", "page")


def test_a_missing_workload_says_what_to_install(monkeypatch):
    """The default that is not installed is an error, with the package's name."""
    from altcore import registry

    monkeypatch.setattr(registry, "entries", tuple)
    with pytest.raises(BadInput, match="pip install altcore-workloads"):
        registry.find("gpt", ("workload",))
    with pytest.raises(BadInput, match="pip install altcore-optimizers"):
        registry.find("adamw", ("optimizer",))


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
    words = r"^workload: unknown workload 'gpt': none .*altcore-workloads.*\) \(given by default\)$"
    with pytest.raises(BadInput, match=words), located(sources):
        build_workload(TrainConfig(), torch.device("cpu"), None, None)
    assert plain["workload"] == "gpt"


def test_a_value_that_is_nested_too_deeply_is_named():
    """From Python it may be any object, and hold itself."""
    value = []
    value.append(value)
    with pytest.raises(BadInput, match=r"^gpt\.data: its value is nested more than 100 levels"):
        load_config(overrides={"gpt.data": value})
