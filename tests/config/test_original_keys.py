"""The original experiments: their files, their flat keys, the preset, and the script for all."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import util

import pytest
import yaml
from helpers import events
from helpers_cli import ROOT, call

from altcore import BadInput
from altcore.config import TrainConfig, expansion, load_config, merge_sources
from altcore.config.original_keys import compound_keys, renamed_keys
from altcore.config.presets import presets
from altcore.errors import Source
from altcore.hooks import describe_settings
from altcore.registry import find
from altcore.yaml_files import load_yaml

CONFIGS = ROOT / "experiments" / "configs"
NAMES = (
    "bf16_baseline",
    "e5m2_fp8",
    "e5m2_short",
    "e0m7_uniform",
    "e1m6_uniform",
    "e3m4_uniform",
    "e7m0_uniform",
    "e5m2_standard",
    "e5m2_manifold",
)
SHORT = {
    "n_layer": 6,
    "n_head": 6,
    "n_embd": 384,
    "block_size": 256,
    "vocab_size": 50257,
    "dropout": 0.0,
    "batch_size": 12,
    "learning_rate": 6e-4,
    "max_steps": 500,
    "warmup_steps": 100,
    "grad_clip": 1.0,
    "use_fp8": True,
    "use_shadow": True,
    "checkpoint_interval": 100,
    "max_checkpoints": 3,
    "nan_patience": 3,
    "bit_stall_threshold": 0.5,
    "overflow_threshold": 0.01,
    "dead_neuron_threshold": 1.0e-8,
    "dead_neuron_window": 100,
    "log_interval": 1,
    "eval_interval": 100,
    "project": "altgrad",
    "seed": 42,
}
"""What e5m2_short and the four uniform files have in common."""
OWN = {
    "e5m2_short": ("E5M2", "e5m2-short-baseline", "fp8 e5m2 eurlex format-test baseline short"),
    **{
        f"{f}_uniform": (f.upper(), f"{f}-uniform", f"fp8 {f} eurlex format-test uniform")
        for f in ("e0m7", "e1m6", "e3m4", "e7m0")
    },
}
TINY = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 2,
    "eval_steps": 1,
    "device": "cpu",
}


def path(name):
    return CONFIGS / f"{name}.yaml"


def held(name):
    return load_yaml(path(name).read_text(), Source(name))


def by_set(**keys):
    return [(k.replace("__", "."), v, Source(flag="--set")) for k, v in keys.items()]


def preset(name="format-experiment"):
    return [("preset", name, Source(flag="--preset"))]


def write(folder, **keys):
    file = folder / "flat.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


# -------------------------------------------------------------------------------- the files


def test_there_are_the_nine():
    """No other file, and none less."""
    assert {p.name for p in CONFIGS.iterdir()} == {f"{n}.yaml" for n in NAMES}


@pytest.mark.parametrize("name", OWN)
def test_short_files_are_equal_but_for_the_format_and_its_names(name):
    """Runs of different formats differ in nothing else: only then can they be compared."""
    fmt, run, tags = OWN[name]
    found = held(name)
    own = {k: found.pop(k) for k in ("fp8_format", "checkpoint_dir", "run_name", "tags")}
    assert found == SHORT
    assert (own["fp8_format"], own["run_name"], own["tags"]) == (fmt, run, tags.split())
    assert len({held(n)["checkpoint_dir"] for n in OWN}) == len(OWN)


def test_what_the_other_files_hold():
    """Longer ones, and the two that differ in the optimizer."""
    others = {n: held(n) for n in NAMES if n not in OWN}
    assert {n: (f["max_steps"], f["use_fp8"]) for n, f in others.items()} == {
        "bf16_baseline": (2000, False),
        "e5m2_fp8": (2000, True),
        "e5m2_standard": (500, True),
        "e5m2_manifold": (500, True),
    }
    assert {f["nan_patience"] for f in others.values()} == {10}
    assert {held(n)["seed"] for n in NAMES} == {42}
    standard, manifold = others["e5m2_standard"], others["e5m2_manifold"]
    assert (standard["use_manifold_aware"], manifold["use_manifold_aware"]) == (False, True)
    assert "log_bit_position" in standard.keys() & manifold.keys()
    assert manifold["manifold_mantissa_bits"] == 2
    assert manifold["manifold_max_stiffness"] == 1e6


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_is_expected(name):
    """In the comment that it opens with."""
    comment = re.match(r"(#.*\n)+", path(name).read_text()).group().replace("\n# ", " ")
    assert "Expected: " in comment
    words = {
        "e0m7_uniform": "narrow range",
        "e1m6_uniform": "overflow in attention",
        "e3m4_uniform": "similar to E5M2",
        "e7m0_uniform": "near-100 % bit-stall",
    }
    assert words.get(name, "") in comment


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
    assert set(found.plugins) - {"progress", "failure-report"} == set(settings)
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


# ------------------------------------------------------------------------------ the preset


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
        "failure-report",
    ]
    assert set(found.plugins) == {*expected, *["shadow"] * shadow, "progress"}
    assert len(found.plugins) == len(set(found.plugins))
    assert found.settings["partition-clip"] == {"mode": "original"}
    assert found.settings["mantissa-shift"] == {"chain": "original", "stall_of": "view"}


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


# -------------------------------------------------------------------------------- they run


@pytest.mark.parametrize("name", NAMES)
def test_each_runs(name, tmp_path, corpus, capsys):
    """Two steps at a tiny size through the command, every diagnostic measuring in each."""
    runs = tmp_path / "runs"
    sets = {**TINY, "runs_dir": runs, "diagnostic_interval": 1, "data": corpus}
    arguments = [a for k, v in sets.items() for a in ("--set", f"{k}={v}")]
    base = ["train", "--config", path(name), "--preset", "format-experiment", "--steps", "2"]
    done = call(capsys, *base, *arguments)
    assert done.code == 0, done.err
    run = runs / held(name)["run_name"]
    assert run.is_dir()
    lines = [load_yaml(x, Source("x")) for x in (run / "metrics.jsonl").open()]
    measured = {k.partition("/")[0] for k in lines[-2] if "/" in k}
    quantized = {"stiffness", "grid-alignment", "ulp-stats", "shadow"}
    expected = {"grad-stats", "mantissa-shift"} | (quantized if held(name)["use_fp8"] else set())
    assert expected <= measured
    assert not events(run, "degraded")
    assert "checkpoint_dir not used: checkpoints are in the run's own directory" in done.err
    assert done.err.count("gpt.vocab_size 50257 is a BPE vocabulary") == 1
    if held(name)["use_fp8"]:
        assert lines[-2]["view_stall_rate"] is not None
        assert lines[-2]["stored_stall_rate"] is None


def test_a_label_names_runs_and_a_second_one_gets_a_number(start):
    """Unlike a name, which must be new; whatever the label holds, the run is in its folder."""
    first, second = (start(label="e0m7-uniform").run_directory for _ in range(2))
    assert [first.name, second.name] == ["e0m7-uniform", "e0m7-uniform-2"]
    odd = start(label="../my run: 3/4").run_directory
    assert odd.name == "my-run-3-4"
    assert odd.parent == start.runs
    assert start(label="...", format="E3M4").run_directory.name == "e3m4-master"
    assert start(label="x", name="named").run_directory.name == "named"
    again = load_config(first / "config.yaml")
    assert (again.label, again.name) == ("e0m7-uniform", None)


# --------------------------------------------------------------------------- all in a row


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """experiments/run.py as a module, whose runs are in this process and in ``tmp_path``."""
    spec = util.spec_from_file_location("experiments_run", ROOT / "experiments" / "run.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    asked = []

    def execute(command):
        asked.append(command[3:])
        return call(capsys, *command[3:]).code

    module.really_execute = module.execute
    monkeypatch.setattr(module, "execute", execute)
    module.asked = asked
    return module


SETS = [a for k, v in TINY.items() if k != "device" for a in ("--set", f"{k}={v}")]


def test_the_script_runs_skips_and_goes_on(script, tmp_path, corpus, capsys):
    """What is finished is skipped, what was cut short is resumed, what left nothing begins anew."""
    given = ["--only", "e7m0_uniform", "e3m4_uniform", "--steps", "3", "--device", "cpu"]
    given += ["--data", str(corpus), *SETS, "--set", "checkpoint_interval=1"]
    assert script.main(given) == 0
    runs = tmp_path / "runs"
    one, two = (runs / f"{n}-uniform-3-steps" for n in ("e7m0", "e3m4"))
    report = (runs / "format-experiments-3-steps.md").read_text()
    assert f"| {one.name} | E7M0 | finished | 3 |" in report
    assert f"| {two.name} | E3M4 | finished | 3 |" in report
    assert all("--preset" in a for a in script.asked)

    # As if the first had been killed after its second step, and the second before any.
    keep = [x for x in (one / "events.jsonl").open() if '"event": "end"' not in x]
    (one / "events.jsonl").write_text("".join(keep))
    for cut in (*(one / "checkpoints").glob("step-*3"), *(two / "checkpoints").glob("step-*")):
        shutil.rmtree(cut)
    script.asked.clear()
    assert script.main(given) == 0
    assert script.asked[0][:3] == ["train", "--resume", one.name]
    assert "--resume" not in script.asked[1]
    assert (runs / f"{two.name}-cut-1").is_dir()
    assert [e["event"] for e in events(one, "resume", "end")] == ["resume", "end"]

    script.asked.clear()
    capsys.readouterr()
    assert script.main(given) == 0
    assert not script.asked
    assert f"{one.name} is done\n{two.name} is done" in capsys.readouterr().out


def test_the_script_does_not_mix_data(script, corpus, capsys):
    """Runs on different data cannot be compared."""
    given = ["--only", "e7m0_uniform", "--steps", "1", "--device", "cpu", *SETS]
    assert script.main([*given, "--data", str(corpus)]) == 0
    assert script.main(given) == 2
    assert "give the same data, or another --runs-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "leaves", "calls"), [(1, 1, 2), (2, 1, 2), (130, 130, 1), (143, 143, 1), (-9, 137, 1)]
)
def test_a_run_that_fails_leaves_the_others_their_turn(script, monkeypatch, code, leaves, calls):
    """Who interrupts one run means them all."""
    asked = []

    def execute(command):
        asked.append(command)
        return code

    monkeypatch.setattr(script, "execute", execute)
    assert script.main(["--only", "e7m0_uniform", "e3m4_uniform"]) == leaves
    assert len(asked) == calls


@pytest.mark.parametrize(
    ("number", "passed"), [(signal.SIGTERM, True), (signal.SIGUSR1, True), (signal.SIGINT, False)]
)
def test_a_run_that_is_asked_to_leave_is_waited_for(script, tmp_path, number, passed):
    """It writes a checkpoint first; Ctrl-C comes to it from the terminal."""
    code = f"""
import signal, sys, time
from pathlib import Path
def leave(number, _):
    time.sleep(0.5)
    Path("left").touch()
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, leave)
Path("ready").touch()
time.sleep({20 if passed else 1})
"""

    def ask():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=ask).start()
    found = script.really_execute([sys.executable, "-c", code])
    assert found == 128 + number
    assert (tmp_path / "left").exists() == passed
    assert signal.getsignal(number) is before


def test_the_script_knows_all_of_them(script):
    """In an order that has each once."""
    assert sorted(script.ORDER) == sorted(NAMES)
    assert script.name_of("e5m2_short", None) == "e5m2-short-baseline"
    assert script.name_of("e5m2_short", 2) == "e5m2-short-baseline-2-steps"


def test_make_has_the_target():
    """With the device, the data and the steps as arguments."""
    done = subprocess.run(
        ["make", "-n", "-o", "venv", "format-experiments", "DEVICE=cuda", "DATA=x", "STEPS=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "experiments/run.py --device cuda --data x --steps 2" in done.stdout
