"""The reporter ``wandb``, with the real client and a server on loopback."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import attrs
import pytest
import torch
from helpers import PluginShelf, Starter, forget_installed
from helpers_wandb import ENTITY, WandbServer, client_of, upload_alone
from PIL import Image

from altcore import Format, ShiftFormat, hookimpl, setting
from altcore.errors import PluginError
from altcore.runs import read_run

LOG = {"wandb__finish_timeout": 90.0, "wandb__entity": ENTITY}
"""Settings of a tracker that is waited for, also on a busy machine."""


@attrs.define(eq=False)
class Widen:
    """Shifts the format in step 2, and fails once in step 5."""

    to: Format = setting("E5M2", help="the format to shift to")
    has_failed = False

    @hookimpl
    def pre_step(self, step):
        if step.index == 5 and not Widen.has_failed:
            Widen.has_failed = True
            raise ArithmeticError("lost")
        return ShiftFormat(self.to, reason="narrow") if step.index == 2 else None


@attrs.define(eq=False)
class Shape:
    """Measures a histogram, and a number that is not finite."""

    @hookimpl
    def post_step(self, step):
        counts = torch.tensor([1, step.index, 3])
        return {"histogram": counts, "open": torch.tensor(math.inf), "size/blocks.0": counts.sum()}

    @hookimpl
    def run_end(self, run):
        Image.new("RGB", (2, 2)).save(run.reports_dir / "curve.png")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, corpus):
    """A run that failed in step 5 and went on after the checkpoint of step 3, as W&B has it."""
    folder = tmp_path_factory.mktemp("tracked")
    with WandbServer() as server, client_of(server, folder) as patch:
        (folder / "site").mkdir()
        patch.syspath_prepend(str(folder / "site"))
        shelf = PluginShelf(folder / "site", patch)
        shelf.install("intervention", "widen", Widen)
        shelf.install("diagnostic", "shape", Shape)
        start = Starter(folder / "runs", corpus)
        keys = {"max_steps": 6, "checkpoint_interval": 3, "eval_interval": 2, "format": "E4M3"}
        keys |= {
            "wandb__checkpoints": ["last"],
            "label": "narrow",
            "tags": ["one", "two"],
            "project": "mine",
        }
        with pytest.raises(PluginError, match="lost"):
            start(["widen", "shape", "ulp-stats", "wandb"], name="a", **keys, **LOG)
        first = len(server.runs[read_run(start.runs / "a").environment["run_id"]].history)
        start.resume("a")
        (run,) = server.runs.values()
        yield SimpleNamespace(
            server=server, run=run, record=read_run(start.runs / "a"), first=first, start=start
        )
    forget_installed()


def recorded(record):
    """What W&B has to have: every line of the metrics, and the shift, by plain values."""
    times = {line["step"]: line["step_time_ms"] for line in record.timings}
    found = []
    for line in record.metrics:
        row = {k: v for k, v in line.items() if v is not None}
        found.append(row | ({"step_time_ms": times[line["step"]]} if "loss" in line else {}))
    shift = {"format_shift": 1, "new_format": "E5M2", "shift_reason": "narrow"}
    return [*found, {"step": 2, **shift}]


def rows_of(run):
    """Return what W&B has of the record: without the client's own values and the images."""
    own = [{k: v for k, v in row.items() if k[0] != "_"} for row in run.history]
    rows = [row for row in own if not any(k.startswith("reports/") for k in row)]
    return [{k: v["values"] if isinstance(v, dict) else v for k, v in r.items()} for r in rows]


def texts(rows):
    """Return rows so that they can be compared, whatever their order.

    NaN is not equal to NaN, and W&B writes 1.0 as 1.
    """
    whole = re.compile(r"\.0\b")
    return sorted(whole.sub("", json.dumps(row, sort_keys=True)) for row in rows)


def test_everything_recorded_is_there_once_after_a_resume(tracked):
    """The session that failed had sent step 4, which came again: nothing is doubled or lost."""
    assert tracked.first >= 5
    rows = rows_of(tracked.run)
    assert texts(without_times(rows)) == texts(without_times(recorded(tracked.record)))
    times = {row["step"] for row in rows if "step_time_ms" in row}
    assert times == {line["step"] for line in tracked.record.timings}
    assert [row["_step"] for row in tracked.run.history] == list(range(len(rows) + 2))
    assert len(list((tracked.record.directory / "reports/wandb").glob("run-*"))) == 1


def without_times(rows):
    """Leave out what differs where a step was made twice."""
    return [{k: v for k, v in row.items() if k != "step_time_ms"} for row in rows]


def test_charts_are_drawn_over_the_steps(tracked):
    metrics = tracked.run.config["_wandb"]["value"]["m"]
    assert [m.get("1") or m.get("2") for m in metrics] == ["step", "*"]


def test_name_project_group_tags_and_configuration(tracked):
    run, record = tracked.run, tracked.record
    assert (run.entity, run.project, run.display_name) == (ENTITY, "mine", "a")
    assert (run.group, run.tags) == ("narrow", ["one", "two"])
    assert run.id == record.environment["run_id"]
    assert (record.directory / "reports/wandb/id.txt").read_text() == run.id
    known = {k: v for k, v in record.config.items() if v not in (None, {})}  # neither is sent
    values = run.values
    environment = values.pop("environment")
    assert environment["run_id"] == run.id
    assert {k: values[k] for k in known} == json.loads(json.dumps(known))
    assert {k: values[k] for k in ("format", "optimizer", "manifold_aware")} == {
        "format": "E4M3",
        "optimizer": "adamw",
        "manifold_aware": False,
    }


def test_the_summary_is_the_runs_own_and_has_the_original_names(tracked):
    summary = tracked.record.summary
    known = {k: v for k, v in summary.items() if v is not None}
    found = tracked.run.summary
    assert {k: found[k] for k in known} == json.loads(json.dumps(known))
    assert (found["state"], found["manifold_aware"]) == ("finished", False)
    assert tracked.run.state == "finished"


def test_events_and_reports_are_files_of_the_run(tracked):
    files, directory = tracked.run.files, tracked.record.directory
    assert files["events.jsonl"] == (directory / "events.jsonl").read_bytes()
    assert files["reports/curve.png"] == (directory / "reports/curve.png").read_bytes()


def test_pictures_and_images_among_the_reports_are_shown(tracked):
    """As each session left them: the second had more steps to draw."""
    rows = [row for row in tracked.run.history if "reports/curve" in row]
    assert [row["step"] for row in rows] == [5, 6]
    images = {k: v for k, v in rows[-1].items() if k.startswith("reports/")}
    assert images.keys() == {"reports/curve", "reports/curves", "reports/layers"}
    assert {image["_type"] for image in images.values()} == {"image-file"}
    assert {image["path"] for image in images.values()} <= tracked.run.files.keys()


def test_checkpoints_are_artifacts_if_asked_for(tracked):
    """Each session sent its own, as a version of one artifact."""
    first, last = tracked.server.artifacts
    assert first["artifactCollectionName"] == last["artifactCollectionName"]
    assert last["is_committed"]
    assert "last" in [alias["alias"] for alias in last["aliases"]]
    folder = tracked.record.directory / "checkpoints"
    names = {path.name for path in (folder / (folder / "last").read_text()).iterdir()}
    assert names == last["files"].keys() - {"wandb_manifest.json"}


def test_nothing_was_asked_that_the_server_does_not_know(tracked):
    """So that a new client that asks for more is noticed here."""
    assert tracked.server.unknown == {}


@pytest.mark.slow
def test_an_upload_sends_nothing_again_and_everything_of_a_copy(tracked, tmp_path):
    """In another process than this one, which the client would change."""
    copy = shutil.copytree(tracked.record.directory, tmp_path / "a")
    server = tracked.server
    rows = len(rows_of(tracked.run))
    server.asked.clear()
    assert upload_alone(copy) == "a: everything is there already"
    assert not [asked for asked in server.asked if "file_stream" in asked or "Upsert" in asked]
    shutil.rmtree(copy / "reports/wandb")
    (copy / "reports/wandb").mkdir()
    (copy / "reports/wandb/id.txt").write_text("another")
    assert upload_alone(copy).startswith(
        f"a: sent {rows} rows to {server.url}/{ENTITY}/mine/runs/another"
    )
    assert texts(rows_of(server.runs["another"])) == texts(recorded(tracked.record))
    assert server.alerts == []
