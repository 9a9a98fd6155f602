"""A checkpoint that was copied in from another run is found, told and never used."""

import json
import shutil

import pytest
import yaml
from helpers import events
from helpers_cli import call
from structlog.testing import capture_logs

import altcore
from altcore.engine.resuming import resumed
from altcore.errors import BadInput


@pytest.fixture
def runs(start):
    """Two runs, ``r`` of seed 42 and ``other``; the newest checkpoint of ``r`` is the other's."""
    keys = {"checkpoint_interval": 2, "max_steps": 4, "max_checkpoints": 3}
    start(name="r", **keys)
    start(name="other", seed=7, **keys)
    copy(start.runs, "step-00000004")
    return start.runs


def copy(runs, name):
    target = runs / "r/checkpoints" / name
    shutil.rmtree(target)
    shutil.copytree(runs / "other/checkpoints" / name, target)


def test_a_run_goes_on_from_its_own_checkpoint(start, runs):
    """Whether or not environment.json is there; the other run's is kept under its own name."""
    (runs / "r/environment.json").write_text("{")
    with capture_logs() as logs:
        start.resume("r", max_steps=6)
    (told,) = [x["error"] for x in logs if "going back" in x["event"]]
    assert "step-00000004 is of another run: its run_id is" in told
    assert events(runs / "r", "resume")[0]["checkpoint"] == "step-00000002"
    assert (runs / "r/checkpoints/foreign_step-00000004").is_dir()
    assert (runs / "r/checkpoints/best").read_text().strip() != "foreign_step-00000004"


def test_a_configuration_is_restored_from_a_checkpoint_of_its_own(runs, capsys):
    found = call(capsys, "runs", "restore", "r", "--runs-dir", runs)
    assert found.out == f"{runs / 'r/config.yaml'} is as step-00000002 has it\n"
    assert yaml.safe_load((runs / "r/config.yaml").read_text())["seed"] == 42


def test_the_list_marks_the_checkpoint_of_another_run(runs, capsys):
    """It is neither the best nor the latest."""
    found = call(capsys, "checkpoints", "list", "r", "--runs-dir", runs, "--json")
    marks = {row["name"]: row["marks"] for row in json.loads(found.out)}
    assert marks["step-00000004"] == ["foreign"]
    assert "latest" in marks["step-00000002"]
    assert "foreign" not in marks["step-00000002"] + marks["step-00000000"]
    text = call(capsys, "checkpoints", "list", "r", "--runs-dir", runs).out
    assert [line.split()[0] for line in text.splitlines() if line.endswith(" foreign")] == [
        "step-00000004"
    ]


def test_a_run_with_no_checkpoint_of_its_own_is_refused(start, runs, capsys):
    """The file that says so is named, and the configuration is not restored from a stranger."""
    for name in ("step-00000000", "step-00000002"):
        copy(runs, name)
    with pytest.raises(
        BadInput, match=r"environment\.json is of run .* all checkpoints are of run"
    ):
        start.resume("r", max_steps=6)
    refused = call(capsys, "runs", "restore", "r", "--runs-dir", runs)
    assert refused.code == 2
    assert "these were not written with this record" in refused.message
    assert "altcore runs restore" not in refused.message  # it would make another run of it


def test_a_checkpoint_of_a_copy_of_the_run_is_not_used(start, runs, capsys):
    """A copy has the run's id, and another record from where it went on."""
    shutil.rmtree(runs / "r/checkpoints/step-00000004")
    shutil.copytree(runs / "r", runs / "copy")
    config = resumed("copy", str(runs), max_steps=8, grad_clip=0.5)
    altcore.train(config, resume="copy", allow_change=("configuration",))
    shutil.copytree(runs / "copy/checkpoints/step-00000008", runs / "r/checkpoints/step-00000008")
    restored = call(capsys, "runs", "restore", "r", "--runs-dir", runs)
    assert restored.out == f"{runs / 'r/config.yaml'} is as step-00000002 has it\n"
    with capture_logs() as logs:
        start.resume("r", max_steps=6)
    assert any("is of a copy of this run" in x.get("error", "") for x in logs)
    assert events(runs / "r", "resume")[0]["checkpoint"] == "step-00000002"


def test_a_changed_line_makes_no_copy_of_a_run(start, runs):
    """Its checkpoints are all as it was: what is refused is the other learning rate alone."""
    shutil.rmtree(runs / "r/checkpoints/step-00000004")
    log = runs / "r/metrics.jsonl"
    log.write_text(log.read_text().replace('"loss": ', '"loss": 1', 1))
    told = r"learning_rate was 0\.01 and is 0\.5"
    with capture_logs() as logs, pytest.raises(BadInput, match=told):
        start.resume("r", max_steps=6, learning_rate=0.5)
    assert not any("copy" in x.get("error", "") for x in logs)


def test_restoring_is_offered_where_it_helps(start, runs, capsys):
    """Not without a checkpoint."""
    (runs / "r/config.yaml").write_text("")
    assert "altcore runs restore r writes it anew, from step-00000002" in told(capsys, runs)
    shutil.rmtree(runs / "r/checkpoints")
    assert "no checkpoint of the run holds it" in told(capsys, runs)


def told(capsys, runs):
    found = call(capsys, "train", "--resume", "r", "--set", f"runs_dir={runs}")
    assert found.code == 2
    return found.message


def test_the_id_of_a_run_stays_and_a_damaged_one_makes_no_stranger(start):
    """It is in environment.json and each manifest; its digits check each other."""
    run = start(name="r", max_steps=2).run_directory
    told = json.loads((run / "environment.json").read_text())
    assert len(told["run_id"]) == 20
    damaged = ("0" if told["run_id"][0] != "0" else "1") + told["run_id"][1:]
    (run / "environment.json").write_text(json.dumps({**told, "run_id": damaged}))
    start.resume("r", max_steps=4)
    ids = {json.loads(p.read_text())["run_id"] for p in run.glob("checkpoints/*/manifest.json")}
    assert ids == {told["run_id"]}
