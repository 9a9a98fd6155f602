"""A run goes on as the run that it was: each change is refused by name, allowed, or told."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from attrs import define
from helpers import events, metrics_bytes, text_file
from helpers_cli import call
from structlog.testing import capture_logs

import altcore
from altcore import BadInput, hookimpl
from altcore.config import load_config
from altcore.engine import resuming, setup
from altcore.hooks import setting
from altcore.runs import checkpoint, compare, source


@pytest.fixture
def run(start):
    """A run of two steps, and everything in its directory."""
    return start(name="r", format="E4M3", max_steps=2).run_directory


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit(run, **keys):
    """Change keys, or ``gpt__size``, of config.yaml by hand."""
    path = run / "config.yaml"
    held = yaml.safe_load(path.read_text())
    for key, value in keys.items():
        owner, _, setting_ = key.rpartition("__")
        (held["settings"].setdefault(owner, {}) if owner else held)[setting_ or key] = value
    path.write_text(yaml.safe_dump(held))


def refused(start, run, *words, **changes):
    """Check that the run does not go on, names ``words``, and that nothing is touched."""
    before = files(run)
    with pytest.raises(BadInput) as said:
        start.resume("r", max_steps=4, **changes)
    for word in words:
        assert word in str(said.value)
    assert files(run) == before


EDITS = {
    "learning rate": ({"learning_rate": 0.02}, "learning_rate was 0.01 and is 0.02"),
    "seed": ({"seed": 43}, "seed was 42 and is 43"),
    "schedule": ({"schedule": "linear"}, "schedule was cosine and is linear"),
    "format": ({"format": "E5M2", "format_digests": {}}, "format was E4M3", "is E5M2"),
    "recipe": ({"recipe": "pure"}, "recipe was master and is pure"),
    "optimizer": ({"optimizer": "lion"}, "optimizer was adamw", "is lion"),
    "its setting": ({"adamw__beta1": 0.5}, "adamw.beta1 was 0.9 and is 0.5"),
    "workload": ({"gpt__dropout": 0.5}, "gpt.dropout was 0.0 and is 0.5"),
    "plugin": ({"plugins": ["rollback"]}, "rollback was none and is rollback"),
    "freeze": ({"freeze": ["transformer.h.0*"]}, "freeze was [] and is ['transformer.h.0*']"),
}


@pytest.mark.parametrize("case", EDITS.values(), ids=EDITS)
def test_a_configuration_edited_by_hand_is_refused(case, start, run):
    """Both values are named, and what accepts the change."""
    keys, *words = case
    edit(run, **keys)
    refused(start, run, *words, "--allow-change")


def test_a_change_is_accepted_by_name_and_recorded(start, run, capsys):
    """As a kind, a key or a plugin; in the event, the configuration, and later checkpoints."""
    edit(run, learning_rate=0.02, gpt__dropout=0.5, plugins=["spike-guard"])
    with pytest.raises(BadInput, match=r"gpt\.dropout was 0\.0"):
        altcore.train(
            resuming.resumed("r", str(start.runs), max_steps=4),
            resume="r",
            allow_change=["learning_rate"],
        )
    arguments = ("--resume", "r", "--steps", "4", "--set", f"runs_dir={start.runs}")
    names = "learning-rate gpt.dropout spike-guard"
    found = call(capsys, "train", *arguments, "--allow-change", names)
    assert found.code == 0, found.err
    assert "learning_rate was 0.01 and is 0.02" in found.err
    (event,) = events(run, "resume")
    told = {c["what"]: (c["before"], c["now"]) for c in event["changes"]}
    assert told.pop("spike-guard")[0] is None
    assert told == {"learning_rate": (0.01, 0.02), "gpt.dropout": (0.0, 0.5), "max_steps": (2, 4)}
    held = yaml.safe_load((run / "config.yaml").read_text())
    assert [(c["step"], c["what"]) for c in held["changes"]] == [
        (2, "learning_rate"),
        (2, "gpt.dropout"),
        (2, "spike-guard"),
        (2, "max_steps"),
    ]
    resumed = start.resume("r", max_steps=5)
    assert resumed.steps_completed == 5
    now = yaml.safe_load((run / "config.yaml").read_text())["changes"]
    assert now[:-1] == held["changes"]
    assert resumed.summary["changes"] == now
    changed = ["learning_rate", "gpt.dropout", "spike-guard", "max_steps"]
    told = [f"{what} changed after step 2" for what in changed] + ["max_steps changed after step 4"]
    assert resumed.summary["verdict"].split("; ") == ["did not learn", *told]


def test_a_name_that_means_nothing_is_refused(start, run):
    """With the nearest one, so that a misspelt one is noticed."""
    with pytest.raises(BadInput, match=r"'dta' did not change \(did you mean data\?\)"):
        altcore.train(
            resuming.resumed("r", str(start.runs), max_steps=4), resume="r", allow_change=["dta"]
        )


def test_more_steps_are_no_change(start, run):
    """Nor is another checkpoint interval, which is recorded, too."""
    edit(run, checkpoint_interval=2)
    assert start.resume("r", max_steps=4).steps_completed == 4
    (event,) = events(run, "resume")
    assert [c["what"] for c in event["changes"]] == ["checkpoint_interval", "max_steps"]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_other_steps_are_told_wherever_a_run_is_compared(schedule, start, capsys):
    """The configuration says so as well, unless the schedule is the same for any steps."""
    keys = {"schedule": schedule, "format": "E4M3"}
    start(name="whole", max_steps=4, **keys)
    run = start(name="r", max_steps=2, **keys).run_directory
    made = start.resume("r", max_steps=4)
    found = call(capsys, "runs", "compare", "whole", "r", "--runs-dir", start.runs).out
    assert "changes on the way  -              max_steps was 2 and is 4 after step 2" in found
    assert "configuration, code and environment do not differ; changes on the way do" in found
    is_other = schedule == "cosine"
    but = " but for what changed on the way (max_steps after step 2)" * is_other
    head, *_ = (run / "config.yaml").read_text().splitlines()
    assert head == f"# Repeats this run{but}: altcore train --config config.yaml"
    assert ("max_steps changed after step 2" in made.summary["verdict"]) == is_other
    (row,) = (line for line in found.splitlines() if line.startswith("same losses up to"))
    assert row.endswith("step 4") != is_other


def test_an_accepted_format_is_the_one_that_runs(start, run):
    """In the summary, its shifts, and the plan of the next checkpoint."""
    edit(run, format="E5M2", format_digests={})
    config = resuming.resumed("r", str(start.runs), max_steps=4)
    made = altcore.train(config, resume="r", allow_change=["format"])
    assert (made.summary["format"], made.summary["last_formats"]) == ("E5M2", ["E5M2"])
    assert (made.shift_step, made.format_shifted_to) == (2, "E5M2")


def test_every_accepted_recipe_is_an_event_that_plugins_hear(start, run):
    """Also one that was accepted before, with another in between."""
    steps = [2, 3, 4]
    for step, fmt in zip(steps, ["E5M2", "E4M3", "E5M2"], strict=True):
        edit(run, format=fmt, format_digests={})
        config = resuming.resumed("r", str(start.runs), max_steps=step + 1)
        altcore.train(config, resume="r", allow_change=["format"])
    told = events(run, "recipe")
    assert [(e["step"], e["from"], e["to"]) for e in told] == [
        (2, ["E4M3"], ["E5M2"]),
        (3, ["E5M2"], ["E4M3"]),
        (4, ["E4M3"], ["E5M2"]),
    ]
    assert {e["plugin"] for e in told} == {"--allow-change"}


@pytest.mark.parametrize("name", ["plugin", "plugins"])
def test_plugins_are_allowed_by_their_kind_or_key(start, run, name):
    """The key of the configuration that says which there are is `plugins`."""
    edit(run, plugins=["spike-guard"])
    config = resuming.resumed("r", str(start.runs), max_steps=3)
    assert altcore.train(config, resume="r", allow_change=[name]).steps_completed == 3


@pytest.mark.parametrize("name", [None, "r"])
def test_a_run_keeps_its_name(start, run, name):
    """The configuration that began it says it again; another name would be lost in silence."""
    made = altcore.train({"runs_dir": str(start.runs), "name": name, "max_steps": 3}, resume="r")
    assert made.run_directory == run
    with pytest.raises(BadInput, match="name 'other': the run that goes on keeps its own, 'r'"):
        altcore.train({"runs_dir": str(start.runs), "name": "other"}, resume="r")
    with pytest.raises(BadInput, match="name 'other': the run that goes on keeps its own, 'r'"):
        resuming.resumed("r", str(start.runs), name="other")


def test_an_accepted_format_is_judged_by_its_own_steps(start, run):
    """What the detector kept of the steps in the format before says nothing of it."""
    edit(run, format="E5M2", format_digests={})
    config = resuming.resumed("r", str(start.runs), max_steps=4)
    engine = setup.prepare(config, resume="r", allow_change=["format"])
    assert (list(engine.detector.losses), engine.history.stall_since) == ([], 2)
    engine.directory.close()


def test_an_accepted_setting_of_the_optimizer_counts(start, run):
    """The checkpoint's groups would bring the old one back."""
    edit(run, adamw__weight_decay=0.5)
    config = resuming.resumed("r", str(start.runs), max_steps=4)
    engine = setup.prepare(config, resume="r", allow_change=["adamw.weight_decay"])
    assert engine.run.optimizer.param_groups[0]["weight_decay"] == 0.5
    engine.directory.close()


def test_a_change_that_no_checkpoint_has_yet_is_to_be_allowed_again(start, run):
    """The message says so: the run was killed between the resume and its next checkpoint."""
    edit(run, plugins=["spike-guard"])
    config = resuming.resumed("r", str(start.runs), learning_rate=0.02, max_steps=4)
    changed = r"learning_rate was 0\.01 and is 0\.02"
    with pytest.raises(BadInput, match=changed) as first:
        altcore.train(config, resume="r", allow_change=["spike-guard"])
    assert "allowed before" not in str(first.value)
    names = ["learning_rate", "spike-guard"]
    setup.prepare(config, resume="r", allow_change=names).directory.close()
    again = resuming.resumed("r", str(start.runs))
    said = r"\(learning_rate, spike-guard: allowed before, and no checkpoint was written with it"
    with pytest.raises(BadInput, match=f"{changed}.* goes on all the same.*{said}"):
        altcore.train(again, resume="r")
    assert altcore.train(again, resume="r", allow_change=names).steps_completed == 4
    assert start.resume("r", max_steps=5).steps_completed == 5


def test_an_accepted_optimizer_begins_without_moments(start, run):
    """The weights are those of the checkpoint."""
    edit(run, optimizer="lion")
    path = run / "config.yaml"
    held = yaml.safe_load(path.read_text())
    held["settings"].pop("adamw", None)
    path.write_text(yaml.safe_dump(held))
    config = resuming.resumed("r", str(start.runs), max_steps=4)
    made = altcore.train(config, resume="r", allow_change=["optimizer"])
    assert (made.steps_completed, made.summary["optimizer"]) == (4, "lion")


def test_a_new_run_of_a_changed_configuration_has_no_changes(start, run):
    """They are those of the run that went on."""
    edit(run, seed=43)
    config = resuming.resumed("r", str(start.runs), max_steps=4)
    altcore.train(config, resume="r", allow_change=["seed"])
    config = altcore.load_config(run / "config.yaml", {"name": "new", "runs_dir": str(start.runs)})
    held = yaml.safe_load((altcore.train(config).run_directory / "config.yaml").read_text())
    assert held["changes"] == []


@pytest.mark.parametrize("settings", [3, {"gpt": 3}, {3: {}}])
def test_settings_that_are_none_are_refused(settings, start, run, capsys):
    edit(run, settings=settings)
    arguments = ("--resume", "r", "--steps", "4", "--set", f"runs_dir={start.runs}")
    more = ("--set", "gpt.dropout=0.5", "--allow-change", "gpt.dropout")
    for found in (call(capsys, "train", *arguments, *extra) for extra in ((), more)):
        assert found.code == 2, found.err


def test_an_accepted_change_that_does_not_fit_loses_nothing(start, run):
    """It is no reason to go back to the checkpoint of step 0, which fits all that a seed makes."""
    edit(run, gpt__n_layer=2)
    config = resuming.resumed("r", str(start.runs), max_steps=4)
    before = files(run)
    said = r"does not fit the state of step-00000002: .* gpt\.n_layer was 1 and is 2"
    with pytest.raises(BadInput, match=said):
        altcore.train(config, resume="r", allow_change=["gpt.n_layer"])
    assert files(run) == before


def test_a_state_of_another_version_is_no_reason_to_go_back(start, run):
    """A group of the optimizer has one more option in another version of torch."""
    path = run / "checkpoints/step-00000002"
    found = checkpoint.load_checkpoint(path)
    found.state["optimizer"]["param_groups"][0].pop("eps")
    found.manifest["identity"]["platform"]["torch"] = "1.0"
    checkpoint.save_checkpoint(path.parent, found.state, found.manifest)
    with pytest.raises(
        BadInput, match=r"does not fit .* group 0 .* no eps in the .* torch was 1\.0"
    ):
        start.resume("r", max_steps=4)


@pytest.mark.parametrize("model", [None, torch.nn.Linear])
def test_a_state_of_another_default_dtype_is_told_so(model, start):
    """It decides the type of each weight that is built."""

    def given():
        return {} if model is None else {"model": model(1, 1), "loss": lambda m, b: m.weight.sum()}

    altcore.train(start.config(name="r", format="none", max_steps=1), **given())
    config = resuming.resumed("r", str(start.runs), max_steps=2)
    torch.set_default_dtype(torch.float64)
    try:
        said = r"the dtype of .* torch's default dtype was torch.float32 and is torch.float64$"
        with pytest.raises(BadInput, match=said):
            altcore.train(config, resume="r", **given())
    finally:
        torch.set_default_dtype(torch.float32)


# ------------------------------------------------------------------------------------------- data


def test_other_data_are_refused_and_data_that_moved_are_not(start, tmp_path):
    """A file is known by what it holds, wherever it lies."""
    data = text_file(tmp_path / "own.txt")
    run = start(name="r", max_steps=2, gpt__data=str(data)).run_directory
    text = data.read_text()
    data.write_text(text.replace("grid", "GRID", 1))
    refused(start, run, "data was ", "--allow-change data")
    data.unlink()
    (tmp_path / "moved.txt").write_text(text)
    edit(run, gpt__data=str(tmp_path / "moved.txt"))
    moved = start.resume("r", max_steps=4)
    whole = start(name="whole", max_steps=4, gpt__data=str(tmp_path / "moved.txt"), seed=42)
    assert moved.summary["seed"] == whole.summary["seed"]
    edit(run, gpt__data=str(text_file(tmp_path / "third.txt")))
    (tmp_path / "third.txt").write_text(text + " more")
    config = resuming.resumed("r", str(start.runs), max_steps=5)
    assert altcore.train(config, resume="r", allow_change=["data"]).steps_completed == 5


def batches(seed, form):
    """Return the batches of a caller, which no workload can digest."""

    def batch(split, step, micro):
        draw = torch.Generator().manual_seed(seed + step)
        return form(torch.randint(0, 200, (2, 9), generator=draw))

    return batch


def pairs(tokens):
    return tokens[:, :-1], tokens[:, 1:]


class Tokens(tuple):
    """A batch with a part that nobody can digest."""

    def __new__(cls, tokens):
        made = super().__new__(cls, pairs(tokens))
        made.source = (x for x in tokens)
        return made

    def to(self, device):
        moved = tuple.__new__(Tokens, (part.to(device) for part in self))
        moved.source = self.source
        return moved


@pytest.mark.parametrize("form", [pairs, Tokens])
def test_batches_given_from_python_are_known_by_the_first(form, start):
    """Other ones are refused, and so is the workload's own data in their place."""
    config = start.config(name="r", max_steps=2)
    altcore.train(config, data=batches(1, form))
    again = resuming.resumed("r", str(start.runs), max_steps=4)
    with pytest.raises(BadInput, match="data was "):
        altcore.train(again, data=batches(2, form), resume="r")
    with pytest.raises(BadInput, match=r"trained data of your own, .*batch, given from Python"):
        altcore.train(again, resume="r")
    assert altcore.train(again, data=batches(1, form), resume="r").steps_completed == 4
    told = "of the data, batch.source (generator) cannot be digested: a resume does not notice"
    said = [e["message"] for e in events(start.runs / "r", "warning")]
    assert any(x.startswith(told) for x in said) == (form is Tokens)


# ---------------------------------------------------------------------------------------- plugins


def look(step):
    @define(eq=False)
    class Look:
        """Acts on nothing."""

        table: str = setting("", help="a file")
        tables: list[Path] = setting(factory=list, help="files")
        by_split: dict[str, list[str]] = setting(factory=dict, help="files")

        @hookimpl
        def pre_step(self, run, step):
            return None

    return Look


def test_another_file_of_a_plugin_is_refused(start, shelf, tmp_path, monkeypatch):
    """A setting that names files, at any depth, stands for what they hold, wherever they lie."""
    shelf.install("intervention", "look", look(1))
    monkeypatch.chdir(tmp_path)  # a path may be a bare word, where its type says that it is one
    tables = [tmp_path / name for name in "abcd"]
    for table in tables:
        table.write_text("one")
    a, _, c, d = map(str, tables)
    keys = {"look__table": a, "look__tables": ["b", c], "look__by_split": {"train": [d]}}
    run = start(["look"], name="r", max_steps=2, **keys).run_directory
    places = ("look.table", "look.tables[0]", "look.tables[1]", "look.by_split.train[0]")
    for table, place in zip(tables, places, strict=True):
        table.write_text("two")
        refused(start, run, f"{place} was ", "--allow-change data")
        table.write_text("one")
    tables[1].rename(tmp_path / "moved")
    edit(run, look__tables=[str(tmp_path / "moved"), c])
    assert start.resume("r", max_steps=4).steps_completed == 4
    edit(run, look__tables=[c])
    refused(start, run, "look.tables was ", "--allow-change configuration")


def test_another_source_of_a_plugin_is_refused_and_one_that_moved_is_told(
    start, tmp_path, monkeypatch
):
    """Two versions of a distribution whose module is a file; then the same in another folder."""
    import shutil
    import sys

    from helpers import forget_installed

    site = tmp_path / "site"
    for folder, body in (("one", ""), ("two", "# changed\n")):
        info = site / folder / "acme_act-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-act\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[altcore.interventions]\nact = acme_act:Act\n")
        code = "import attrs\n@attrs.define(eq=False)\nclass Act:\n    pass\n"
        (site / folder / "acme_act.py").write_text(body + code)

    def use(folder):
        monkeypatch.setattr(
            sys, "path", [str(folder), *(p for p in sys.path if str(tmp_path) not in p)]
        )
        sys.modules.pop("acme_act", None)
        forget_installed()

    use(site / "one")
    run = start(["act"], name="r", max_steps=2).run_directory
    use(site / "two")
    refused(start, run, "act was act (acme-act 1.0, files ", "--allow-change plugin")
    shutil.copytree(site / "one", site / "three")
    use(site / "three")
    assert start.resume("r", max_steps=4).steps_completed == 4
    (site / "three" / "acme_act.py").unlink()
    source._source.cache_clear()
    with pytest.raises(
        BadInput, match=r"^intervention act: .*acme_act\.py cannot be read: No such"
    ):
        start.engine(["act"], name="none")
    assert not (start.runs / "none").exists()
    forget_installed()


# --------------------------------------------------------------------------------------- platform


def test_other_threads_are_told_in_one_line_and_refused_if_strict(start, run, monkeypatch):
    """The run goes on; with --strict it does not."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    edit(run, strict=True)
    refused(start, run, "threads was 1 and is 7", "--allow-change platform")
    edit(run, strict=False)
    with capture_logs() as logs:
        assert start.resume("r", max_steps=4).steps_completed == 4
    told = [x["event"] for x in logs if "the bits may differ" in x["event"]]
    assert len(told) == 1
    assert "threads was 1 and is 7" in told[0]


def test_another_processor_is_told_and_refused_if_strict(start, run, monkeypatch):
    """As on another node: its instructions round otherwise."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SSE9")
    edit(run, strict=True)
    refused(start, run, "instructions of the CPU was", "and is SSE9", "--allow-change platform")


def test_flags_of_torch_are_told_and_refused_if_strict(start, run):
    """A notebook sets them, and a terminal does not."""
    edit(run, strict=True)
    torch.set_float32_matmul_precision("medium")
    try:
        refused(start, run, "torch's precision of float32 products was highest and is medium")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_manifest_holds_the_identity(run):
    """Canonical configuration, data, formats, recipe, plugins, world size and versions."""
    manifest = json.loads((run / "checkpoints/step-00000002/manifest.json").read_text())
    found = manifest["identity"]
    assert found["configuration"]["learning_rate"] == 0.01
    assert found["configuration"]["settings"]["gpt"]["dropout"] == 0.0
    assert len(found["data"]["sha256"]) == 64
    assert len(found["format"]["E4M3"]["sha256"]) == 64
    assert found["plugin"]["optimizer"]["distribution"] == "altcore-optimizers"
    assert found["world_size"] == 1
    assert found["platform"]["torch"] == version("torch")


def test_the_order_of_keys_in_a_manifest_is_no_order_of_plugins(run):
    """No digest covers it: any tool may sort them. The list of the plugins has their order."""
    manifest = json.loads((run / "checkpoints/step-00000002/manifest.json").read_text())
    found = manifest["identity"]
    assert compare(json.loads(json.dumps(found, sort_keys=True)), found) == []
    names = ["b", "a"]
    one, other = (
        {**found, "configuration": {**found["configuration"], "plugins": order}}
        for order in (names, names[::-1])
    )
    assert [change.what for change in compare(one, other)] == ["the order of plugins"]


def test_from_python_a_run_goes_on_with_its_own_configuration(start, run, monkeypatch):
    """With none given; one that is given is compared."""
    monkeypatch.chdir(start.runs.parent)
    with pytest.raises(BadInput, match="the run is at step 2 of 2"):
        altcore.train(resume="r")
    before = metrics_bytes(run)
    with pytest.raises(BadInput, match="learning_rate was"):
        altcore.train(start.config(max_steps=4, learning_rate=0.5, format="E4M3"), resume="r")
    assert metrics_bytes(run) == before


def test_a_mapping_holds_changes_to_the_keys_of_the_run(start):
    """As on the command line: what it does not name stays, and only what it names is refused."""
    keys = {"gpt.size": "tiny", "gpt.batch_size": 2, "optimizer": "sgd", "sgd.momentum": 0.5}
    where = {"runs_dir": str(start.runs)}
    given = {**keys, **where, "no_plugins": ["progress"], "name": "mapped", "max_steps": 1}
    altcore.train(given)
    with pytest.raises(BadInput, match=r"learning_rate was \S+ and is 0.5: --allow-change config"):
        altcore.train({**where, "learning_rate": 0.5}, resume="mapped")
    with pytest.raises(BadInput, match=r"it was: failure-report was failure-rep"):
        altcore.train({**where, "no_plugins": ["failure-report"]}, resume="mapped")
    # The keys of the run are no change, nor are those that may be another.
    made = altcore.train({**given, "max_steps": 2}, resume="mapped")
    assert made.steps_completed == 2
    more = {**where, "max_steps": 3, "learning_rate": 0.5, "sgd.momentum": 0.25}
    altcore.train(more, resume="mapped", allow_change=["learning_rate", "sgd.momentum"])
    config = load_config(start.runs / "mapped/config.yaml")
    assert (config.learning_rate, config.settings["sgd"]["momentum"]) == (0.5, 0.25)
    assert config.settings["gpt"]["size"] == "tiny"


# ------------------------------------------------------------------------------------ config.yaml

TORN = {
    "empty": (b"", "config.yaml: it is empty"),
    "half": (None, "is torn: the key settings is missing"),
    "bytes": (b"\xff\xfe\x00", "config.yaml: cannot be read: it is not text"),
    "no YAML": (b"{", "config.yaml, line 1: not valid YAML"),
    "a list": (b"- 1\n", "config.yaml: a mapping of keys to values is needed"),
}


@pytest.mark.parametrize(("data", "says"), TORN.values(), ids=TORN)
def test_a_configuration_that_is_torn_can_be_restored(data, says, start, run, capsys):
    """The error names the file and what helps; nothing is overwritten."""
    path = run / "config.yaml"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"schedule:")] if data is None else data)
    before = files(run)
    where = f"runs_dir={start.runs}"
    found = call(capsys, "train", "--resume", "r", "--steps", "4", "--set", where)
    assert found.code == 2
    assert says in found.message
    assert "altcore runs restore r writes it anew" in found.message
    assert files(run) == before
    found = call(capsys, "runs", "restore", "r", "--runs-dir", start.runs)
    assert (found.code, found.out) == (0, f"{path} is as step-00000002 has it\n")
    assert (run / "config.yaml.damaged").read_bytes() == before[path]
    assert start.resume("r", max_steps=4).steps_completed == 4


def test_a_configuration_that_is_gone_can_be_restored(start, run, capsys):
    (run / "config.yaml").unlink()
    found = call(capsys, "runs", "show", "r", "--runs-dir", start.runs)
    assert found.code == 2
    assert "config.yaml is missing: altcore runs restore r writes it anew" in found.message
    listed = call(capsys, "runs", "list", "--runs-dir", start.runs)
    assert listed.code == 0
    assert "config.yaml is missing: altcore runs restore r writes it anew" in listed.err
    assert call(capsys, "runs", "restore", "r", "--runs-dir", start.runs).code == 0
    assert start.resume("r", max_steps=4).steps_completed == 4


def test_a_run_that_is_not_there_is_not_restored(start, run, capsys):
    """It has no checkpoints to blame."""
    found = call(capsys, "runs", "restore", "rr", "--runs-dir", start.runs)
    assert found.code == 2
    assert found.message.startswith("altcore: there is no run 'rr' in ")
    assert "did you mean r?" in found.message
    assert not (start.runs / "rr").exists()


def test_the_history_of_changes_is_the_checkpoints(start, run):
    """Whoever writes an accepted change into config.yaml has accepted none."""
    path = run / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    plain["changes"] = [{"step": 1, "kind": "configuration", "what": "seed", "was": 1, "is": 2}]
    path.write_text(yaml.safe_dump(plain))
    start.resume("r", max_steps=4)
    assert [c["what"] for c in yaml.safe_load(path.read_text())["changes"]] == ["max_steps"]


def test_what_no_checkpoint_holds_cannot_be_restored(start, capsys):
    (start.runs / "nothing").mkdir(parents=True)
    found = call(capsys, "runs", "restore", "nothing", "--runs-dir", start.runs)
    assert found.code == 2
    assert "there is no checkpoint in" in found.message
    assert [*start.runs.rglob("*")] == [start.runs / "nothing"]


def test_settings_that_json_cannot_hold_are_compared_all_the_same(start, shelf):
    """A set has another order in each process, and an object no form."""

    @define(eq=False)
    class Odd:
        names: set[str] = setting(factory=lambda: {"a", "b", "c"}, help="names")
        thing: object = setting(factory=object, help="anything")

    shelf.install("diagnostic", "odd", Odd)
    start(["odd"], name="r", max_steps=2)
    assert start.resume("r", max_steps=4).steps_completed == 4


def test_a_setting_that_config_yaml_lost_half_of_is_named_with_its_line(start):
    """A torn or altered line is where the error comes from, not the caller."""
    run = start(["rollback"], name="r", max_steps=2, rollback__format="E5M2").run_directory
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("format: E5M2", "format: E5"))
    with pytest.raises(BadInput, match=r"rollback.format: unknown format 'E5'.*config.yaml, line"):
        start.resume("r", max_steps=4)


@pytest.mark.parametrize("how", ["lost", "of another run"])
def test_a_record_that_is_not_as_it_was_is_told_by_all_who_read_it(start, run, how):
    """What a run goes on without, or with, its record says from then on."""
    other = start(name="other", max_steps=2, seed=7).run_directory
    text = (other / "metrics.jsonl").read_bytes() if how == "of another run" else b""
    (run / "metrics.jsonl").write_bytes(text)
    resumed = start.resume("r", max_steps=3)
    told = [e["message"] for e in events(run, "warning")]
    assert "metrics.jsonl: lines were changed or lost before the run went on from step 2" in told
    assert "metrics.jsonl changed after step 2" in resumed.summary["verdict"]
    (change,) = (c for c in resumed.summary["changes"] if c["kind"] == "record")
    assert (change["what"], change["before"]) == ("metrics.jsonl", "as the run left it")


def test_a_record_that_is_put_back_is_no_change(start, run):
    """As one to which an editor gave other line ends."""
    file = run / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    resumed = start.resume("r", max_steps=3)
    assert "metrics.jsonl" not in resumed.summary["verdict"]
    assert all(c["kind"] != "record" for c in resumed.summary["changes"])
