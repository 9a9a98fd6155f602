"""Forty changes between a run and its resume: each is refused by name or recorded, none silent."""

import platform
import shutil

import pytest
import torch
import yaml
from attrs import define
from helpers import Starter, forget_installed, text_file

import altcore
from altcore import BadInput, hookimpl, table_format
from altcore.engine import setup
from altcore.engine.resuming import resumed
from altcore.hooks import setting
from altcore.runs import identity

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with two plugins, in a format of a shelf."""
    root = tmp_path_factory.mktemp("changes")
    start = Starter(root / "runs", text_file(root / "words.txt"))
    start(NAMES, name="r", max_steps=2, format="E4M3")
    return start


@pytest.fixture
def again(folder, tmp_path):
    """Return a function that tries to go on, and returns what was refused or recorded."""
    shutil.copytree(folder.runs, tmp_path / "runs")

    def tried(**given):
        try:
            config = resumed("r", str(tmp_path / "runs"), max_steps=4)
            engine = setup.prepare(config, resume="r", **given)
        except BadInput as error:
            return str(error)
        engine.directory.close()
        engine.run.quantization.remove()
        return " ".join(str(c) for c in engine.opening[1].get("changes", ()))

    tried.run = tmp_path / "runs/r"
    return tried


def edit(run, key, value):
    """Change a key of config.yaml, or ``OWNER.setting``."""
    path = run / "config.yaml"
    held = yaml.safe_load(path.read_text())
    owner, _, name = key.rpartition(".")
    (held["settings"].setdefault(owner, {}) if owner else held)[name] = value
    if key == "plugins":
        held["settings"].pop("rollback", None)
    if key == "format":
        held["format_digests"] = {}
    path.write_text(yaml.safe_dump(held))


@pytest.mark.parametrize(("key", "value"), KEYS.items(), ids=KEYS)
def test_a_key_is_refused_by_name(key, value, again):
    edit(again.run, key, value)
    said = again()
    shown = {"plugins": "rollback", "optimizer": "optimizer"}.get(key, key)
    assert shown in said
    assert " was " in said
    assert "--allow-change" in said


def test_nothing_changed_and_nothing_is_said(again):
    assert again() == ""


@pytest.mark.parametrize("key", ["checkpoint_interval", "max_checkpoints"])
def test_a_key_of_what_is_kept_is_recorded(key, again):
    edit(again.run, key, 5)
    assert key in again()


def test_plugins_in_another_order(again):
    edit(again.run, "plugins", list(NAMES[::-1]))
    assert "the order of plugins was " in again()


@pytest.mark.parametrize("what", ["letter", "more", "file"])
def test_other_data(what, again, folder, tmp_path):
    data = tmp_path / "own.txt"
    text = folder.corpus.read_text()
    changed = {"letter": text.replace("g", "G", 1), "more": f"{text} x", "file": text[::-1]}[what]
    data.write_text(changed)
    edit(again.run, "gpt.data", str(data))
    assert "data was " in again()


def test_a_model_and_batches_from_python(again):
    from altcore_workloads.gpt import Gpt

    model = Gpt(size="tiny", n_layer=1, block_size=16).build(0, torch.device("cpu")).model
    assert "model was none and is GptModel, given from Python" in again(model=model)
    batch = torch.ones(2, 2).long()
    assert "data was " in again(batch=lambda split, step, micro: (batch, batch))


def test_other_processes(again, monkeypatch):
    real = identity.identity_of
    monkeypatch.setattr(
        "altcore.engine.identity.identity_of", lambda *a, **k: real(*a, **{**k, "world_size": 2})
    )
    assert "world_size was 1 and is 2: --allow-change world_size" in again()


@pytest.mark.parametrize("what", ["threads", "python", "torch", "altcore", "device"])
def test_another_platform_is_recorded(what, again, monkeypatch):
    real = identity._version
    if what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    elif what == "python":
        monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    elif what == "device":
        real_of = identity.identity_of
        monkeypatch.setattr(
            "altcore.engine.identity.identity_of",
            lambda *a, **k: real_of(*a, **{**k, "where": {**k["where"], "device": "another"}}),
        )
    else:
        monkeypatch.setattr(
            identity, "_version", lambda d, *m: "another" if d == what else real(d, *m)
        )
    said = again()
    assert f"'what': '{what}'" in said
    assert "may change bits" in said


@define(eq=False)
class Act:
    table: str = setting("", help="a file")

    @hookimpl
    def pre_step(self, run, step):
        return None


def test_a_version_or_a_format_of_a_distribution(shelf, tmp_path, folder):
    """The same name, with other values; and a plugin with another version."""
    start = Starter(tmp_path / "runs", folder.corpus)
    shelf.install("intervention", "act", Act, "acme-act", "1.0")
    shelf.install("format", "SHELF", table_format("SHELF", [-1, 0, 0.5, 1]), "acme", "1.0")
    start(["act"], name="r", max_steps=1, format="SHELF")
    config = resumed("r", str(start.runs), max_steps=2)
    shutil.rmtree(shelf.folder / "acme_act-1.0.dist-info")
    shelf.install("intervention", "act", Act, "acme-act", "2.0")
    with pytest.raises(BadInput, match=r"act was act \(acme-act 1\.0\) and is act \(acme-act 2"):
        altcore.train(config, resume="r")
    shutil.rmtree(shelf.folder / "acme-1.0.dist-info")
    shelf.install("format", "SHELF", table_format("SHELF", [-1, 0, 0.5, 2]), "acme", "1.1")
    forget_installed()
    with pytest.raises(BadInput, match=r"format was SHELF .*is SHELF of acme 1\.1"):
        altcore.train(config.evolve(format="SHELF", format_digests={}), resume="r")
