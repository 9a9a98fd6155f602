"""The verdict on a run: whether it learned, and the line that says how it went."""

import math

import pytest

from altcore.runs import has_learned, verdict_of


@pytest.mark.parametrize(
    ("val_loss", "learned"),
    [(3.0, True), (3.04, True), (3.05, False), (3.2, False), (5.27, False), (math.nan, False)],
)
def test_learned_is_5_percent_below_the_unigram_entropy(val_loss, learned):
    """At 3.2: 3.04. Whatever the first evaluation was."""
    last = {"val_loss": val_loss, "val_loss_error": 0.001}
    found = has_learned(last, {"val_loss": 9.0}, entropy=3.2)
    assert found is learned


@pytest.mark.parametrize(
    ("val_loss", "error", "learned"),
    [(0.7, 0.1, True), (0.7, 0.2, False), (0.96, None, False), (0.94, None, True)],
)
def test_without_an_entropy_the_first_evaluation_is_the_measure(val_loss, error, learned):
    """By two standard errors of the difference; an evaluation of one batch has none: by 5 %."""
    first = {"step": 1, "val_loss": 1.0, "val_loss_error": error and 0.05}
    last = {"step": 9, "val_loss": val_loss, "val_loss_error": error}
    assert has_learned(last, first, entropy=None) is learned


@pytest.mark.parametrize(("entropy", "start"), [(3.2, 9.0), (None, 3.2)])
def test_what_the_training_loss_rose_by_since_the_evaluation_counts(entropy, start):
    """An error may end a run long after it; a loss that fell since proves nothing."""
    last, first = {"val_loss": 2.0, "val_loss_error": 0.1}, {"val_loss": start}
    found = {rise: has_learned(last, first, entropy=entropy, rise=rise) for rise in (0.5, 1.5)}
    assert found == {0.5: True, 1.5: False}
    assert has_learned({"val_loss": 3.2}, first, entropy=entropy, rise=-1.0) is False
    assert has_learned(last, first, entropy=entropy, rise=math.inf) is False


def test_a_loss_that_became_finite_is_learned():
    """Whatever it is."""
    first = {"val_loss": math.nan, "val_loss_error": math.nan}
    assert has_learned({"val_loss": 9.0, "val_loss_error": 0.1}, first, entropy=None)


def test_what_was_not_evaluated_is_not_known():
    """Neither learned nor not."""
    assert has_learned({}, {}, entropy=3.0) is None
    assert verdict_of(learned=None, status="finished", steps=3).startswith("not known")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "learned"),
        ({"learned": False}, "did not learn"),
        ({"is_improving": True}, "learned, still improving at the end"),
        ({"learned": False, "is_improving": True}, "did not learn, still improving at the end"),
        ({"collapses": [{"step": 7}, {"step": 9}]}, "learned; collapsed at step 7, went on"),
        (
            {"learned": False, "status": "collapsed", "collapses": [{"step": 7}]},
            "did not learn; collapsed at step 7",
        ),
        ({"status": "stopped", "stopped_by": "guard"}, "learned; stopped by guard at step 10"),
        ({"status": "interrupted", "learned": None}, "interrupted at step 10"),
        ({"status": "failed"}, "learned; failed at step 10"),
        (
            {"status": "failed", "judged_at": 7, "is_improving": True},
            "learned by step 7, still improving at the end; failed at step 10",
        ),
        ({"learned": False, "judged_at": 10}, "did not learn"),
        ({"discarded": 5}, "learned"),
        ({"discarded": 6, "is_improving": True}, "did not learn: 6 of 10 steps discarded"),
    ],
)
def test_the_line(given, line):
    """Each thing that happened has its part, in one order."""
    assert verdict_of(**{"learned": True, "status": "finished", "steps": 10, **given}) == line
