"""A checkpoint that was copied in from another run is found, told and never used."""

import json
import shutil

import pytest
import yaml
from helpers import events
from helpers_cli import call
from structlog.testing import capture_logs

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
    assert call(capsys, "runs", "restore", "r", "--runs-dir", runs).code == 2


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
