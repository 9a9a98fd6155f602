"""Frames of runs: a row a run, a row a recorded step, and whatever is not known is missing."""

import math

import pandas as pd
import pytest
from helpers_records import Told

from altcore.runs import STATUSES, read_run
from altcore_reporters.frames import FIRST, history_frame, runs_frame
from altcore_reporters.original_names import STATES


def test_a_run_is_a_row(start):
    """Its summary and its configuration are in columns, beginning with those to compare by."""
    done = start(format="E5M2", name="r", max_steps=2)
    record = read_run(done.run_directory)
    frame = runs_frame([record])
    assert tuple(frame.columns[: len(FIRST)]) == FIRST
    (row,) = frame.to_dict("records")
    assert (row["name"], row["format"], row["state"], row["steps"]) == ("r", "E5M2", "finished", 2)
    assert row["run_id"] == record.environment["run_id"]
    assert row["final_loss"] == done.final_loss
    assert (row["optimizer"], row["manifold_aware"]) == ("adamw", False)
    assert (row["status"], row["recipe"], row["gpt.size"]) == ("finished", "master", "tiny")
    assert (row["learning_rate"], row["gpt.batch_size"]) == (record.config["learning_rate"], 4)
    assert not {"findings", "shifts", "settings", "directory"} & set(frame.columns)


def test_what_is_not_known_is_missing():
    """A number is NaN, also where another run has it; a run of no format is called none."""
    frame = runs_frame([Told("a", {"final_loss": 2, "format": "E3M4"}), Told("b")])
    assert list(frame["format"]) == ["E3M4", "none"]
    assert frame["final_loss"].dtype == "float64"
    assert (frame["final_loss"][0], math.isnan(frame["final_loss"][1])) == (2.0, True)
    assert frame["best_loss"].isna().all()
    assert frame["run_url"].isna().all()
    assert list(frame["run_id"]) == ["a", "b"]


def test_data_and_what_was_changed_half_way_have_columns():
    """So that nobody averages over them; missing where there is nothing to say."""
    change = {"step": 4, "what": "learning_rate", "before": 0.1, "now": 0.2}
    facts = {"workload_facts": {"sha256": "0123456789" * 6}}
    frame = runs_frame([Told("a", facts, {"changes": [change]}), Told("b")])
    assert list(frame["data"].fillna("")) == ["012345", ""]
    assert list(frame["changed"].fillna("")) == ["learning_rate after step 4", ""]


def test_manifold_awareness_is_that_of_the_optimizer():
    """Whoever trained the run."""
    frame = runs_frame([Told("a", {"optimizer": "manifold-adamw"}), Told("b", {"optimizer": "x"})])
    assert list(frame["manifold_aware"]) == [True, False]


def test_every_status_has_a_state():
    """In the original experiments' words, and one for a run that is not over."""
    assert set(STATES) == set(STATUSES)
    states = runs_frame([Told(s, {"status": s}) for s in STATUSES])["state"]
    assert set(states) == {"finished", "crashed", "failed", "running"}


@pytest.mark.parametrize(("value", "dtype"), [(1, "int64"), (1.0, "int64"), (0.5, "float64")])
def test_whole_numbers_of_a_configuration_stay_whole(value, dtype):
    """Also where a tracker wrote 1.0 as 1, or read 1 as 1.0."""
    frame = runs_frame([Told("a", config={"warmup": 1, "k": value}), Told("b", config={"k": 3})])
    assert frame["k"].dtype == dtype
    assert frame["warmup"].dtype == "float64"
    assert (frame["seed"].dtype, frame["steps"].dtype) == ("float64", "int64")


@pytest.mark.parametrize("value", [1e20, 2.0**63, 2**64, math.inf])
def test_a_number_too_large_for_a_whole_one_is_a_float(value):
    """The greatest clip of a gradient is not the end of a report."""
    frame = runs_frame([Told("a", config={"grad_clip": value})])
    assert frame["grad_clip"].dtype == "float64"
    assert list(frame["grad_clip"]) == [value]


def test_no_runs_make_an_empty_frame():
    """With the columns that are always there."""
    assert len(runs_frame([])) == 0
    assert set(FIRST) <= set(runs_frame([]).columns)
    assert list(history_frame([])) == ["run_id", "name", "step", "loss", "val_loss"]


LINES = [
    {"step": 1, "loss": 5.0, "grad_norm": None, "m/z": 2.0},
    {"step": 2, "loss": math.inf, "discarded": True},
    {"step": 2, "val_loss": 4.0},
]


def test_a_history_is_a_row_a_step():
    """Evaluations and times are with their steps, and null is no value."""
    times = [{"step": 1, "step_time_ms": 3.0, "elapsed_seconds": 1.0}]
    a = Told("a", metrics=LINES, timings=times, run_id="0a")
    frame = history_frame([a, Told("b", metrics=LINES[:1])])
    columns = ["run_id", "name", "step", "loss", "val_loss", "discarded", "m/z", "step_time_ms"]
    assert list(frame) == columns
    assert list(frame["run_id"]) == ["0a", "0a", "b"]
    assert list(frame["name"]) == ["a", "a", "b"]
    assert list(frame["step"]) == [1, 2, 1]
    assert list(frame["loss"]) == [5.0, math.inf, 5.0]
    nan = float("nan")
    pd.testing.assert_series_equal(frame["val_loss"], pd.Series([nan, 4.0, nan], name="val_loss"))
    pd.testing.assert_series_equal(
        frame["step_time_ms"], pd.Series([3.0, nan, nan], name="step_time_ms")
    )


def test_a_history_of_some_keys():
    """In their order, at the steps that have any of them; one that was not recorded is missing."""
    frame = history_frame([Told("a", metrics=LINES)], keys=["val_loss", "none", "m/z"])
    assert list(frame) == ["run_id", "name", "step", "val_loss", "none", "m/z"]
    assert list(frame["step"]) == [1, 2]
    assert frame["none"].isna().all()
    assert list(history_frame([Told("a", metrics=LINES)], keys=["val_loss"])["step"]) == [2]


def test_a_histogram_is_kept_as_it_is():
    """Short lists are values, too."""
    frame = history_frame([Told("a", metrics=[{"step": 1, "h": [1, 2]}, {"step": 2, "h": [3]}])])
    assert list(frame["h"]) == [[1, 2], [3]]
