"""Options on the command line, presets of other files: the same sweep as one file asks for."""

import pytest
from helpers_cli import call

from altcore.errors import BadInput
from altcore.sweep import Given, asked_sweep, jobs_of, read_sweep


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
