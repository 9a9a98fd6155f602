"""Validation losses, bits a byte, and the rates of rounding and clipping of an arm."""

import math

import pytest

from altcore.study.measures import bits_per_byte, outcome_loss, rates, val_gap, validation
from altcore.study.outcome import Outcome

FACTS = {"val_tokens": 1000, "val_bytes": 4000}


def outcome(loss=2.0, lines=(), diverged=False, **evaluation):
    evaluation = {"val_loss": loss, "val_items": 64, "val_loss_error": 0.1} | evaluation
    return Outcome((3.0, 2.5), diverged, 3.2, tuple(lines), None, None, evaluation, FACTS)


def test_a_gap_of_validation_is_a_difference_of_its_loss():
    """A run that diverged counts with the unigram entropy, or with the loss at the start."""
    assert val_gap(outcome(2.25), outcome(2.0)) == 0.25
    assert val_gap(outcome(diverged=True), outcome(2.0)) == pytest.approx(1.2)
    assert val_gap(outcome(diverged=True), outcome(3.4)) == pytest.approx(-0.4)
    assert outcome_loss(outcome(diverged=True)) == math.inf


def test_bits_a_byte_are_those_of_the_text():
    """A token of four bytes and two nats has half a nat a byte."""
    assert bits_per_byte(outcome(2.0)) == pytest.approx(0.5 / math.log(2))
    assert bits_per_byte(Outcome((), False, None, (), None, None, {"val_loss": 2.0})) is None


def test_enough_batches_make_a_loss_as_certain_as_the_distance():
    """The error falls with the root of the batches; the worst run counts."""
    found = validation([outcome(), outcome(val_loss_error=0.2)], batches=8, within=0.196)
    assert (found["error"], found["items"], found["enough"]) == (0.2, 64, 32)
    assert validation([outcome(val_loss_error=None)], 1, 0.1)["enough"] is None
    whole = validation([outcome(val_is_whole=True)], 8, 0.1)
    assert (whole["error"], whole["enough"]) == (0.0, 8)
    assert validation([outcome(val_is_whole=True)], 8, 0.0)["enough"] == 8


def test_a_rate_has_its_mean_its_largest_value_and_when_that_was():
    """Over the steps of all seeds; clipping halves a gradient of twice the limit."""
    own = {
        1: outcome(lines=[{"step": 1, "overflow_rate": 0.1, "grad_norm": 2.0}]),
        2: outcome(
            lines=[
                {"step": 1, "overflow_rate": None, "grad_norm": 0.5},
                {"step": 2, "overflow_rate": 0.3, "grad_norm": "nan"},
            ]
        ),
    }
    found = rates(own, grad_clip=1.0)
    assert found["gradient_clipped_by_plugins"] is None
    assert found["overflow_rate"] == {"mean": 0.2, "largest": 0.3, "step": 2, "seed": 2}
    assert found["gradient_clipped"] == {"mean": 0.25, "largest": 0.5, "step": 1, "seed": 1}
    assert found["flushed_rate"] is None
    assert rates(own, grad_clip=0)["gradient_clipped"] is None


def test_what_clippers_took_away_has_a_rate_of_its_own():
    """That of `grad_clip` is of what they left; one that lets a gradient grow takes nothing."""
    norms = [(4.0, 2.0), (1.0, 1.5), (0.0, 0.0), ("nan", "nan")]
    lines = [
        {"step": step, "grad_norm": norm, "grad_norm_after_plugins": left}
        for step, (norm, left) in enumerate(norms, 1)
    ]
    found = rates({1: outcome(lines=lines)}, grad_clip=1.0)
    by_plugins, clipped = found["gradient_clipped_by_plugins"], found["gradient_clipped"]
    assert by_plugins == {"mean": pytest.approx(0.5 / 3), "largest": 0.5, "step": 1, "seed": 1}
    assert clipped["mean"] == pytest.approx((0.5 + 1 / 3) / 3)
