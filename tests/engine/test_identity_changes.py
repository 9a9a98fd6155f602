"""Changes between a run and its resume: each is refused by name or recorded, none is silent."""

import platform
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import Starter, forget_installed, text_file

from altcore import BadInput
from altcore.engine import changed_formats, setup
from altcore.engine.resuming import resumed
from altcore.runs import Checkpoint, compare, identity, other_code, read_environment, source

NAMES = ("rollback", "spike-guard")
KEYS = {
    "seed": 7, "learning_rate": 0.5, "schedule": "linear", "min_lr_ratio": 0.5, "warmup_steps": 2,
    "gradient_accumulation_steps": 2, "grad_clip": 0.5, "format": "E5M2", "compute": "bfloat16",
    "freeze": ["transformer.h.0*"], "log_interval": 2, "eval_steps": 2, "eval_interval": 1,
    "monitor_mode": "max", "snapshot_interval": 2, "max_snapshots": 2, "nan_patience": 2,
    "stall_window": 50, "diverged_ratio": 2.0, "dead_neuron_window": 9, "bit_stall_threshold": 0.1,
    "recipe": "pure", "plugins": [], "optimizer": "lion",
    "gpt.dropout": 0.5, "gpt.batch_size": 2, "adamw.beta1": 0.5, "adamw.weight_decay": 0.0,
    "rollback.steps": 7,
}  # fmt: skip
"""Keys of config.yaml, and what somebody writes there."""

ACME = """\
import attrs
from altcore.formats import code_format

ACME = code_format("ACME", {codes}, ties="{ties}")

@attrs.define(eq=False)
class Act:
    pass

class Other(Act):
    pass
"""
CODES = [-1.0, 0.0, 0.5, 1.0]


def install(
    site,
    *,
    version="1.0",
    codes=CODES,
    ties="even",
    rest="",
    kind="intervention",
    name="act",
    act="Act",
):
    """Install a distribution with the plugin ``act`` and the format ACME."""
    shutil.rmtree(site, ignore_errors=True)
    info = site / f"acme-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        f"[altcore.{kind}s]\n{name} = acme:{act}\n[altcore.formats]\nACME = acme:ACME\n"
    )
    (site / "acme.py").write_text(ACME.format(codes=codes, ties=ties) + rest)
    sys.modules.pop("acme", None)
    sys.path_importer_cache.clear()
    source._source.cache_clear()  # a process reads what it has imported once
    forget_installed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run ``r`` with two plugins, and ``acme`` with plugin and format of another distribution."""
    root = tmp_path_factory.mktemp("changes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(root / "site"))
        install(root / "site")
        start = Starter(root / "runs", text_file(root / "words.txt"))
        start(NAMES, name="r", max_steps=2, format="E4M3")
        (root / "own.yaml").write_text("weight: ACME\nstored_weight: ACME\n")
        own = {"recipe": str(root / "own.yaml"), "snapshot_interval": 1}
        start(["act", "rollback"], name="acme", max_steps=2, **own)
        yield start, root / "site"
    sys.modules.pop("acme", None)
    forget_installed()


class Again:
    """Tries to go on with a run, and says what was refused or recorded."""

    def __init__(self, corpus, site, runs, patch):
        self.corpus, self.site, self.runs, self.patch = corpus, site, runs, patch
        self.name, self.given = "r", {}

    def edit(self, key, value):
        """Change a key of config.yaml, or ``OWNER.setting``."""
        path = self.runs / self.name / "config.yaml"
        held = yaml.safe_load(path.read_text())
        owner, _, name = key.rpartition(".")
        (held["settings"].setdefault(owner, {}) if owner else held)[name] = value
        if key == "plugins":
            held["settings"] = {k: v for k, v in held["settings"].items() if k not in NAMES}
        if key == "format":
            held["format_digests"] = {}
        path.write_text(yaml.safe_dump(held))

    def install(self, **changes):
        """Install another version of the distribution that the run ``acme`` uses."""
        self.name = "acme"
        install(self.site, **changes)

    def identify(self, part, **changes):
        """Let the identity be found on another machine."""
        real = identity.identity_of

        def other(*args, **given):
            whole = given[part] | changes if part == "where" else changes[part]
            return real(*args, **{**given, part: whole})

        self.patch.setattr("altcore.engine.identity.identity_of", other)

    def prepared(self, **more):
        config = resumed(self.name, str(self.runs), max_steps=4, **more)
        return setup.prepare(config, resume=self.name, **self.given)

    def said(self, **more):
        try:
            engine = self.prepared(**more)
        except BadInput as error:
            return str(error)
        engine.directory.close()
        engine.run.quantization.remove()
        told = engine.openings[0][1].get("changes", ())
        return " ".join(str(c) for c in told if c["what"] != "max_steps")


@pytest.fixture
def again(folder, tmp_path, monkeypatch):
    start, site = folder
    shutil.copytree(start.runs, tmp_path / "runs")
    trying = Again(start.corpus, site, tmp_path / "runs", monkeypatch)
    yield trying
    if trying.name == "acme":
        install(site)


def of_key(key, value):
    shown = {"plugins": "rollback"}.get(key, key)
    return lambda again: again.edit(key, value), (shown, " was ", "--allow-change")


def data(change):
    def make(again):
        path = again.runs / "own.txt"
        path.write_text(change(again.corpus.read_text()))
        again.edit("gpt.data", str(path))

    return make, ("data was ", "--allow-change data")


def model(again):
    from altcore_workloads.gpt import Gpt

    again.given["model"] = Gpt(size="tiny", n_layer=1, block_size=16).build(0, "cpu").model


def batches(again):
    batch = torch.ones(2, 2).long()
    again.given["batch"] = lambda split, step, micro: (batch, batch)


def version(distribution):
    real = identity._version
    return lambda again: again.patch.setattr(
        identity, "_version", lambda d, *m: "another" if d == distribution else real(d, *m)
    )


OTHER = [-1.0, 0.0, 0.25, 1.0]
BOTH = ("format was ACME of acme 1.0 (", "--allow-change format --allow-change plugin")
"""The distribution of the format has a plugin of the run, too: the hint is all that is needed."""

REFUSED = {
    **{key: of_key(key, value) for key, value in KEYS.items()},
    "the order of plugins": (
        lambda again: again.edit("plugins", list(NAMES[::-1])),
        ("the order of plugins was ", "--allow-change"),
    ),
    "a plugin more": (
        lambda again: again.edit("plugins", [*NAMES, "agc"]),
        ("agc was none and is agc", "--allow-change plugin"),
    ),
    "a letter of the data": data(lambda text: text.replace("g", "G", 1)),
    "more data": data(lambda text: f"{text} x"),
    "other data": data(lambda text: text[::-1]),
    "a model from Python": (model, ("model was none and is GptModel, given from Python",)),
    "batches from Python": (batches, ("data was ",)),
    "processes": (
        lambda again: again.identify("world_size", world_size=2),
        ("world_size was 1 and is 2: --allow-change world_size",),
    ),
    "the files of a plugin": (
        lambda again: again.install(rest="# another comment\n"),
        ("act was act (acme 1.0, files ", "--allow-change plugin"),
    ),
    "the class of a plugin": (
        lambda again: again.install(act="Other"),
        (", acme:Act) and is act (acme 1.0", ", acme:Other): --allow-change plugin"),
    ),
    "the kind of a plugin": (
        lambda again: again.install(kind="diagnostic"),
        (", intervention) and is act (acme 1.0", ", diagnostic): --allow-change plugin"),
    ),
    "the values of a format": (lambda again: again.install(codes=OTHER), BOTH),
    "the codes of a format": (lambda again: again.install(codes=CODES[::-1]), BOTH),
    "the rules of a format": (lambda again: again.install(ties="down"), BOTH),
}  # fmt: skip
"""Changes, and words of the refusal."""

RECORDED = {
    "checkpoint_interval": lambda again: again.edit("checkpoint_interval", 5),
    "max_checkpoints": lambda again: again.edit("max_checkpoints", 5),
    "keep_best": lambda again: again.edit("keep_best", 5),
    "act": lambda again: again.install(version="2.0"),
}
"""Changes of what is kept, and of a version with the same files: they change no number."""

PLATFORM = {
    "threads": lambda again: again.patch.setattr(torch, "get_num_threads", lambda: 9),
    "python": lambda again: again.patch.setattr(platform, "python_version", lambda: "3.99.0"),
    "device": lambda again: again.identify("where", device="another"),
    "torch": version("torch"),
    "altcore": version("altcore"),
}
"""Changes that may change bits."""

CHANGES = {**REFUSED, **RECORDED, **PLATFORM}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_by_name_or_recorded(what, again):
    """With both values; ``--strict`` refuses what may change bits, too."""
    if what in REFUSED:
        change, words = REFUSED[what]
        change(again)
        said = again.said()
        assert [word for word in words if word not in said] == [], said
        return
    CHANGES[what](again)
    said = again.said()
    assert f"'what': '{what}'" in said
    if what in PLATFORM:
        assert "may change bits" in said
        assert f"{what} was " in again.said(strict=True)


def test_changed_values_of_a_format_are_taken_if_they_are_allowed(again):
    """Stored weights are encoded anew, and no rollback goes back to a grid that nobody knows."""
    again.install(codes=OTHER)
    again.given["allow_change"] = ["format"]
    assert "--allow-change format --allow-change plugin goes on all the same" in again.said()
    again.given["allow_change"] = ["format", "plugin"]
    engine = again.prepared()
    (name, weight), *_ = engine.run.quantization.stored.items()
    on_grid = (weight.parameter / weight.scale).detach()
    assert {*on_grid.unique().tolist()} <= {*OTHER}, name
    assert not engine.run.snapshots
    assert [c["kind"] for c in engine.openings[0][1]["changes"]][:2] == ["format", "plugin"]
    engine.directory.close()
    engine.run.quantization.remove()


def test_formats_that_an_intervention_brought_are_compared_too():
    """Those of a state and of its snapshots, of which the configuration says nothing."""
    was = {"quantization": {"formats": {"E4M3": "other", "E5M2": "other", "gone": "other"}}}
    none = {"quantization": {"formats": {}}}
    for state, snapshots in ((was, []), (none, [none, was])):
        found = Checkpoint(Path(), {"identity": {}}, state, snapshots)
        (change,) = compare(*changed_formats.identities(found, {}))
        assert change.what == "format"
        assert re.fullmatch(r"E4M3 of altcore-formats .*, E5M2 of altcore-f.*", change.now)
        assert changed_formats.usable_snapshots(found) == [s for s in snapshots if s is none]


def test_nothing_changed_and_nothing_is_said(again):
    assert again.said() == ""
    again.name = "acme"
    assert again.said() == ""


def test_the_code_of_a_new_run_is_recorded_and_compared(again):
    """An upgrade that changes values or files; a version of its own changes none of them."""

    def code(name, **changes):
        again.install(**changes)
        own = str(again.site.parent / "own.yaml")
        start = Starter(again.runs, again.corpus)
        start(["act"], name=name, max_steps=1, recipe=own)
        return read_environment(again.runs / name)["code"]

    old = read_environment(again.runs / "acme")["code"]
    assert old["format ACME"]["from"] == old["act"]["from"] == "acme 1.0"
    assert {"workload gpt", "optimizer adamw"} <= old.keys()
    assert other_code([old, code("same", version="1.1")]) == {}
    told = other_code([old, code("values", codes=OTHER)])
    assert [*told] == ["format ACME", "act"]
    assert all(one[:9] == two[:9] == "acme 1.0 " and one != two for one, two in told.values())
    assert [*other_code([old, code("files", rest="# another\n")])] == ["act"]


def test_a_plugin_that_is_gone_is_named_with_its_distribution(again):
    """Which may have it by another name now."""
    again.install(name="acts")
    said = again.said()
    assert said.startswith(
        "plugins: unknown plugin 'act'; the run had it of acme 1.0 (did you mean"
    )


def test_an_earlier_run_knew_neither_kind_nor_place_of_a_plugin():
    """These are then no change."""
    before = {"name": "act", "distribution": "acme", "version": "1.0", "sha256": "0a" * 32}
    now = {**before, "kind": "intervention", "place": "acme:Act"}
    assert compare({"plugin": {"act": before}}, {"plugin": {"act": now}}) == []
    other = {**now, "place": "acme:Other"}
    (change,) = compare({"plugin": {"act": now}}, {"plugin": {"act": other}})
    assert change.is_decisive
