"""The reporters ``csv``, ``tensorboard`` and ``trackio``: what their own readers find."""

from types import SimpleNamespace

import pytest
from helpers_recorded import RecordedRun, csv_series, tensorboard_series, trackio_series

from altcore.hooks import build
from altcore_reporters.csv_tracker import CsvTracker
from altcore_reporters.tensorboard_tracker import TensorBoardTracker
from altcore_reporters.trackio_tracker import TrackioTracker


@pytest.fixture
def run(tmp_path):
    return RecordedRun(tmp_path)


@pytest.fixture(params=["csv", "tensorboard", "trackio"])
def tracker(request, tmp_path, monkeypatch, run):
    """A tracker: a function that makes it anew, as a resume does, and its series as read back."""
    if request.param == "csv":
        return SimpleNamespace(new=CsvTracker, series=lambda: csv_series(run.path))
    if request.param == "tensorboard":
        return SimpleNamespace(new=TensorBoardTracker, series=lambda: tensorboard_series(run.path))
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    return SimpleNamespace(
        new=lambda: build(TrackioTracker, {"project": "mine"}, "trackio"),
        series=lambda: trackio_series(tmp_path / "trackio" / "mine.db"),
    )


def told(tracker, run, *lines):
    """Tell a new tracker of lines that are recorded meanwhile; it is not finished."""
    made = tracker.new()
    made.start(run.record)
    for line in lines:
        made.log(*line())
    return made


def test_what_is_logged_is_read_back(run, tracker):
    steps = [lambda step=step: run.line(step) for step in (1, 2, 3)]
    made = told(tracker, run, *steps, lambda: run.evaluation(3, 4.5), lambda: run.line(10, lr=1e-4))
    made.finish({})
    assert tracker.series() == {k: approx(v) for k, v in run.series.items()}
    assert tracker.series()["val_loss"] == [(3, 4.5)]


def test_resume_from_an_earlier_step_doubles_nothing_and_loses_nothing(run, tracker):
    steps = [lambda step=step: run.line(step) for step in range(1, 6)]
    told(tracker, run, *steps).finish({})
    run.go_back(to=3)
    again = [lambda step=step: run.line(step, loss=1.0) for step in range(4, 8)]
    told(tracker, run, *again).finish({})
    assert tracker.series() == {k: approx(v) for k, v in run.series.items()}


def approx(pairs):
    return [(step, pytest.approx(value, rel=1e-6, nan_ok=True)) for step, value in pairs]
