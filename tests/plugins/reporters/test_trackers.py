"""The reporters ``csv``, ``tensorboard`` and ``trackio``: what their own readers find."""

import itertools
import json
import math
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pandas
import pytest
from helpers_recorded import (
    RecordedRun,
    csv_series,
    tensorboard_reader,
    tensorboard_series,
    trackio_rows,
    trackio_series,
)

from altcore import BadInput
from altcore.hooks import make_plugin
from altcore.runs import read_run
from altcore_reporters.csv_tracker import CsvTracker
from altcore_reporters.following import Follower, Ledger
from altcore_reporters.tensorboard_tracker import TensorBoardTracker
from altcore_reporters.trackio_tracker import TrackioTracker


def csv():
    return make_plugin(CsvTracker, {}, "csv")


def tensorboard():
    return make_plugin(TensorBoardTracker, {}, "tensorboard")


def trackio():
    return make_plugin(TrackioTracker, {"project": "mine"}, "trackio")


@pytest.fixture
def run(tmp_path):
    return RecordedRun(tmp_path)


@pytest.fixture
def database(tmp_path, monkeypatch):
    """The database of the project in trackio, in a folder of the test."""
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    return tmp_path / "trackio" / "mine.db"


@pytest.fixture(params=["csv", "tensorboard", "trackio"])
def tracker(request, run):
    """A tracker: how a session makes it, and the series that its own reader finds."""
    if request.param == "csv":
        return SimpleNamespace(new=csv, series=lambda: csv_series(run.path))
    if request.param == "tensorboard":
        return SimpleNamespace(new=tensorboard, series=lambda: tensorboard_series(run.path))
    database = request.getfixturevalue("database")
    return SimpleNamespace(new=trackio, series=lambda: trackio_series(database))


@contextmanager
def session(new, run, *, is_killed=False):
    """Track a run as its process does; yields the function that sends what is recorded by then."""
    made, told = new(), (run.path / "events.jsonl").stat().st_size
    with Ledger.opened(made.folder(run.record), waits=False) as ledger:
        follower = Follower.start(made, run.record, ledger, live_from=told)
        yield follower.send_new
        if not is_killed:
            follower.send_new()
            made.finish(run.record)


def close_to(series):
    """TensorBoard's scalars are float32."""
    return {
        name: [(step, pytest.approx(value, rel=1e-6, nan_ok=True)) for step, value in pairs]
        for name, pairs in series.items()
    }


def test_what_is_recorded_is_read_back(run, tracker):
    with session(tracker.new, run) as send:
        run.steps(1, 2)
        run.append("metrics.jsonl", step=2, val_loss=4.5)
        send()
        run.steps(3)
        run.steps(4, loss=math.inf, rate=0.25)
        run.append("metrics.jsonl", step=5, loss=math.nan)
    assert tracker.series() == close_to(run.series)
    assert tracker.series()["val_loss"] == [(2, 4.5)]
    assert tracker.series()["rate"] == [(4, 0.25)]


def test_resume_from_an_earlier_step_doubles_nothing_and_loses_nothing(run, tracker):
    with session(tracker.new, run) as send:
        run.steps(1, 2, 3)
        send()
        run.steps(4, 5)
    run.go_back(to=3)
    with session(tracker.new, run):
        run.steps(4, 5, 6, loss=1.0)
    assert [step for step, _ in tracker.series()["loss"]] == [1, 2, 3, 4, 5, 6]
    assert tracker.series() == close_to(run.series)


def test_a_resume_sends_what_a_killed_process_did_not(run, tracker):
    with session(tracker.new, run, is_killed=True) as send:
        run.steps(1)
        send()
    run.steps(2, 3)
    with session(tracker.new, run):
        run.steps(4)
    assert [step for step, _ in tracker.series()["loss"]] == [1, 2, 3, 4]


def test_a_change_of_format_stands_at_its_step(run, tracker):
    with session(tracker.new, run):
        run.steps(1, 2, 3)
        change = {"from": ["E4M3"], "to": ["E5M2"], "reason": "it overflows", "plugin": "shift"}
        run.append("events.jsonl", step=2, event="recipe", **change)
    assert tracker.series()["format_shift"] == [(2, 1)]
    assert tracker.series()["loss"] == [(1, 4.875), (2, 4.75), (3, 4.625)]


@pytest.mark.slow
def test_a_training_that_goes_back_is_tracked_whole(start, tmp_path, monkeypatch):
    """By the trackers' processes: killed at step 4, it goes on from the checkpoint of step 2."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    names = ["csv", "tensorboard", "trackio"]
    patient = {f"{name}__finish_timeout": 60.0 for name in names}
    path = start(
        names, name="r", max_steps=4, checkpoint_interval=2, eval_interval=2, **patient
    ).run_directory
    shutil.rmtree(path / "checkpoints" / "step-00000004")
    (path / "summary.json").unlink()
    result = start.resume("r", max_steps=6)
    assert not result.summary["degraded"]
    losses = [(line["step"], line["loss"]) for line in read_run(path).steps]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    read = {
        "csv": lambda: csv_series(path),
        "tensorboard": lambda: tensorboard_series(path),
        "trackio": lambda: trackio_series(tmp_path / "trackio" / "altgrad.db"),
    }
    evaluations = [(line["step"], line["val_loss"]) for line in read_run(path).evaluations]
    for name in names:
        expected = close_to({"loss": losses, "val_loss": evaluations})
        assert {k: read[name]()[k] for k in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("where", ["replacing a file", "sending a row"])
def test_an_upload_that_is_killed_anywhere_can_be_repeated(tracker, run, where):
    """The next one sends the whole run, and then nothing is left to send."""
    run.steps(1, 2, 3)
    run.append("metrics.jsonl", step=3, val_loss=4.5)
    for time in itertools.count(1):
        shutil.rmtree(run.path / "reports", ignore_errors=True)
        is_killed = is_killed_while(where, time, tracker.new(), run.record)
        told = tracker.new().upload([run.record])
        assert tracker.series() == close_to(run.series)
        assert tracker.new().upload([run.record]) == [NOTHING_LEFT]
        if not is_killed:
            break
    assert told == [NOTHING_LEFT]
    assert time > 4


NOTHING_LEFT = "run: everything is there already"


def is_killed_while(where, time, made, record):
    """Upload in a child that is to be killed the so-many-th time; returns whether it was."""
    child = os.fork()
    if child == 0:
        if where == "replacing a file":
            os.environ["ALTCORE_CRASH_AT"] = f"any:{time}"
        else:
            log, times = type(made).log, itertools.count(1)

            def die(*given):
                log(*given)
                if next(times) == time:
                    os.kill(os.getpid(), signal.SIGKILL)

            type(made).log = die
        try:
            made.upload([record])
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("make", [tensorboard, trackio])
def test_a_package_that_is_missing_is_named_before_the_run(make, monkeypatch):
    name = make.__name__
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match=f"the package {name} is not installed") as caught:
        make()
    assert caught.value.hint == f"pip install 'altcore-reporters[{name}]'"


# csv --------------------------------------------------------------------------------------


def table_of(run):
    return pandas.read_csv(run.path / "reports" / "csv" / "metrics.csv")


def test_the_table_is_whole_while_the_run_goes_on(run):
    with session(csv, run, is_killed=True) as send:
        for step in (1, 2, 3):
            run.steps(step)
            send()
            assert list(table_of(run)["step"]) == [1, 2, 3][:step]
        run.steps(4, rate=0.5)  # a new column
        send()
    table = table_of(run)
    assert list(table) == ["step", "loss", "step_time_ms", "rate"]
    assert list(table["loss"]) == [4.875, 4.75, 4.625, 4.5]
    assert list(table["rate"].isna()) == [True, True, True, False]


def test_an_evaluation_adds_to_the_row_of_its_step(run):
    with session(csv, run) as send:
        run.steps(1)
        send()
        run.append("metrics.jsonl", step=1, val_loss=5.0)
        send()
        run.steps(2)
        send()
        run.append("metrics.jsonl", step=2, val_loss=4.0)
    table = table_of(run)
    assert list(table["step"]) == [1, 2]
    assert list(table["val_loss"]) == [5.0, 4.0]


def test_words_and_lists_survive_the_table(run):
    reason = 'overflow, "much" of it\nand more'
    with session(csv, run):
        run.steps(1, 2, sizes=[0.5, math.nan])
        run.append("events.jsonl", step=1, event="recipe", to=["E5M2"], reason=reason)
        run.steps(3)
    table = table_of(run)
    assert list(table["step"]) == [1, 2, 3]
    assert table["shift_reason"][0] == reason
    assert list(table["sizes"].fillna("")) == ["[0.5, NaN]", "[0.5, NaN]", ""]


def test_a_progress_bar_and_a_long_list_survive_the_table(run):
    """A lone end of a line of old, and more characters than the module csv reads by itself."""
    long, reason = [0.25] * 50_000, "50 %\r100 %\rtoo much"
    with session(csv, run) as send:
        run.steps(1, sizes=long)
        run.append("events.jsonl", step=1, event="recipe", to=["E5M2"], reason=reason)
        send()
        run.steps(2, rate=0.5)  # a new column: the rows before it are read again
    with (run.path / "reports" / "csv" / "metrics.csv").open(newline="") as file:
        table = pandas.read_csv(file, lineterminator="\n")
    assert list(table["step"]) == [1, 2]
    assert table["shift_reason"][0] == reason
    assert json.loads(table["sizes"][0]) == long


# tensorboard ------------------------------------------------------------------------------


def test_a_list_is_a_histogram_and_words_are_text(run):
    with session(tensorboard, run):
        run.steps(1, shares=[0.25, 0.0, 0.75], signed=[1.0, -2.0])
        run.append("events.jsonl", step=1, event="warning", message="the rate is high")
    found = tensorboard_reader(run.path)
    histogram = found.Histograms("shares")[0].histogram_value
    assert histogram.bucket_limit == [0, 1, 2, 3]
    assert histogram.bucket == [0, 0.25, 0.0, 0.75]
    assert [found.Scalars(f"signed/{i}")[0].value for i in (0, 1)] == [1.0, -2.0]
    (warning,) = found.Tensors("events/warning")
    assert warning.step == 1
    assert b"the rate is high" in warning.tensor_proto.string_val[0]
    assert found.SummaryMetadata("events/warning").plugin_data.plugin_name == "text"
    assert {"config", "events/start", "summary"} <= set(found.Tags()["tensors"])


def test_times_are_those_of_the_run(run):
    run.steps(1, 2)
    with session(tensorboard, run):
        pass
    made = pandas.Timestamp("2026-01-31T12:00:00Z").timestamp()
    found = tensorboard_reader(run.path)
    assert [entry.wall_time for entry in found.Scalars("loss")] == [made + 0.5, made + 1.0]
    assert found.FirstEventTimestamp() == made  # by this TensorBoard sorts runs


def test_an_open_tensorboard_forgets_what_a_resume_takes_back(run):
    with session(tensorboard, run):
        run.steps(1, 2, 3)
    reader = tensorboard_reader(run.path)
    for _ in range(2):
        run.go_back(to=1)
        with session(tensorboard, run):
            run.steps(2, loss=1.0)
        pairs = [(entry.step, entry.value) for entry in reader.Reload().Scalars("loss")]
        assert pairs == [(1, 4.875), (2, 1.0)]


# trackio ----------------------------------------------------------------------------------


def test_the_dashboard_has_configuration_summary_and_histograms(run, database):
    with session(trackio, run):
        run.steps(1, shares=[0.25, 0.75])
    (row,) = trackio_rows(database, "SELECT metrics FROM metrics")
    shares = {"_type": "trackio.histogram", "bins": [0, 1, 2], "values": [0.25, 0.75]}
    assert json.loads(row[0])["shares"] == shares
    (row,) = trackio_rows(database, "SELECT config FROM configs")
    config = json.loads(row[0])
    assert config["seed"] == run.record.config["seed"]
    assert config["summary"]["steps"] == 1
    assert config["summary"]["state"] == "running"  # as it has no end
    assert (config["manifold_aware"], config["_Group"]) == (False, None)


def test_alerts_of_earlier_sessions_stay(run, database):
    for step in (1, 2):
        with session(trackio, run):
            run.steps(step)
            collapse = {"cause": "stalled", "reason": f"nothing moved at {step}"}
            run.append("events.jsonl", step=step, event="collapse", **collapse)
    rows = trackio_rows(database, "SELECT level, title, text, step FROM alerts ORDER BY id")
    told = [("error", "Collapse: stalled", f"step {i}: nothing moved at {i}", i) for i in (1, 2)]
    assert rows == told


def test_another_run_of_the_same_name_is_another_run(run, database, tmp_path):
    run.steps(1)
    other = RecordedRun(tmp_path / "other", run_id="fedcba9876543210fedc")
    other.steps(1, 2)
    for one in (run, other, run):
        with session(trackio, one):
            pass
    rows = trackio_rows(database, "SELECT run_id, count(*) FROM metrics GROUP BY run_id")
    assert rows == [("0123456789abcdef0123", 1), ("fedcba9876543210fedc", 2)]


def test_a_copy_beside_the_original_is_another_run(run, database):
    """It has the run's id, and would take its place. A run that was moved stays the run."""
    run.steps(1)
    with session(trackio, run):
        pass
    copy, moved = run.path.with_name("copy"), run.path.with_name("moved")
    shutil.copytree(run.path, copy)
    tracker, record = trackio(), read_run(copy)
    for _ in range(2):
        tracker.upload([record])
    rows = "SELECT run_name, run_id, count(*) FROM metrics GROUP BY run_id ORDER BY run_id"
    own, other = trackio_rows(database, rows)
    assert (own, other[0], other[2]) == (("run", run.run_id, 1), "copy", 1)
    assert (copy / "reports/trackio/id.txt").read_text() == other[1]
    run.path.rename(moved)
    assert tracker.id_of(read_run(moved)) == run.run_id
    assert tracker.id_of(record) == other[1]
    moved.with_name("link").symlink_to(moved)
    assert tracker.id_of(read_run(moved.with_name("link"))) == run.run_id
