"""The original experiments: their files, their flat keys, the preset, and the script for all."""

import re

import pytest
import yaml
from helpers_cli import ROOT
from helpers_configs import NAMES, by_set, held, path, preset, write

from altcore import BadInput
from altcore.config import expansion, load_config, merge_sources
from altcore.config.original_keys import compound_keys, renamed_keys
from altcore.config.presets import presets
from altcore.engine.plugins import load_plugins
from altcore.errors import Source
from altcore.hooks import describe_settings
from altcore.registry import find

# ---------------------------------------------------------------------------- what they mean


@pytest.mark.parametrize("name", NAMES)
def test_a_file_keeps_every_value(name, tmp_path):
    """Loaded, saved and loaded again: under its own key, the one it is short for, or original."""
    found = load_config(path(name))
    file = tmp_path / "saved.yaml"
    file.write_text(yaml.safe_dump(found.to_plain()))
    again = load_config(file)
    assert again == found
    plain = again.to_plain()
    for key, value in held(name).items():
        long = renamed_keys().get(key, key)
        owner, _, rest = long.partition(".")
        kept = [plain["original"].get(key), plain["settings"].get(owner, {}).get(rest)]
        assert value in [*kept, plain.get(long)], key


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_comes_to(name):
    """Recipe original in float32 on the file's format, or no format in bfloat16."""
    found, given = load_config(path(name)), held(name)
    expected = (
        ("original", "float32", given["fp8_format"])
        if given["use_fp8"]
        else ("master", "bfloat16", None)
    )
    fmt = found.format.name if found.format else None
    assert (found.recipe, found.compute, fmt) == expected
    assert found.label == given["run_name"]
    assert found.project == "altgrad"
    assert list(found.tags) == given["tags"]
    assert found.name is None
    assert ("shadow" in found.plugins) == given["use_shadow"]
    assert found.max_steps == given["max_steps"]
    assert found.settings["gpt"]["n_embd"] == 384


def test_the_optimizer_is_the_files():
    """Manifold-aware is the optimizer of that name, as the original code had it."""
    assert load_config(path("e5m2_standard")).optimizer == "adamw"
    found = load_config(path("e5m2_manifold"))
    assert found.optimizer == "manifold-adamw"
    assert found.settings["manifold-adamw"] == {
        "mode": "gradient",
        "max_stiffness": 1e6,
        "log_bit_position": True,
    }


def test_flags_override_a_file():
    """Each on its own; what a flat key stands for is only what nobody says otherwise."""
    file = path("e7m0_uniform")
    assert load_config(file, [("recipe", "pure", Source(flag="--recipe"))]).recipe == "pure"
    assert load_config(file, [("format", "E3M4", Source(flag="--format"))]).format.name == "E3M4"
    assert load_config(file, by_set(fp8_format="E3M4")).format.name == "E3M4"
    assert load_config(file, by_set(compute="bfloat16")).compute == "bfloat16"
    off = load_config(file, by_set(use_fp8=False))
    assert (off.format, off.compute, off.original["fp8_format"]) == (None, "bfloat16", "E7M0")
    assert load_config(file, by_set(n_layer=1)).settings["gpt"]["n_layer"] == 1
    plain = load_config(path("e5m2_manifold"), [("optimizer", "adamw", Source(flag="--optimizer"))])
    assert plain.optimizer == "adamw"
    assert "manifold-adamw" not in plain.settings
    assert plain.original["manifold_max_stiffness"] == 1e6
    assert "shadow" not in load_config(file, without=["shadow"]).plugins


def test_a_files_own_name_goes_before_its_flat_keys(tmp_path):
    """And a flat key of the command line before the file."""
    file = write(tmp_path, use_fp8=True, recipe="pure", log_ulp=True, **{"ulp-stats.interval": 9})
    found = load_config(file, by_set(compute="auto"))
    assert (found.recipe, found.compute, found.format.name) == ("pure", "auto", "E5M2")
    assert found.settings["ulp-stats"] == {"interval": 9}
    assert load_config(file, by_set(diagnostic_interval=3)).settings["ulp-stats"] == {"interval": 3}
    again = load_config(file, by_set(use_fp8=True))
    assert again.recipe == "original"


def test_without_use_fp8_the_format_is_just_the_format():
    """As always: a flat key that is another key's name."""
    assert load_config(None, by_set(fp8_format="E3M4")) == load_config(None, by_set(format="E3M4"))


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        (
            {"enable_partition_clipping": True, "partition_clip_base": 2.0},
            {"partition-clip": {"mode": "original", "base": 2.0}},
        ),
        (
            {
                "enable_emergency_shift": True,
                "emergency_shift_nan_patience": 5,
                "emergency_shift_stall_threshold": 0.25,
            },
            {
                "mantissa-shift": {
                    "chain": "original",
                    "stall_of": "view",
                    "nan_patience": 5,
                    "stall_threshold": 0.25,
                }
            },
        ),
        (
            {
                "log_stiffness": True,
                "log_grid_alignment": True,
                "log_ulp": True,
                "use_shadow": True,
                "diagnostic_interval": 7,
            },
            {
                name: {"interval": 7}
                for name in ("stiffness", "grid-alignment", "ulp-stats", "shadow")
            },
        ),
    ],
)
def test_flat_keys_activate_plugins(keys, settings, tmp_path):
    """With the settings of the original, only where the key says true, and not without."""
    found = load_config(write(tmp_path, **keys))
    assert set(found.plugins) - {"progress", "failure-report", "page"} == set(settings)
    assert found.settings == settings
    off = load_config(write(tmp_path, **{k: False if v is True else v for k, v in keys.items()}))
    assert off.plugins == load_config().plugins
    assert off.settings == {}
    assert off.original == {k: False if v is True else v for k, v in keys.items()}


def test_defaults_are_those_of_what_they_mean():
    """A flat key's default is the default of the settings that it sets."""
    for key, meaning in compound_keys().items():
        for setting in meaning.get("sets", ()):
            owner, _, name = setting.partition(".")
            cls = find(owner, ("intervention", "diagnostic", "optimizer")).load()
            (found,) = [s["default"] for s in describe_settings(cls) if s["name"] == name]
            assert found == meaning["default"], key
        if isinstance(meaning["default"], bool):
            assert meaning["default"] is False


def test_a_given_default_changes_nothing(tmp_path):
    """A file that writes a default out is the file that does not, but for the record."""
    given = {k: m["default"] for k, m in compound_keys().items()}
    base = {"use_fp8": True, "log_ulp": True}
    with_all = load_config(write(tmp_path, **{**given, **base}))
    without = load_config(write(tmp_path, **base))
    assert with_all.evolve(original={}, settings={}) == without.evolve(original={}, settings={})
    assert with_all.settings == {"ulp-stats": {"interval": 50}}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"use_fp8": "yes"},
            r"^use_fp8: 'yes' is not true or false \(given in .*flat.yaml, line 1\)$",
        ),
        ({"use_fp8": 1}, "is not true or false"),
        ({"partition_clip_base": "x"}, "is not a number"),
        ({"emergency_shift_nan_patience": 2.5}, "is not a whole number"),
        ({"checkpoint_dir": 3}, "is not text"),
        ({"use_fp8": True, "fp8_format": "E9M9X"}, r"unknown format .*given in .*flat.yaml"),
        ({"use_fp": True}, "did you mean use_fp8"),
        (
            {"preset": "format-experimnt"},
            "none of format-experiment, .*did you mean format-experiment",
        ),
    ],
)
def test_a_wrong_flat_key_is_named(keys, says, tmp_path):
    """With the file, and what would be right."""
    with pytest.raises(BadInput, match=says):
        load_config(write(tmp_path, **keys))


def test_a_flat_key_twice_is_refused():
    """On the command line, as every other key."""
    with pytest.raises(BadInput, match="use_fp8: given twice, by --set and by --set"):
        load_config(None, [*by_set(use_fp8=True), *by_set(use_fp8=False)])


def test_a_missing_plugin_says_what_to_install(monkeypatch):
    """The optimizer, the diagnostics and the preset's plugins are distributions of their own."""
    kept = tuple(e for e in expansion.entries() if e.kind in ("workload", "format"))
    monkeypatch.setattr(expansion, "entries", lambda: kept)
    with pytest.raises(BadInput, match=r"manifold-adamw.* pip install altcore-optimizers"):
        load_config(path("e5m2_manifold"), by_set(use_shadow=False))
    with pytest.raises(BadInput, match=r"shadow.* pip install altcore-diagnostics"):
        load_config(path("e5m2_manifold"))
    with pytest.raises(BadInput, match=r"preset.*partition-clip.* pip install altcore-interv"):
        load_config(None, preset())


def test_settings_of_the_default_workload_go_to_the_active_one():
    """A flat file serves another workload and optimizer, as far as these have the settings."""
    found = load_config(None, by_set(n_layer=3, beta1=0.5, workload="other", optimizer="sgd"))
    assert found.settings == {"other": {"n_layer": 3}, "sgd": {"beta1": 0.5}}


def test_sources_name_the_original_key_that_a_value_comes_from():
    """With its line, for errors that are found only when the run is built."""
    file, text = path("e7m0_uniform"), path("e7m0_uniform").read_text()
    _, sources = merge_sources(file, by_set(n_layer=1))

    def line(key):
        return 1 + next(i for i, x in enumerate(text.splitlines()) if x.startswith(f"{key}:"))

    use_fp8 = Source(str(file), line("use_fp8"), through="use_fp8")
    assert sources["recipe"] == sources["compute"] == use_fp8
    assert sources["format"] == Source(str(file), line("fp8_format"), through="fp8_format")
    assert sources["gpt.n_head"] == Source(str(file), line("n_head"))
    assert sources["gpt.n_layer"] == Source(flag="--set")


def test_the_meanings_are_documented():
    """Every flat key that stands for several, and every preset, with its default and plugins."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| [^|]+ \|$", text, re.MULTILINE)
    table = {k: v for k, v in rows if k in compound_keys()}
    shown = {k: str(m["default"]) for k, m in compound_keys().items()}
    assert table == {k: v.lower() if v in ("True", "False") else v for k, v in shown.items()}
    for name, meaning in presets().items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", text, re.MULTILINE)
        assert all(f"`{plugin}`" in row for plugin in meaning["plugins"])


@pytest.mark.parametrize(
    ("own", "expected"), [({}, (1e-6, 7)), ({"grad-stats.dead_window": 3}, (1e-6, 3))]
)
def test_thresholds_reach_the_plugins_that_use_them(own, expected, tmp_path):
    """The run's own keys are also settings of plugins, unless these are given."""
    keys = {"dead_neuron_threshold": 1e-6, "dead_neuron_window": 7, **own}
    found = load_config(write(tmp_path, **keys), preset())
    assert found == load_config(write(tmp_path, **found.to_plain()))
    (plugin,) = (p for p in load_plugins(found) if p.name == "grad-stats")
    assert (plugin.instance.dead_threshold, plugin.instance.dead_window) == expected
    assert (found.dead_neuron_threshold, found.dead_neuron_window) == (1e-6, 7)


@pytest.mark.parametrize("name", ["mantissa-shift", "stochastic-on-stall"])
def test_what_the_run_takes_for_a_stall_is_one_for_those_that_act_on_it(name, tmp_path):
    """A threshold of their own, left at its default, would keep them from acting, or do nothing."""
    for own, expected in (({}, 0.3), ({f"{name}.stall_threshold": 0.6}, 0.6)):
        keys = {"bit_stall_threshold": 0.3, "plugins": [name], **own}
        found = load_config(write(tmp_path, **keys))
        (plugin,) = (p for p in load_plugins(found) if p.name == name)
        assert plugin.instance.stall_threshold == expected
