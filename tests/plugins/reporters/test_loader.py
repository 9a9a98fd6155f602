"""The loader of the original experiments: the same frames from W&B and from directories."""

import math

import pytest
import wandb
from helpers_records import Told
from helpers_wandb import WandbServer, client_of
from pandas.testing import assert_frame_equal
from structlog.testing import capture_logs

from altcore import BadInput
from altcore_reporters.failure_report import FailureReport
from altcore_reporters.frames import history_frame
from altcore_reporters.loader import FORMAT_COLUMNS, MANIFOLD_COLUMNS, ExperimentDataLoader
from altcore_reporters.wandb_tracker import WandbTracker


def loader_of(*records):
    """Return a loader that has read these."""
    loader = ExperimentDataLoader()
    loader.records = records
    return loader


def run(name, format="E5M2", status="finished", **more):
    """A run's record."""
    about = {"optimizer": "adamw", "steps": 9, "final_loss": 2.0}
    return Told(name, {"format": format, "status": status, **about, **more}, run_id=f"0{name}")


RUNS = (
    run("a", "E7M0", "collapsed", final_loss=None),
    run("b", "E5M2", bit_stall_final=0.5, best_loss=1.5, overflow_final=0.25),
    run("c", "E5M2", "failed", optimizer="manifold-adamw"),
    run("d", "E5M2", "unfinished"),
    run("e", "E3M4", "stopped"),
)


def test_runs_to_compare_formats_by():
    """A row each, by format; a run that is not over is left out."""
    frame = loader_of(*RUNS).get_format_comparison_runs()
    assert tuple(frame.columns) == FORMAT_COLUMNS
    assert list(frame["run_id"]) == ["0e", "0b", "0c", "0a"]
    assert list(frame["format"]) == ["E3M4", "E5M2", "E5M2", "E7M0"]
    assert list(frame["state"]) == ["crashed", "finished", "failed", "crashed"]
    assert list(frame["steps"]) == [9] * 4
    assert [frame[k][1] for k in FORMAT_COLUMNS[5:]] == [2.0, 1.5, 0.5, 0.25]
    assert math.isnan(frame["final_loss"][3])
    assert math.isnan(frame["overflow_final"][3])


def test_runs_of_some_formats():
    """And none where there is none."""
    loader = loader_of(*RUNS)
    assert list(loader.get_format_comparison_runs(["E7M0", "E0M7"])["run_id"]) == ["0a"]
    with capture_logs() as logs:
        nothing = loader.get_format_comparison_runs("E0M7")
    assert [entry["event"] for entry in logs] == ["there is no run of E0M7"]
    assert len(loader.get_format_comparison_runs([])) == 0
    assert (len(nothing), tuple(nothing.columns)) == (0, FORMAT_COLUMNS)
    assert len(loader_of().get_format_comparison_runs()) == 0


def test_runs_to_compare_optimizers_by():
    """Of E5M2, or of another format."""
    frame = loader_of(*RUNS).get_manifold_comparison_runs()
    assert tuple(frame.columns) == MANIFOLD_COLUMNS
    assert list(frame["run_id"]) == ["0b", "0c"]
    assert list(frame["optimizer"]) == ["adamw", "manifold-adamw"]
    assert list(frame["manifold_aware"]) == [False, True]
    assert list(loader_of(*RUNS).get_manifold_comparison_runs("E7M0")["run_id"]) == ["0a"]
    with capture_logs() as logs:
        assert len(loader_of(*RUNS).get_manifold_comparison_runs("E9M9")) == 0
    assert [line["event"] for line in logs] == ["there is no run of E9M9"]


def test_the_history_of_a_run():
    """By id, name, or the address of its page; all that was recorded, or some of it."""
    lines = [{"step": 1, "loss": 3.0, "grad_norm": 1.0}, {"step": 2, "val_loss": 2.0}]
    a = Told("a", metrics=lines, run_id="0a")
    a.url = "http://127.0.0.1/me/altgrad/runs/xyz"
    loader = loader_of(a, Told("b", metrics=lines[:1]))
    frame = loader.get_run_history("0a")
    assert list(frame.columns) == ["step", "loss", "val_loss", "grad_norm"]
    assert list(frame["step"]) == [1, 2]
    for name in ("a", "xyz"):
        assert_frame_equal(loader.get_run_history(name), frame)
    assert len(loader.get_run_history("b")) == 1
    assert list(loader.get_run_history("a", keys=["loss"])["loss"]) == [3.0]
    assert list(loader.get_run_history("a", keys="loss").columns) == ["step", "loss"]


def test_a_run_that_is_not_there():
    """Or several of one name."""
    loader = loader_of(run("first"), run("second"))
    with pytest.raises(BadInput, match=r"there is no run 'fist' \(did you mean first\?\)"):
        loader.get_run_history("fist")
    with pytest.raises(BadInput, match="there is no run ''"):  # runs here have no page
        loader.get_run_history("")
    with pytest.raises(BadInput, match="2 runs are called 'a': their ids are 0a, 1a"):
        loader_of(Told("a", run_id="0a"), Told("a", run_id="1a")).get_run_history("a")


def test_the_same_frames_from_wandb_and_from_directories(start, tmp_path):
    """Of a run that finished, one that collapsed, one without a format, as they were sent.

    The client began its session with another server, which has gone.
    """
    start(["ulp-stats"], format="E3M4", recipe="pure", name="fine", max_steps=3, eval_interval=2)
    bad = {"learning_rate": 1e30, "grad_clip": 0, "nan_patience": 2}
    start(format="E5M2", name="broken", max_steps=9, **bad)
    start(format="none", name="wide", max_steps=2, optimizer="manifold-adamw")
    local = ExperimentDataLoader(runs_dir=start.runs)
    with WandbServer() as server, client_of(server, tmp_path / "client") as patch:
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        wandb.setup()
        patch.setenv("WANDB_BASE_URL", server.url)
        tracker = WandbTracker()
        tracker.name = "wandb"
        assert len(tracker.upload(local.records)) == 3
        there = ExperimentDataLoader(project="altgrad", entity="somebody")
        frames = [everything(loader) for loader in (there, local)]
        reports = [failure_reports(loader, tmp_path) for loader in (there, local)]
    assert list(local.runs["state"]) == ["finished", "crashed", "finished"]
    assert all(url.startswith(server.url) for url in there.runs["run_url"])
    for one, other in zip(*frames, strict=True):
        assert len(one)
        # Only W&B has pages.
        kept = [name for name in one.columns if name != "run_url"]
        assert_frame_equal(one[kept], other[kept], check_exact=True)
    assert reports[0] == reports[1]


def everything(loader):
    """Return every frame that a loader makes."""
    return [
        loader.runs,
        loader.get_format_comparison_runs(),
        *(loader.get_manifold_comparison_runs(format) for format in ("E5M2", "none")),
        *(loader.get_run_history(name) for name in ("fine", "broken", "wide")),
        loader.get_run_history("fine", ["loss", "val_loss", "ulp-stats/stored_mean"]),
        history_frame(sorted(loader.records, key=lambda record: record.name)),
    ]


def failure_reports(loader, folder):
    """Return the text of the report of every run."""
    records = sorted(loader.records, key=lambda record: record.name)
    return [path.read_text() for path in FailureReport().render(records, folder)]
