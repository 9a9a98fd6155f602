"""`FailureAnalyzer`: which runs failed, and by which measurements."""

import math

import pandas as pd
import pytest
from helpers_records import Told

from altcore import BadInput
from altcore_reporters import FailureAnalyzer
from altcore_reporters.failure_evidence import MODES, failure_of
from altcore_reporters.failures import COLUMNS

NAN = math.nan
ANALYZER = FailureAnalyzer()


def told(summary=(), config=(), events=(), steps=None):
    """Return a run of 20 steps: finished, learned, and nothing wrong but what a test says."""
    known = {"status": "finished", "learned": True, "format": "E3M4", "steps": 20}
    falling = [{"step": i, "loss": 3 - i / 20} for i in range(1, 21)]
    record = Told("r", known | dict(summary), dict(config), steps or falling)
    record.events = list(events)
    return record


def collapse(cause, step=12, **data):
    """A summary and an event of a collapse."""
    about = {"step": step, "cause": cause, "reason": f"it is {cause}"}
    summary = {"status": "collapsed", "collapses": [about], "failure_step": step}
    return {"summary": summary, "events": [{**about, "event": "collapse", **data}]}


def not_finite(value, **where):
    nan = {"event": "nan", "step": 11, "what": "loss", "layer": None, "value": value, **where}
    found = collapse("nan_patience")
    return {**found, "events": [nan, *found["events"]]}


# ----------------------------------------------------------------------- from what was measured


@pytest.mark.parametrize("status", ["finished", "unfinished"])
def test_a_run_that_learned_or_goes_on_did_not_fail(status):
    """Nor one whose evaluations do not tell."""
    assert failure_of(told({"status": status})) is None
    assert failure_of(told({"status": status, "learned": None})) is None


def test_a_collapse_is_a_failure_with_its_step_and_reason():
    """The last good loss is that of its step."""
    found = failure_of(told(**collapse("stalled")))
    assert found["failure_mode"] == "stall"
    assert (found["collapse_step"], found["reason"]) == (12, "it is stalled")
    assert (found["mode_from"], found["evidence"]) == ("measurements", "It is stalled.")
    assert found["last_good_loss"] == 3 - 12 / 20


def test_a_collapse_that_the_run_outlived_is_a_failure():
    """It finished, and it broke on the way."""
    broken = collapse("diverged")
    broken["summary"] |= {"status": "finished"}
    assert failure_of(told(**broken))["failure_mode"] == "divergence"


@pytest.mark.parametrize(
    ("broken", "mode", "words"),
    [
        (not_finite(math.inf), "overflow", "was inf first"),
        (not_finite(NAN), "non_finite", "Nothing was measured to overflow"),
        (not_finite(NAN, layer="h.0", operand="activation@fwd"), "non_finite", "h.0 (activation@"),
        (
            {**not_finite(NAN), "steps": [{"step": 1, "loss": 2.0, "overflow_rate": 0.25}]},
            "overflow",
            "25.00% of the quantized values overflowed",
        ),
        (
            collapse("dead_gradients", gradients={"a": {"zero_share": 0.4, "norm": 0.0}}),
            "gradient_vanishing",
            "It is dead_gradients.",
        ),
        (
            collapse(
                "dead_gradients",
                gradients={n: {"zero_share": z} for n, z in (("a", 1), ("b", 0.5))},
            ),
            "gradient_vanishing",
            "75.00% of the gradients' elements were zero",
        ),
    ],
)
def test_the_mode_of_a_collapse_comes_from_what_was_measured(broken, mode, words):
    """And the evidence says so."""
    found = failure_of(told(**broken))
    assert (found["failure_mode"], found["mode_from"]) == (mode, "measurements")
    assert words in found["evidence"]


@pytest.mark.parametrize(
    ("summary", "mode"),
    [
        ({"stored_stall_rate": 0.98}, "stall"),
        ({"stored_stall_rate": 0.9}, "unknown"),
        ({"view_stall_rate": 0.98}, "unknown"),
        ({"flushed_final": 0.6}, "underflow"),
        ({"flushed_final": 0.4}, "unknown"),
        ({"overflow_final": 0.05}, "overflow"),
        ({"overflow_final": 0.005}, "unknown"),
    ],
)
def test_a_run_that_did_not_learn_failed_by_what_was_measured(summary, mode):
    """Views of float32 masters stall in healthy runs, and so do nine in ten stored weights."""
    found = failure_of(told({"learned": False, "val_loss": 4.0, **summary}))
    assert found["failure_mode"] == mode
    assert found["mode_from"] == ("the reason alone" if mode == "unknown" else "measurements")
    assert found["reason"] == "did not learn: the validation loss is 4"
    assert math.isnan(found["collapse_step"])


def test_a_loss_that_rises_diverges():
    """From the first step to the mean of the last tenth."""
    rising = [{"step": i, "loss": 3 + i / 10} for i in range(1, 21)]
    found = failure_of(told({"learned": False}, steps=rising))
    assert (found["failure_mode"], found["evidence"]) == (
        "divergence",
        "The loss rose from 3.1 to 4.95.",
    )


def test_a_weight_that_is_rounded_stochastically_loses_no_update():
    """It stalls as often as it should, at any depth of the recipe; the engine counts the others."""
    stored = {"stored_weight": {"format": "FORMAT", "rounding": "stochastic"}}
    failed = {"learned": False, "stored_stall_rate": 0.98}
    for recipe in (stored, {"layers": {"<any>": stored}}):
        found = failure_of(told(failed, {"recipe": recipe}))
        assert found["failure_mode"] == "unknown"
    others = [{"step": i, "loss": 2.0, "lost_stall_rate": 0.97} for i in (1, 2)]
    found = failure_of(told(failed, {"recipe": stored}, steps=others))
    assert found["evidence"].startswith("97.00% of the nonzero updates")


def test_the_last_good_loss_is_of_an_update_that_was_kept():
    """Neither NaN nor discarded."""
    steps = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 9.0, "discarded": True},
        {"step": 3, "loss": NAN},
    ]
    assert failure_of(told(**not_finite(NAN), steps=steps))["last_good_loss"] == 3.0


def test_an_error_is_a_reason():
    """Nothing was measured, and it says so."""
    found = failure_of(told({"status": "failed", "error": "out of memory"}))
    assert (found["failure_mode"], found["mode_from"]) == ("unknown", "the reason alone")
    assert (found["reason"], found["collapse_step"]) == ("out of memory", 20)


# ------------------------------------------------------------------------- from a reason alone


@pytest.mark.parametrize(
    ("reason", "sparsity", "mode"),
    [
        ("NaN/Inf loss", None, "overflow"),
        ("loss is nan", 0.9, "overflow"),
        ("10 consecutive steps were not finite (nan_patience 10)", None, "overflow"),
        ("Infinity in gradients", None, "overflow"),
        ("stopped", 0.51, "gradient_vanishing"),
        ("underflow in attention", 0.51, "gradient_vanishing"),
        ("Underflow in attention", 0.5, "underflow"),
        ("values overflow", None, "overflow"),
        ("Runtime error: information missing in finance", None, "unknown"),
        ("stopped", NAN, "unknown"),
        ("no underflow; overflow", None, "overflow"),
        ("no overflow, no underflow", None, "unknown"),
        ("No NaN was seen", None, "unknown"),
        ("no NaN/Inf or overflow, but zeros", 0.9, "gradient_vanishing"),
        ("no NaN, yet the loss was inf", None, "overflow"),
        ("overflow -> underflow", None, "overflow"),
        ("underflow after overflow", None, "underflow"),
        (NAN, None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_a_reason_is_classified(reason, sparsity, mode):
    """As in the original experiments; a word that only contains inf or nan is none."""
    assert ANALYZER.classify_failure_mode(reason, sparsity) == mode
    assert mode in MODES


@pytest.mark.parametrize("share", [1.5, -0.1, math.inf])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(BadInput, match=f"grad_sparsity is {share}, and not a share"):
        ANALYZER.classify_failure_mode("stopped", share)


RUNS = pd.DataFrame(
    {
        "format": ["E7M0", "E5M2", "E3M4", "E1M6"],
        "run_id": ["a", "b", "c", "d"],
        "run_url": ["https://w/a", None, None, None],
        "state": ["crashed", "finished", "failed", "running"],
        "steps": [12, 500, 7, 3],
        "final_loss": [NAN, 2.0, 3.0, 4.0],
        "best_loss": [2.5, 1.9, 2.9, 3.9],
        "bit_stall_final": [0.97, 0.9, NAN, NAN],
        "overflow_final": [NAN, 0.0, 0.0, 0.0],
    }
)
"""As the original experiments' loader returns them."""


def test_failures_are_the_runs_that_crashed_or_failed():
    """With the columns of the frame, and a mode that is marked as from the reason alone."""
    found = ANALYZER.extract_failures(RUNS)
    assert list(found["format"]) == ["E7M0", "E3M4"]
    assert set(COLUMNS) | set(RUNS) == set(found)
    assert list(found["last_good_loss"]) == [2.5, 3.0]
    assert list(found["collapse_step"]) == [12, 7]
    assert list(found["failure_mode"]) == ["unknown", "unknown"]
    assert set(found["mode_from"]) == {"the reason alone"}
    assert found["run_url"][0] == "https://w/a"
    assert math.isnan(found["bit_stall_final"][1])


def test_a_frame_has_measurements_too():
    """An overflow rate, and altcore's own reasons, steps and verdicts."""
    df = RUNS.assign(
        overflow_final=[0.3, 0, 0, 0],
        failure_reason=[None, None, "loss is NaN", None],
        failure_step=[NAN, NAN, 5, NAN],
        learned=[None, False, None, True],
    )
    found = ANALYZER.extract_failures(df)
    assert list(found["format"]) == ["E7M0", "E5M2", "E3M4"]
    assert list(found["failure_mode"]) == ["overflow", "unknown", "overflow"]
    assert list(found["mode_from"]) == ["measurements", "the reason alone", "the reason alone"]
    assert list(found["reason"].astype(object))[1:] == ["did not learn", "loss is NaN"]
    assert list(found["collapse_step"])[2] == 5
    assert math.isnan(found["collapse_step"][1])


@pytest.mark.parametrize("column", ["collapse_step", "last_good_loss", "grad_sparsity"])
def test_text_among_the_numbers_of_failures_is_named(column):
    """The column and the value."""
    with pytest.raises(BadInput, match=f"{column} is 'late', and not a number"):
        ANALYZER.extract_failures(RUNS.assign(**{column: "late"}))
    with pytest.raises(BadInput, match="None is not a frame"):
        ANALYZER.merge_failure_data(None, [])


def test_no_failure_is_an_empty_frame():
    """With its columns."""
    for df in (RUNS[1:2], RUNS[:0], pd.DataFrame()):
        found = ANALYZER.extract_failures(df)
        assert len(found) == 0
        assert set(COLUMNS) <= set(found)


# --------------------------------------------------------------------------------- from folders

REPORT = """# Failure Report: E7M0 Experiment

## Summary

| Metric | Value |
|--------|-------|
| Format | E7M0 |
| Collapse Step | 123 |
| Collapse Reason | NaN/Inf loss |
| Final Loss | nan |
| Best Loss | 2.500000 |
| Total Steps | 123 / 500 |

### Gradient Sparsity

Fraction of near-zero gradients at collapse: **62.50%**

### Quantization Metrics at Collapse

| Metric | Value |
|--------|-------|
| Bit-Stall Rate | 95.00% |
| Overflow Rate | {overflow} |
| Underflow Rate | 0.00% |

### Loss Trend

| Step | Loss |
|------|------|
| 0 | 5.500000 |
| 100 | 2.750000 |
| 122 | nan |

## Recommendations

| 9 | 9.0 |
"""


def report(folder, run="e7m0_uniform", overflow="0.00%"):
    """Write a report as the original experiments did."""
    file = folder / run / "failure_reports" / "E7M0_20260101_failure_report.md"
    file.parent.mkdir(parents=True)
    file.write_text(REPORT.format(overflow=overflow))
    return file


def test_reports_of_the_original_experiments_are_read(tmp_path):
    """Step, reason, the last finite loss, and what was measured: not NaN, but dead gradients."""
    file = report(tmp_path)
    (found,) = ANALYZER.parse_local_failure_reports(tmp_path)
    assert (found["format"], found["name"], found["source"]) == ("E7M0", "e7m0_uniform", str(file))
    assert (found["collapse_step"], found["reason"]) == (123, "NaN/Inf loss")
    assert (found["last_good_loss"], found["grad_sparsity"]) == (2.75, 0.625)
    assert found["bit_stall_rate"] == 0.95
    assert (found["failure_mode"], found["mode_from"]) == ("gradient_vanishing", "measurements")
    assert found["evidence"] == "62.50% of the gradients were near zero."


def test_an_overflow_that_was_measured_comes_first(tmp_path):
    """A report of another text is no error: what it does not say is missing."""
    report(tmp_path, overflow="12.00%")
    other = report(tmp_path, "other")
    other.write_text("nothing\n")
    first, second = ANALYZER.parse_local_failure_reports(tmp_path)
    assert (first["failure_mode"], first["mode_from"]) == ("overflow", "measurements")
    assert (second["format"], second["failure_mode"]) == (None, "unknown")
    assert math.isnan(second["last_good_loss"])


def test_a_folder_that_is_not_there_has_no_reports(tmp_path):
    assert ANALYZER.parse_local_failure_reports(tmp_path / "checkpoints") == []


def test_run_directories_are_read(start):
    """One that broke, beside one that learned as little as three steps allow."""
    start(name="short", format="E5M2")
    torn = start.runs / "torn"
    torn.mkdir()
    for name in ("config.yaml", "summary.json"):
        (torn / name).write_text("{")
    done = start(name="wild", format="E5M2", learning_rate=1e30, nan_patience=2, max_steps=6)
    assert done.summary["status"] == "collapsed"
    short, wild = ANALYZER.parse_local_failure_reports(done.run_directory.parent)
    assert (short["name"], short["state"]) == ("short", "finished")
    assert short["reason"].startswith("did not learn: the validation loss is ")
    assert (wild["name"], wild["format"], wild["state"]) == ("wild", "E5M2", "collapsed")
    assert wild["collapse_step"] == done.summary["failure_step"]
    assert wild["failure_mode"] in ("overflow", "non_finite")
    assert wild["mode_from"] == "measurements"
    assert wild["run_id"]


# ------------------------------------------------------------------------------------- together


def test_a_report_belongs_to_its_run_or_to_the_only_one_of_its_format(tmp_path):
    """Its measurements replace the mode that the row had from the reason alone."""
    report(tmp_path)
    reports = ANALYZER.parse_local_failure_reports(tmp_path)
    found = ANALYZER.merge_failure_data(ANALYZER.extract_failures(RUNS), reports)
    assert list(found["format"]) == ["E7M0", "E3M4"]
    row = found.iloc[0]
    assert (row["run_id"], row["run_url"], row["collapse_step"]) == ("a", "https://w/a", 123)
    assert (row["failure_mode"], row["mode_from"]) == ("gradient_vanishing", "measurements")
    assert row["last_good_loss"] == 2.75


def test_reports_without_a_row_are_added():
    """Two of one format belong to no row of it, unless they name it."""
    failures = ANALYZER.extract_failures(RUNS)
    reports = [
        {"format": "E7M0", "name": "x", "reason": "NaN"},
        {"format": "E7M0", "run_id": "a", "reason": "underflow"},
        {"format": "E4M3", "reason": "loss is inf"},
    ]
    found = ANALYZER.merge_failure_data(failures, reports)
    assert list(found["format"]) == ["E7M0", "E3M4", "E7M0", "E4M3"]
    assert list(found["failure_mode"]) == ["underflow", "unknown", "overflow", "overflow"]
    assert set(found["mode_from"]) == {"the reason alone"}
    unnamed = [{"format": "E3M4", "reason": reason} for reason in ("NaN", "underflow")]
    assert list(ANALYZER.merge_failure_data(failures, unnamed)["failure_mode"]) == [
        *("unknown", "unknown", "overflow", "underflow"),
    ]
    assert len(ANALYZER.merge_failure_data(failures, [])) == 2
    assert len(ANALYZER.merge_failure_data(failures[:0], reports)) == 3


def test_two_runs_of_one_format_are_two_failures():
    """Their ids differ: neither the format nor the name makes one of them."""
    failures = ANALYZER.extract_failures(RUNS.assign(name="r"))
    other = {"format": "E7M0", "run_id": "z", "name": "r", "reason": "underflow"}
    found = ANALYZER.merge_failure_data(failures, [other])
    assert list(found["run_id"]) == ["a", "c", "z"]
    assert list(found["failure_mode"]) == ["unknown", "unknown", "underflow"]
    assert len(ANALYZER.merge_failure_data(failures, [{**other, "run_id": None}])) == 2
