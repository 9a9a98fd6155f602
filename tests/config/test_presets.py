"""Presets: their plugins and settings, weaker than what a run names itself."""

import pytest
from helpers_configs import preset, write

from altcore.config import TrainConfig, load_config


@pytest.mark.parametrize("shadow", [True, False])
def test_the_presets_plugins(shadow, tmp_path):
    """Those of the original runner, whatever the file; shadow as the file says."""
    file = write(tmp_path, use_fp8=True, use_shadow=shadow, enable_partition_clipping=False)
    found = load_config(file, preset())
    expected = [
        "partition-clip",
        "mantissa-shift",
        "stiffness",
        "grid-alignment",
        "ulp-stats",
        "grad-stats",
        "grad-stiffness",
        "failure-report",
    ]
    assert set(found.plugins) == {*expected, *["shadow"] * shadow, "progress", "page"}
    assert len(found.plugins) == len(set(found.plugins))
    assert found.settings["partition-clip"] == {"mode": "original"}
    assert found.settings["mantissa-shift"] == {"chain": "original", "stall_of": "view"}


def test_the_list_of_monitors():
    """The four of the loss-slope study; the preset's other keys are settings of theirs."""
    found = load_config(None, preset("loss_lin_slope_metrics"))
    assert found.plugins[:4] == ("grad-stats", "noise", "curvature", "loss-slope")
    assert found.settings == {"grad-stats": {"interval": "0.25 epoch"}}
    assert found.evals_per_epoch == 4


def test_a_preset_is_weaker_than_what_is_given(tmp_path):
    """Its settings, and its plugins by --no-plugin; those that are given come first."""
    file = write(tmp_path, plugins=["amax", "grad-stats"], **{"mantissa-shift.chain": "range"})
    found = load_config(file, preset(), without=["stiffness"])
    assert found.plugins[:2] == ("amax", "grad-stats")
    assert "stiffness" not in found.plugins
    assert found.settings["mantissa-shift"]["chain"] == "range"
    in_file = load_config(write(tmp_path, preset="format-experiment"))
    assert in_file == load_config(None, preset())
    assert TrainConfig.from_plain(found.to_plain()) == found
