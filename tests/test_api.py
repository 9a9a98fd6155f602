"""altcore from Python does what the command does, in one call."""

import pytest
import yaml
from helpers_configs import preset, write

import altcore
from altcore import BadInput
from altcore.config import load_config as load

FLAT = {
    "fp8_format": "E5M2",
    "use_fp8": True,
    "max_steps": 2,
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 2,
    "diagnostic_interval": 2,
}


def test_a_file_that_is_missing_is_no_flags_fault(tmp_path):
    """From Python nobody gave ``--config``."""
    for call in (altcore.train, load):
        with pytest.raises(
            BadInput, match=r"^config .*nofile\.yaml: cannot be read: No such"
        ) as no:
            call(str(tmp_path / "nofile.yaml"))
        assert "--" not in str(no.value)


def test_a_file_a_preset_and_data_in_one_call(tmp_path, corpus):
    """Flat keys, the preset's plugins and the data are those of the command."""
    file = write(tmp_path, **FLAT, runs_dir=str(tmp_path / "runs"))
    result = altcore.train(file, preset="format-experiment", data=corpus, device="cpu")
    found = altcore.load_config(result.run_directory / "config.yaml")
    flags = [("data", str(corpus), None), ("device", "cpu", None)]
    asked = load(file, [*preset(), *flags])
    for key in ("plugins", "format", "recipe", "compute", "original", "max_steps"):
        assert getattr(found, key) == getattr(asked, key)
    for owner in ("gpt", "grad-stats", "stiffness", "partition-clip"):
        assert found.settings[owner] == asked.settings[owner]
    assert {"grad-stiffness", "mantissa-shift", "progress"} <= set(found.plugins)
    assert result.format_name == "E5M2"
    below = [k for k in result.diagnostics_history[0] if k.startswith("grad-stiffness/")]
    assert "grad-stiffness/view_below_share" in below


def test_a_mapping_takes_a_preset_too(tmp_path):
    """`load_config` has the keys of `train`, whichever way they are given."""
    file = write(tmp_path, **FLAT)
    found = altcore.load_config(file, {"preset": "format-experiment", "max_steps": 3})
    assert found == altcore.load_config(overrides={**FLAT, "preset": "format-experiment"}).evolve(
        max_steps=3
    )


def test_a_complete_configuration_takes_no_preset():
    with pytest.raises(BadInput, match=r"^preset 'format-experiment': a TrainConfig is complete"):
        altcore.train(altcore.load_config(), preset="format-experiment")


def test_a_saved_configuration_is_the_same_run(tmp_path):
    """With its name, and whatever formats and plugins it has."""
    config = altcore.load_config(
        overrides={"format": {"name": "Mine", "exponent": 4, "mantissa": 1}, "name": "mine"}
    )
    path = altcore.save_config(config, tmp_path / "saved.yaml")
    assert altcore.load_config(path) == config
    assert yaml.safe_load(path.read_text())["name"] == "mine"
    with pytest.raises(BadInput, match=r"none/saved.yaml: cannot be written: No such file"):
        altcore.save_config(config, tmp_path / "none" / "saved.yaml")
