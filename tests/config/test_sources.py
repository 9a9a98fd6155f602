"""Errors name the key, the file and the line: of lists, of formats within settings, of plugins."""

import pytest
from helpers_cli import call

import altcore
from altcore import BadInput
from altcore.config import load_config

CASES = {
    # values that nothing below Python holds
    "warmup_steps: " + "1" * 400: ("warmup_steps", 1, "is beyond 64 bits"),
    "seed: 1\nstall_window: 1" + "0" * 40: ("stall_window", 2, "is beyond 64 bits"),
    "seed: 1\nlearning_rate: 1" + "0" * 400: ("learning_rate", 2, "is beyond float64"),
    'seed: 1\nruns_dir: "a\\0b"': ("runs_dir", 2, "is not a name or path"),
    'seed: 1\nlabel: "\\ud800"': ("", 2, "not valid YAML: found invalid Unicode character"),
    # formats in plain form
    "seed: 1\nformat:\n  name: X\n  exponent: 4\n  bogus: 1": ("format", 5, "key 'bogus'"),
    "format:\n  name: X\n  exponent: 4\n  mantissa: a": ("format", 4, "'a' is not a whole number"),
    "format:\n  name: X\n  values:\n    - 0\n    - a": ("format", 5, "item 1, 'a', is not"),
    "format:\n  name: X\n  exponent: 4\n  mantissa: 99": ("format", 2, "format X has 104 bits"),
    "recipe:\n  weight:\n    name: X\n    exponent: 4\n    bogus: 1": ("recipe", 5, "'bogus'"),
    # what is only looked up when the run is built
    "plugins:\n- rollback\nrollback:\n  format:\n    name: X\n    values: [0, 1]\n    bogus: 1": (
        "rollback.format", 7, "format X: unknown key 'bogus'",
    ),
    "plugins:\n- ulp-stats\n- ulp-stas": ("plugins", 3, "unknown plugin 'ulp-stas'"),
    "freeze:\n- lm_head\n- zzz": ("freeze", 3, "'zzz' matches no layer"),
    "gpt:\n  size: tiny\n  dropout: x": ("gpt.dropout", 3, "'x' is not a number"),
    # the rest
    "no_plugins:\n- progress\n- zzz": ("no_plugins", 3, "'zzz' is not active"),
    "seed: 1\nformat_digests:\n  E5M2: a": ("format_digests", 3, "format E5M2: the values"),
    "seed: 1\nformat_digests: ['a']": ("format_digests", 2, "is not a mapping of names to text"),
    "seed: 1\n~: 3": ("", 2, "the key null is not text"),
    "seed: 1\n1.5: 3": ("", 2, "the key 1.5 is not text"),
    "seed: 1\ngpt:\n  2: 3": ("gpt", 3, "the key 2 is not text"),
    "seed: 1\nsettings: {3: {}}": ("settings", 2, "the key 3 is not text"),
    "settings:\n  settings:\n    gpt: {size: tiny}": ("settings", 3, "has no settings of its own"),
    "seed: 1\ntags: !!set {a, b}": ("tags", 2, "is not a list of names"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), CASES.items(), ids=[c[:40] for c in CASES])
def test_an_error_names_key_and_line(text, says, tmp_path):
    """From Python as from the command; nothing is written, and no value is printed whole."""
    key, line, problem = says
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        altcore.train(file)
    error = caught.value
    assert (error.key, error.source.line) == (key, line), error
    assert problem in str(error)
    assert "format: format" not in str(error) or key == "rollback.format"
    assert len(str(error)) < 500
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train --plugin ulp-stas", "plugins: unknown plugin 'ulp-stas'"),
        ("train --plugin ulp-stats --plugin stas", "plugins: unknown plugin 'stas'"),
    ],
)
def test_a_plugin_of_the_command_line_names_its_flag(arguments, says, capsys):
    """A file may list others."""
    outcome = call(capsys, *arguments.split())
    assert outcome.code == 2
    assert says in outcome.err
    assert "(given by --plugin)" in outcome.err


@pytest.mark.parametrize("command", ["compare --formats E4M3", "explain --format E4M3"])
@pytest.mark.parametrize("text", ["seed: 1\ngpt.dropout: x\n", "gpt:\n  dropout: x\n"])
def test_studies_name_the_line_of_a_setting(command, text, tmp_path, monkeypatch, capsys):
    """Also of one that only the workload reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    outcome = call(capsys, *command.split(), "--config", "c.yaml", "--steps", "1")
    assert "gpt.dropout: 'x' is not a number (given in c.yaml, line 2)" in outcome.err


def test_active_plugins_are_listed_once(capsys):
    """A preset adds plugins that are default observers as well."""
    outcome = call(capsys, "train", "--preset", "format-experiment", "--no-plugin", "shadow")
    assert outcome.err.count("failure-report") == 1


def test_settings_of_plugins_are_plain(tmp_path):
    """What errors need of a file stays in the configuration: a plugin's state is saved."""
    file = tmp_path / "c.yaml"
    file.write_text("format: {name: X, values: [0, 1]}\nsettings: {gpt: {size: tiny}}\n")
    config = load_config(file)
    assert type(config.to_plain()["settings"]["gpt"]) is dict
    assert config == load_config(
        overrides={"format": {"name": "X", "values": [0, 1]}, "settings": {"gpt": {"size": "tiny"}}}
    )
