"""What a sweep file says for plugins and executors is checked by them, before any job begins."""

import pytest
from helpers_cli import call

from altcore.config import TrainConfig
from altcore.engine import building
from altcore.errors import BadInput
from altcore.sweep import Preflight, checked_jobs_of, jobs_of, read_sweep
from altcore.sweep.checking import SettingsCheck

MISTAKES = [
    ("base: {workload: nope}", "workload: unknown workload 'nope'"),
    ("base: {optimizer: sdg}", r"optimizer: unknown optimizer 'sdg' \(did you mean sgd\?\)"),
    ("base: {plugins: [ulp-stat]}", "plugins: unknown plugin 'ulp-stat'"),
    ("base: {gpt.sizee: tiny}", r"gpt\.sizee: there is no such setting"),
    ("grid: {plugins: [[], [ulp-stat]]}", "plugins: unknown plugin 'ulp-stat'"),
    ("grid: {gpt.size: [tiny, nonsense]}", "gpt.size: 'nonsense' is none of tiny, "),
    ("variants: {a: {}, b: {adamw.beta1: 2}}", r"adamw\.beta1: "),
    ("executors: {slrm: {}}", r"slrm: unknown executor 'slrm' \(did you mean slurm\?\)"),
    ("executors: {slurm: {acount: a}}", r"slurm\.acount: .*did you mean account\?"),
    ("executors: {local: {slots: many}}", r"local\.slots: 'many' is not a whole number"),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_a_mistake_is_refused_before_anything_is_written(tmp_path, text, told):
    """By its key and line, in a value of the grid or a variant other than the first, too."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=f"{told}.*study.yaml, line 1"):
        checked_jobs_of(read_sweep(path))


@pytest.mark.parametrize("command", ["plan", "run"])
def test_the_commands_check(tmp_path, capsys, command):
    """An option as well."""
    given = ("--name", "x", "--set", "gpt.sze=tiny", "--sweeps-dir", tmp_path / "sweeps")
    done = call(capsys, "sweep", command, *given)
    assert done.code == 2
    assert "gpt.sze: there is no such setting (did you mean size?)" in done.message
    assert "given by --set" in done.message
    assert not (tmp_path / "sweeps").exists()


def test_a_check_says_it_of_the_variant(tmp_path):
    """With the line to be edited, and trains nothing."""
    path = tmp_path / "study.yaml"
    path.write_text("grid: {gpt.size: [tiny, nonsense]}\nexecutors: {slrm: {}}\n")
    failed = [f for f in Preflight(read_sweep(path), "study.yaml").findings() if not f.passed]
    assert [f.what for f in failed] == ["executors", "base: configuration"]
    assert [f.remedy for f in failed] == [f"${{EDITOR:-vi}} +{n} {path}" for n in (2, 1)]


def test_the_same_settings_are_checked_once(tmp_path, monkeypatch):
    """A sweep of 10,000 jobs has a few: seeds and learning rates are none."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "grid: {gpt.size: [tiny, small], learning_rate: [0.1, 0.2, 0.3]}\nseeds: 5\n"
        "variants: {a: {}, b: {format: E5M2}, c: {gpt.n_head: 2}}\n"
    )
    checked, real = [], building.load_plugins
    monkeypatch.setattr(
        building, "load_plugins", lambda config: checked.append(config) or real(config)
    )
    made = checked_jobs_of(read_sweep(path))
    assert len(checked) == 2 * 2
    assert made == jobs_of(read_sweep(path))
    assert isinstance(checked[0], TrainConfig)
    SettingsCheck()(checked[0])
    assert len(checked) == 5
