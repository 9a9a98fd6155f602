"""Studies know their runs by what decides them: nothing old is printed as new, nothing lost."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from attrs import define, evolve, field
from helpers import text_file
from helpers_epochs import BuiltPoints, Points

import altcore
from altcore import BadInput, Format, hookimpl, setting
from altcore.api import layers_of
from altcore.config import TrainConfig
from altcore.errors import AltcoreError
from altcore.formats import float_format, get_format, table_format
from altcore.recipes.cast_reading import Place, read_cast
from altcore.study import Entrants, Options, identity, load_answer, run_compare, run_explain
from altcore.study.arms import Arm
from altcore.study.keys import format_key
from altcore.study.record import Question, agreed_steps, claim, held, keep, read
from altcore.study.runner import DIGITS, Runner, Trial

LEFT = ("mine.yaml", "words.txt")
"""What the fixture leaves in the folder."""
LAYER = "transformer.h.0.mlp.c_fc"
COARSE = "weight: FORMAT\nactivation: FORMAT\ngradient: FORMAT\nstored_weight: FORMAT\n"


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Return a function that asks a tiny `compare`: returns what was found, and the runs made."""
    monkeypatch.chdir(tmp_path)
    text_file(Path("words.txt"))
    Path("mine.yaml").write_text("# fine\nweight: FORMAT\n")

    def asked(formats=("E2M1",), recipes=("mine.yaml",), seeds=2, name="s", **keys):
        tiny = {
            "gpt.size": "tiny",
            "gpt.n_layer": 1,
            "gpt.block_size": 16,
            "gpt.batch_size": 4,
            "gpt.data": "words.txt",
            "max_steps": 3,
            "learning_rate": 1e-2,
            "device": "cpu",
            **keys,
        }
        told = []
        overrides = [(k, v, "") for k, v in tiny.items()]
        options = Options(None, overrides, seeds, name=name, tell=told.append, rates=1, null=False)
        found, folder = run_compare(options, Entrants(list(formats), list(recipes)))
        assert load_answer(folder / f"{found['about']['page']}.json") == found
        made = [line.partition(": ")[0] for line in told if " left" in line]
        return found, made

    return asked


def gap(found):
    """The gap of the first contender."""
    return found["contenders"][0]["gap"]["mean"]


def page(found, name="s"):
    """The page that was written."""
    return Path("studies", name, f"{found['about']['page']}.md")


# ------------------------------------------------------------------------ what is new


def test_an_edited_recipe_is_another_question(ask):
    """The new answer is that of a fresh study; the old one and its runs stay where they are."""
    first, made = ask()
    assert len(made) == 6  # three arms with two seeds
    old = page(first).read_text()
    Path("mine.yaml").write_text(COARSE)
    second, made = ask()
    assert any(name.startswith("E2M1") for name in made)
    assert not any(name.startswith("twin") for name in made)
    fresh, _ = ask(name="fresh")
    assert gap(second) == gap(fresh) != pytest.approx(gap(first), rel=1e-3)
    assert page(first).read_text() == old
    assert page(second) != page(first)
    assert str(page(first)) == "studies/s/compare.md"
    # As it was before: nothing is left to run, and the answer is the old one.
    Path("mine.yaml").write_text("# fine\nweight: FORMAT\n")
    again, made = ask()
    assert (gap(again), made, page(again)) == (gap(first), [], page(first))


def test_recipe_files_are_kept(ask):
    """Each version that was asked about, comments and all, and the page says which."""
    first, _ = ask()
    Path("mine.yaml").write_text(COARSE)
    second, _ = ask()
    kept = [found["about"]["recipe_files"]["mine.yaml"] for found in (first, second)]
    assert kept[0] == "recipes/mine.yaml"
    assert Path("studies/s", kept[0]).read_text() == "# fine\nweight: FORMAT\n"
    assert Path("studies/s", kept[1]).read_text() == COARSE
    assert f"mine.yaml is {kept[1]}." in page(second).read_text()
    record = json.loads(Path("studies/s/study.json").read_text())
    assert [q["recipes"]["mine.yaml"] for q in record["questions"]] == kept
    assert len(list(Path("studies/s/recipes").iterdir())) == 2


def test_a_recipe_in_an_explanation_is_kept(ask):
    """It is given in a file of keys or on the command line."""
    Path("keys.yaml").write_text("recipe: mine.yaml\n")
    tiny = {"gpt.size": "tiny", "gpt.n_layer": 1, "gpt.data": "words.txt", "max_steps": 2}
    Path("mine.yaml").write_text("layers: {transformer.h.0.mlp.c_fc: {weight: E2M1}}\n")
    overrides = [(k, v, "") for k, v in tiny.items()]
    told = []
    found, folder = run_explain(
        Options("keys.yaml", overrides, 2, tell=told.append, rates=1, null=False)
    )
    assert found["about"]["recipe_files"] == {"mine.yaml": "recipes/mine.yaml"}
    assert (folder / "recipes" / "mine.yaml").read_text() == Path("mine.yaml").read_text()


def test_other_data_is_another_question(ask):
    """By what the file holds, not by its name; every arm is trained again."""
    first, made = ask()
    words = Path("words.txt").read_text()
    Path("words.txt").write_text(words.replace("grid", "gird"))
    second, again = ask()
    assert len(again) == len(made)
    assert gap(second) != gap(first)
    assert page(second) != page(first)
    Path("words.txt").write_text(words)
    third, made = ask()
    assert (gap(third), made) == (gap(first), [])


def test_runs_under_other_flags_are_named(ask):
    """One interval is over those of an earlier session, too."""
    assert "made alike" not in " ".join(ask()[0]["about"]["cautions"])
    torch.set_default_dtype(torch.float64)
    try:
        found, made = ask(seeds=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(made) == 3
    (said,) = (text for text in found["about"]["cautions"] if "made alike" in text)
    assert "torch's default dtype is torch.float32 in 6 runs (" in said
    assert "torch.float64 in 3 (" in said
    assert "made alike" in page(found).read_text()


def test_other_formats_do_not_overwrite_the_page(ask):
    """Under one name: each question has its own page, and finds it again."""
    first, _ = ask(["E2M1"])
    old = page(first).read_text()
    second, made = ask(["E4M3"])
    (arm,) = {name.partition("-s")[0] for name in made}
    assert re.fullmatch("E4M3-mine_yaml-[0-9a-f]{8}-adamw", arm)
    assert page(second) != page(first)
    assert "E4M3" in page(second).read_text()
    assert page(first).read_text() == old
    assert page(ask(["E4M3"])[0]) == page(second)


def test_arms_and_seeds_may_be_added(ask):
    """To the same name: only they are run, and the page that held a part now holds all."""
    first, _ = ask(["E2M1"])
    second, made = ask(["E2M1", "E4M3"])
    assert page(second) == page(first)
    assert [r["gap"] for r in second["contenders"][:1]] == [first["contenders"][0]["gap"]]
    arms = {name.rpartition("-s")[0] for name in made}
    assert not any(arm.startswith(("twin", "E2M1-mine")) for arm in arms)
    third, made = ask(["E2M1", "E4M3"], seeds=3)
    assert {name.rpartition("-s")[2].partition("-")[0] for name in made} == {"44"}
    assert page(third) == page(first)
    assert third["about"]["seeds"] == [42, 43, 44]
    # A part of it again is another table, and does not take the place of the whole.
    fourth, made = ask(["E2M1"])
    assert made == []
    assert page(fourth) != page(first)
    assert gap(fourth) == gap(first)


@pytest.mark.parametrize("at", ["few.yaml", "./few.yaml", "../few.yaml", "{folder}/few.yaml"])
def test_a_format_may_be_a_file_anywhere(ask, tmp_path, monkeypatch, at):
    """Its runs and the folder are called by its name and digest, and nothing lies elsewhere."""
    (tmp_path / "deep").mkdir()
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / "few.yaml").write_text("values: [-1, 0, 1]\n")
        (folder / "same.yaml").write_text("weight: FORMAT\n")
    monkeypatch.chdir(tmp_path / "deep")
    text_file(Path("words.txt"))
    path = at.format(folder=tmp_path)
    found, made = ask([path], [path.replace("few", "same")], name=None)
    key = format_key(get_format("few.yaml"))
    assert re.fullmatch("few-[0-9a-f]{8}", key)
    assert any(re.match(f"{key}-same_yaml-[0-9a-f]{{8}}-adamw-s42-", name) for name in made)
    assert [p.name for p in Path("studies").iterdir()] == [f"compare-{key}"]
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "few.yaml", "same.yaml", *LEFT}
    assert found["contenders"][0]["format"] == path


def test_formats_of_one_name_have_runs_of_their_own(ask):
    """Two files called alike: each contender has its key."""
    for folder, values in (("a", "-1, 0, 1"), ("b", "-2, 0, 2")):
        Path(folder).mkdir()
        Path(folder, "few.yaml").write_text(f"values: [{values}]\n")
    found, _ = ask(["a/few.yaml", "b/few.yaml"])
    assert [row["format"] for row in found["contenders"]] == ["a/few.yaml", "b/few.yaml"]


def test_a_format_key_is_never_a_path():
    """A format's name is any line of text; runs and folders are called by its key."""
    key = format_key(get_format({"name": "../../é out", "values": [-1, 0, 1]}))
    assert re.fullmatch("out-[0-9a-f]{8}", key)


def test_other_keys_are_another_question(ask):
    """All is trained anew, and has a page of its own."""
    first, made = ask()
    second, again = ask(learning_rate=2e-2)
    assert len(again) == len(made)
    assert page(second) != page(first)


# ----------------------------------------------------------------- what a run is known by


@pytest.fixture
def runner(start, tmp_path):
    """Return a function that makes the Runner of one folder, and counts what it trains."""

    def made(**keys):
        return Runner(tmp_path / "study", start.config(**{"max_steps": 2, **keys}), lambda _: None)

    return made


def run(runner, arm, seed):
    """The outcome of one run."""
    (outcome,) = runner.outcomes([Trial(arm, seed)])
    return outcome


def arm(fmt, **cast):
    """One operand of one layer in a format."""
    return Arm("F", {LAYER: {"weight@fwd": read_cast({"format": fmt, **cast}, Place())}})


def test_a_format_is_known_by_its_values(runner):
    """Two of one name, as a distribution brings them before and after an update."""
    one, other = (table_format("MINE", [-1.0, *half, 1.0]) for half in ([0.0], [-0.5, 0.0, 0.5]))
    renamed = evolve(one, name="OTHER")
    for fmt in (one, other, renamed, float_format("MINE", 1, 1)):
        study = runner()
        losses = run(study, arm(fmt), 1).losses
        assert study.done == 1
        again = runner()
        assert run(again, arm(fmt), 1).losses == losses
        assert again.done == 0


def test_keys_of_the_configuration_decide_a_run(runner):
    """Steps, learning rate, settings."""
    others = ({}, {"max_steps": 6}, {"learning_rate": 2e-2}, {"gpt__bias": False})
    assert len({runner(**keys).digest_of(arm("E4M3")) for keys in others}) == 4


@pytest.mark.parametrize(
    "cast",
    [{"rounding": "to-zero"}, {"scaling": "none"}, {"scaling": {"kind": "tensor", "margin": 2.0}}],
)
def test_a_cast_is_known_by_its_rules(runner, cast):
    """Rounding and scaling are part of the recipe as it is resolved."""
    study = runner()
    assert study.digest_of(arm("E4M3")) != study.digest_of(arm("E4M3", **cast))


def test_a_plugin_is_known_by_its_version_and_source(shelf, runner, monkeypatch):
    """That of the run's own plugins; what is merely installed changes nothing."""

    @define(eq=False)
    class Nothing:
        @hookimpl
        def run_start(self, run):
            pass

    shelf.install("intervention", "idle", altcore.hookimpl, version="1.0")
    before = runner().digest_of(arm("E4M3"))
    shelf.install("intervention", "nothing", Nothing, "acme-nothing", "1.0")
    assert runner().digest_of(arm("E4M3")) == before
    one = runner(plugins=["nothing"]).digest_of(arm("E4M3"))
    shelf.install("intervention", "nothing", Nothing, "acme-nothing", "2.0")
    two = runner(plugins=["nothing"]).digest_of(arm("E4M3"))
    assert len({before, one, two}) == 3
    monkeypatch.setattr(identity, "source_digest", lambda place, *_: f"another {place}")
    assert runner().digest_of(arm("E4M3")) != before


def hidden(shelf):
    """Install a workload whose data nothing names; returns what they come from."""
    source = {"shift": 0.0}

    @define(eq=False)
    class Shifted(BuiltPoints):
        facts: dict = field(factory=dict)

        def batch(self, split, step, micro):
            return BuiltPoints.batch(self, split, step, micro) + source["shift"]

    @define(eq=False)
    class Hidden(Points):
        def build(self, seed, device):
            return Shifted(self.batch_size, self.measures, seed)

    shelf.install("workload", "points", Hidden)
    return source


def test_data_that_no_setting_names_are_known_by_the_first_batch(shelf, start):
    """A study that is asked again with other data begins new runs."""
    source = hidden(shelf)
    config = start.config(workload="points", optimizer="sgd")
    first, again = layers_of(config)[2], layers_of(config)[2]
    source["shift"] = 1.0
    assert layers_of(config)[2]["data"] != first["data"] == again["data"]


def test_data_that_change_while_a_study_runs_are_noticed(shelf, start, tmp_path):
    """By the identity of its runs; the run is not kept."""
    source = hidden(shelf)
    keys = {"workload": "points", "optimizer": "sgd", "max_steps": 2}
    study = Runner(tmp_path / "study", start.config(**keys), lambda _: None)
    layer = {"0": {"weight@fwd": read_cast({"format": "E4M3"}, Place())}}
    run(study, Arm("one", layer), 1)
    source["shift"] = 1.0
    run(study, Arm("one", layer), 2)
    other = {"0": {"weight@fwd": read_cast({"format": "E5M2"}, Place())}}
    with pytest.raises(AltcoreError, match="the data changed while the study ran"):
        run(study, Arm("two", other), 1)
    assert len(list((tmp_path / "study/runs").iterdir())) == 2
    # Nor is one of an earlier session compared with it.
    again = Runner(tmp_path / "study", start.config(**keys), lambda _: None)
    with pytest.raises(AltcoreError, match="the data changed while the study ran"):
        again.outcomes([Trial(Arm("one", layer), 1), Trial(Arm("two", other), 1)])
    assert again.done == 1


def test_a_file_is_known_by_the_type_or_the_default_of_its_setting(
    runner, shelf, tmp_path, monkeypatch
):
    """A bare word in a setting of type Path, and a default, name files as in a run's identity."""

    @define(eq=False)
    class Tabled(Points):
        table: Path = setting(Path("table"), help="numbers")

    monkeypatch.chdir(tmp_path)
    shelf.install("workload", "tabled", Tabled)
    given = {"workload": "tabled", "optimizer": "sgd"}
    for keys in (given, {**given, "tabled__table": "table"}):
        Path("table").write_text("1")
        before = runner(**keys).digest_of(arm("E4M3"))
        assert runner(**keys).digest_of(arm("E4M3")) == before
        Path("table").write_text("2")
        assert runner(**keys).digest_of(arm("E4M3")) != before


def test_a_format_that_a_default_names_is_known_by_its_values(runner, shelf):
    """As one of the recipe is."""
    values = [-1.0, 0.0, 1.0]

    @define(eq=False)
    class Stored(Points):
        store: Format = setting(factory=lambda: table_format("MINE", values), help="of moments")

    shelf.install("workload", "stored", Stored)
    keys = {"workload": "stored", "optimizer": "sgd"}
    before = runner(**keys).digest_of(arm("E4M3"))
    assert runner(**keys).digest_of(arm("E4M3")) == before
    values[0] = -2.0
    assert runner(**keys).digest_of(arm("E4M3")) != before


def test_a_folder_called_like_a_settings_value_is_no_file_of_it(tmp_path, monkeypatch):
    """Only as data is a bare word a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("")
    assert dict(identity.files({"gpt": {"size": "tiny"}})) == {}
    assert [*dict(identity.files({"gpt": {"size": "tiny", "data": "tiny"}}))] == ["tiny"]
    assert [*dict(identity.files({"gpt": {"notes": ["./tiny"]}}))] == ["./tiny"]


def test_what_a_run_is_called_is_nothing(start):
    """Where it lies and what people call it decides no number."""
    config = start.config()
    named = config.evolve(name="x", label="y", project="z", tags=("t",), runs_dir="elsewhere")
    assert identity.identity(config, {}) == identity.identity(named, {})
    assert identity.identity(config, {}) != identity.identity(config.evolve(seed=1), {})
    assert identity.identity(config, {}) != identity.identity(config, {"sha256": "of other data"})


def test_a_run_says_what_decided_it(runner, tmp_path):
    """So that two runs of one arm can be compared; its name ends with the digest."""
    run(runner(), arm("E4M3"), 1)
    (path,) = (tmp_path / "study" / "jobs").iterdir()
    held = json.loads((path / "job.json").read_text())["identity"]
    assert altcore.formats.digests.digest(held).startswith(path.name.rpartition("-")[2])
    assert len(path.name.rpartition("-")[2]) == DIGITS
    cast = held["config"]["recipe"]["layers"][LAYER]["weight@fwd"]
    assert cast["format"]["sha256"] == altcore.formats.digests.format_digest(
        altcore.get_format("E4M3")
    )
    assert {"workload gpt", "optimizer adamw", "torch", "altcore"} == held["code"].keys()


def test_two_processes_are_not_at_one_study(ask):
    """One would retire the jobs that the other one asks for. Nor is another run read as one."""
    ask()
    with held(Path("studies", "s")), pytest.raises(BadInput, match="written by another study"):
        ask()
    assert ask()[1] == []
    # A run of another arm in the place of one; the answer says what was done about it.
    *_, last, other = sorted(Path("studies/s/runs").iterdir())
    other.rename("aside")
    shutil.copytree(last, other)
    found, made = ask()
    assert made == [other.name]
    assert f"{other.name} was made again" in " ".join(found["about"]["cautions"])
    assert other.name in page(found).read_text()


def test_a_long_name_is_cut(runner, tmp_path):
    """The digest tells its runs apart."""
    study = runner()
    run(study, evolve(arm("E4M3"), key="F-" + "layer_" * 30), 1)
    run(study, evolve(arm("E2M1"), key="F-" + "layer_" * 30), 1)
    assert study.done == 2
    assert all(len(p.name) == 100 for p in (tmp_path / "study" / "runs").iterdir())


def test_data_that_changes_in_between_ends_the_study(runner, tmp_path):
    """Runs before and after could not be compared."""
    own = text_file(tmp_path / "words.txt")  # the corpus is that of all tests
    study = runner(gpt__data=str(own))
    run(study, arm("E4M3"), 1)
    own.write_text(own.read_text().upper())
    with pytest.raises(AltcoreError, match=r"words\.txt changed while the study ran"):
        run(study, arm("E4M3"), 2)
    assert study.done == 1


# ----------------------------------------------------------------------------------- files


def test_files_that_settings_name_are_found(tmp_path, monkeypatch):
    """Whatever plugin or workload they are of; other texts are no paths."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt", ".hidden"):
        (folder / name).write_text(name)
    settings = {"w": {"data": "texts", "list": ["texts/a.txt", "", "none"], "n": 3, "x": "\0" * 9}}
    settings["w"]["long"] = "x" * 10_000
    found = dict(identity.files(settings))
    assert found.keys() == {"texts", "texts/a.txt"}
    (folder / ".hidden").write_text("changed")
    assert dict(identity.files(settings)) == found
    (folder / "b.txt").rename(folder / "c.txt")
    now = dict(identity.files(settings))
    assert now["texts"] != found["texts"]
    assert now["texts/a.txt"] == found["texts/a.txt"]


def test_copies_of_recipes_do_not_overwrite_one_another(tmp_path):
    """Two files of one name, from two folders."""
    paths = [tmp_path / part / "mine.yaml" for part in ("a", "b")]
    for path, text in zip(paths, ("weight: E4M3\n", "weight: E2M1\n"), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    for _ in range(2):
        kept = keep(tmp_path, map(str, paths))
        assert [(tmp_path / k).read_text() for k in kept.values()] == [p.read_text() for p in paths]
        assert len(list((tmp_path / "recipes").iterdir())) == 2


# -------------------------------------------------------------------------------- questions


def question(arms="ab", seeds=(1, 2), budget=None, metric="train", against=None, **more):
    """A question about some arms."""
    asked = Entrants(metric=metric, against=against).to_plain()
    asked |= {"budget": budget, "config": {"max_steps": 9}}
    given = {"command": "compare", "within": 0.1, "steps": 5, "asked": asked}
    return Question(arms={a: a for a in arms}, seeds=list(seeds), **given | more)


def test_a_budget_is_spread_once():
    """More arms or seeds later have the steps of those before, so that they can be compared."""
    known = [question(budget=3.0, steps=70)]
    asked = {**question(budget=3.0).asked, "formats": ["E4M3"]}
    assert agreed_steps(known, "compare", asked) == 70
    assert agreed_steps(known, "explain", asked) is None
    assert agreed_steps(known, "compare", {**asked, "budget": 4.0}) is None
    assert agreed_steps(known, "compare", {**asked, "config": {"max_steps": 8}}) is None


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (question("abc"), True),
        (question(seeds=(1, 2, 3)), True),
        (question("a"), False),
        (question("ac"), False),
        (question(seeds=(2, 3)), False),
        (question(within=0.2), False),
        (question("abc", metric="val"), False),
        (question("abc", against="a"), False),
        (question(command="explain"), False),
    ],
)
def test_pages_are_of_one_question(tmp_path, other, is_same):
    """One that holds all of it, and more, takes its place."""
    first = claim(tmp_path, [], question(), [])
    second = claim(tmp_path, read(tmp_path), other, [])
    assert (first.page == second.page) is is_same
    assert [q.page for q in read(tmp_path)] == list(dict.fromkeys([first.page, second.page]))
    assert claim(tmp_path, read(tmp_path), other, []) == second


def test_default_configuration_is_plain():
    """What decides a run can be written down."""
    made = identity.identity(TrainConfig(device="cpu"), {})
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rates": 5}, "rates: 5 is not a list of numbers or null"),
        ({"seeds": [{}]}, r"seeds: \[{}\] is not a list of whole numbers"),
        ({"arms": {"a": 1}}, "arms a: 1 is not text"),
        ({"page": "../x"}, "'page' must match"),
        ({"steps": None}, "steps: None is not a whole number"),
        ({"more": 1}, "more: there is no such setting"),
    ],
)
def test_a_record_of_anything_else_is_refused(tmp_path, change, problem):
    """By the file and the key, and before anything runs."""
    claim(tmp_path, [], question(), [])
    path = tmp_path / "study.json"
    told = json.loads(path.read_text())
    told["questions"][0] |= change
    path.write_text(json.dumps(told))
    with pytest.raises(BadInput, match=rf"study\.json is not what a study writes: {problem}"):
        read(tmp_path)


def test_an_infinite_setting_is_asked_for_again(tmp_path):
    """It is not JSON, and the steps that were agreed for it are found all the same."""
    asked = {"budget": 3.0, "config": {"grad_clip": math.inf}}
    made = claim(tmp_path, [], question(asked=asked), [])
    assert "Infinity" not in (tmp_path / "study.json").read_text()
    assert read(tmp_path)[0].asked == asked
    assert agreed_steps(read(tmp_path), made.command, asked) == made.steps


@pytest.mark.parametrize("text", ["[]", "{", '{"questions": 5}', '{"questions": [5]}', "[" * 9999])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(BadInput, match=r"study\.json is not what a study writes"):
        read(tmp_path)
