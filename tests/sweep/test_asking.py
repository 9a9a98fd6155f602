"""Options on the command line, presets of other files: the same sweep as one file asks for."""

import pytest
from helpers_cli import call
from helpers_sweeps import ledger_of

from altcore.errors import BadInput, Source
from altcore.sweep import (
    Given,
    Rule,
    asked_sweep,
    jobs_of,
    make_executor,
    read_sweep,
    sweep_text,
)
from altcore.yaml_files import source_of


@pytest.fixture
def file(tmp_path):
    """A sweep file."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "base: {gpt.size: tiny, max_steps: 6}\nvariants: {base: {}}\n"
        "grid: {learning_rate: [0.3]}\ncolumns: [val_loss]\n"
    )
    return path


def test_options_do_what_a_file_does(tmp_path, file):
    """Alone, as the same file would."""
    file.write_text(
        "base: {gpt.size: tiny, max_steps: 6}\nseeds: [7]\n"
        "variants: {a: {}, pure: {recipe: pure, format: E5M2}}\n"
        "grid: {learning_rate: [0.05, 1e-1]}\n"
    )
    given = Given(
        name="study",
        params=["learning_rate=0.05,1e-1"],
        variants=["a", "pure:recipe=pure,format=E5M2"],
        sets=["gpt.size=tiny", "max_steps=6"],
        seeds="7,",
    )
    made = asked_sweep(None, given)
    assert made == read_sweep(file)
    assert jobs_of(made) == jobs_of(read_sweep(file))


def test_a_value_of_a_variant_may_be_a_list_or_a_mapping():
    """As that of a key of the grid may: commas within brackets and quotes are its own."""
    text = "mixed:format=E7M0,plugins=[ulp-stats,bit-stall],recipe={weight: none, skip: ['a,b']}"
    made = asked_sweep(None, Given(name="x", variants=[text]))
    assert made.variants["mixed"] == {
        "format": "E7M0",
        "plugins": ["ulp-stats", "bit-stall"],
        "recipe": {"weight": "none", "skip": ["a,b"]},
    }
    made = make_executor("slurm:2,setup=[module load a,module load b],mem=3G")
    assert (made.setup, made.mem) == (["module load a", "module load b"], "3G")


def test_options_add_to_a_file(file):
    """And win over its keys; a number of seeds is one."""
    given = Given(params=["learning_rate=0.1,0.2"], variants=["b"], sets=["max_steps=3"], seeds="2")
    made = asked_sweep(str(file), given)
    assert (made.name, made.grid, made.seeds) == ("study", {"learning_rate": [0.1, 0.2]}, 2)
    assert made.base == {"gpt.size": "tiny", "max_steps": 3}
    assert list(made.variants) == ["base", "b"]
    assert asked_sweep(str(file), Given(name="other")).name == "other"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "a sweep file or a name for the sweep is needed: give FILE or --name NAME"),
        ({"name": "x", "params": ["learning_rate"]}, "--param learning_rate: KEY=VALUE,VALUE is"),
        ({"name": "x", "params": ["a=1", "a=2"]}, "--param: a key is given twice"),
        ({"name": "x", "variants": ["a:b"]}, "--variant b: KEY=VALUE is needed"),
        ({"name": "x", "variants": ["a:b=1,b=2"]}, "--variant a:b=1,b=2: a key is given twice"),
        (
            {"name": "x", "sets": ["learning_rate=1"], "params": ["learning_rate=2"]},
            r"learning_rate: grid.learning_rate \(--param\) and base \(--set\) both give it",
        ),
        (
            {"name": "x", "sets": ["gpt={n_head: 2}"], "variants": ["a:seed=1"], "seeds": "7,"},
            r"seed: seeds and variants.a \(--variant\) both give it: keep one of them",
        ),
        ({"name": "../x"}, "is not a name"),
        ({"name": "x", "seeds": "a"}, "a number of seeds"),
        ({"name": "x", "params": ["learning_rat=1"]}, "--param: unknown key 'learning_rat'"),
        ({"name": "x", "sets": ["max_steps=a"]}, r"max_steps.*given by --set"),
        ({"name": "x", "variants": ["a:max_steps=z"]}, r"max_steps.*given by --variant"),
    ],
)
def test_bad_options_are_refused(given, told):
    """With the option."""
    with pytest.raises(BadInput, match=told):
        jobs_of(asked_sweep(None, Given(**given)))


def test_a_preset_is_a_file_of_an_installed_package(file, tmp_path, monkeypatch):
    """Its mappings are joined with the file's own, which win; so columns come from a plugin."""
    package = tmp_path / "site" / "my_studies"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "rates.yaml").write_text(file.read_text())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert read_sweep("my_studies:rates.yaml").name == "rates"
    file.write_text("preset: my_studies:rates.yaml\nbase: {max_steps: 2}\nseeds: 4\n")
    made = read_sweep(file)
    assert made.base == {"gpt.size": "tiny", "max_steps": 2}
    assert (made.columns, made.seeds, made.name) == (["val_loss"], 4, "study")
    assert len(jobs_of(made)) == 4
    for preset, told in (
        ("my_studies:rate.yaml", r"my_studies has no file 'rate.yaml' \(did you mean rates.yaml"),
        ("no_such:rates.yaml", "there is no installed package 'no_such'"),
        (str(file), "is built on itself"),
    ):
        file.write_text(f"preset: {preset}\n")
        with pytest.raises(BadInput, match=told):
            read_sweep(file)


PRESET = """
base: {gpt: {size: tiny, block_size: 8, batch_size: 4}, optimizer: adamw, recipe: {weight: E4M3}}
variants: {a: {gpt: {n_head: 2}, learning_rate: 0.1}, b: {}}
retry: {mine: {limit: 2, patterns: [fire], halve: {learning_rate: 0}}}
executors: {slurm: {mem: 1G, sbatch: {qos: low}}}
columns: [val_loss, loss]
"""
OWN = """
preset: PRESET
base: {gpt.block_size: 16, batch_size: 2, gpt: {n_layer: 1}, adamw: {eps: 1},
  recipe: {activation: E5M2}}
variants: {a: {settings: {gpt: {n_head: 4}}}, c: {}}
retry: {mine: {limit: 1}}
executors: {slurm: {sbatch: {nice: 5}}}
columns: [loss]
"""


def test_a_preset_is_joined_to_the_depth_of_settings(tmp_path):
    """However they are spelled; the value of a key is replaced, and so is a list."""
    (tmp_path / "preset.yaml").write_text(PRESET)
    file = tmp_path / "own.yaml"
    file.write_text(OWN.replace("PRESET", str(tmp_path / "preset.yaml")))
    made = read_sweep(file)
    assert made.base == {
        "gpt.size": "tiny",
        "gpt.block_size": 16,
        "optimizer": "adamw",
        "recipe": {"activation": "E5M2"},
        "batch_size": 2,
        "gpt.n_layer": 1,
        "adamw.eps": 1,
    }
    assert made.variants == {"a": {"gpt.n_head": 4, "learning_rate": 0.1}, "b": {}, "c": {}}
    assert made.rules["mine"] == Rule(limit=1, patterns=["fire"], halve={"learning_rate": 0})
    assert made.executors == {"slurm": {"mem": "1G", "sbatch": {"qos": "low", "nice": 5}}}
    assert made.columns == ["loss"]
    (tmp_path / "joined.yaml").write_text(sweep_text(made))
    assert jobs_of(read_sweep(tmp_path / "joined.yaml")) == jobs_of(made)
    assert source_of(made.base, "gpt.n_layer") == Source(str(file), 3)
    assert source_of(made.variants, "b") == Source(str(tmp_path / "preset.yaml"), 3)


def test_options_are_joined_like_a_preset(file):
    """So none takes another setting away, or another key of its variant."""
    file.write_text("base: {gpt: {size: tiny}}\nvariants: {a: {gpt: {n_head: 2}}}\n")
    sets, variants = ["gpt={block_size: 8}"], ["a:learning_rate=0.1"]
    made = asked_sweep(str(file), Given(sets=sets, variants=variants))
    assert made.base == {"gpt.size": "tiny", "gpt.block_size": 8}
    assert made.variants == {"a": {"gpt.n_head": 2, "learning_rate": 0.1}}


def test_a_preset_and_a_grid_that_give_the_same_key(tmp_path):
    """Whichever of both has the grid."""
    for theirs, own in (
        ("base: {gpt.batch_size: 4}", "grid: {batch_size: [8]}"),
        ("grid: {gpt.batch_size: [8]}", "variants: {a: {gpt: {batch_size: 4}}}"),
        ("grid: {gpt.batch_size: [8]}", "grid: {batch_size: [4]}"),
    ):
        (tmp_path / "preset.yaml").write_text(theirs)
        file = tmp_path / "own.yaml"
        file.write_text(f"preset: {tmp_path / 'preset.yaml'}\n{own}\n")
        with pytest.raises(
            BadInput, match=r"gpt.batch_size: .*yaml, line \d.*yaml, line \d\) both"
        ):
            jobs_of(read_sweep(file))


@pytest.mark.parametrize("told", ["toy", "toy/", "sweeps/toy", "./sweeps/toy/"])
def test_a_sweep_that_was_begun_is_told_by_its_name(tmp_path, capsys, monkeypatch, told):
    """Or by its folder, as a shell completes it; options change what it asks for."""
    monkeypatch.chdir(tmp_path)
    ledger_of(tmp_path / "sweeps")
    done = call(capsys, "sweep", "plan", told, "--param", "learning_rate=0.1,0.2")
    assert done.out.splitlines() == ["base-learning_rate0.1-seed42", "base-learning_rate0.2-seed42"]
    assert "removed since" in done.err
    assert call(capsys, "sweep", "status", told).out.startswith("toy: 1 job")
    done = call(capsys, "sweep", "run", told, "--set", "max_steps=7")
    assert "other jobs than" in done.message
    for command in ("plan", "check", "run"):
        done = call(capsys, "sweep", command, told.replace("toy", "toi"), "--seeds", "2")
        assert done.message.startswith("altcore: there is no sweep 'toi' in sweeps (did you mean t")


def test_a_file_that_has_the_name_of_a_sweep_by_chance(tmp_path, capsys, monkeypatch):
    """Is not taken for its file; and an empty one asks for no sweep."""
    monkeypatch.chdir(tmp_path)
    ledger_of(tmp_path / "sweeps")
    for name in ("toy", "other"):
        (tmp_path / name).touch()
    assert call(capsys, "sweep", "plan", "toy").out == "base-seed42\n"
    assert "other is empty: it asks for no sweep" in call(capsys, "sweep", "plan", "other").message


def test_the_command_plans_without_a_file(tmp_path, capsys):
    """And says that nothing was measured."""
    given = ("--name", "t", "--set", "gpt.size=tiny", "--param", "learning_rate=0.1,0.2")
    done = call(capsys, "sweep", "plan", *given, "--sweeps-dir", tmp_path)
    assert done.out.splitlines() == ["base-learning_rate0.1-seed42", "base-learning_rate0.2-seed42"]
    assert done.err.splitlines() == [
        "2 jobs: base 2",
        "time and memory are unknown: altcore sweep check measures a few steps",
    ]
    assert not list(tmp_path.iterdir())


def test_a_preset_may_have_a_preset_in_its_own_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "first.yaml").write_text(
        "base: {max_steps: 2, gpt.size: tiny}\nseeds: 3\n"
    )
    (tmp_path / "inner" / "second.yaml").write_text("preset: first.yaml\nbase: {max_steps: 4}\n")
    (tmp_path / "mine.yaml").write_text("preset: inner/second.yaml\nseeds: 2\n")
    asked = read_sweep(tmp_path / "mine.yaml")
    assert (dict(asked.base), asked.seeds) == ({"max_steps": 4, "gpt.size": "tiny"}, 2)
    (tmp_path / "inner" / "first.yaml").write_text("preset: second.yaml\n")
    with pytest.raises(BadInput, match=r"second\.yaml is built on itself"):
        read_sweep(tmp_path / "mine.yaml")
