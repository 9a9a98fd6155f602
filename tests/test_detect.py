"""The detector, on synthetic series: each cause, once until it clears, and never stall alone."""

import itertools
import math
import random

import pytest

from altcore.config import TrainConfig
from altcore.detect import FIRST, SMOOTH, Detector


def detector(**keys):
    """A detector that judges quickly."""
    given = {"warmup_steps": 0, "stall_window": 20, "learning_rate": 1.0, "max_steps": 10_000}
    return Detector(TrainConfig(**{**given, **keys}))


def feed(watcher, losses, *, start=1, stall=None, dead=None, learning_rate=1.0, finite=None):
    """Feed a series; returns (step, cause) of all that was found."""
    found = []
    rates = [stall] * len(losses) if isinstance(stall, float) else stall
    for i, loss in enumerate(losses):
        new = watcher.observe(
            start + i,
            loss,
            is_finite=math.isfinite(loss) if finite is None else finite[i],
            learning_rate=learning_rate,
            stall=None if rates is None else ("stored", rates[i]),
            dead=None if dead is None else dead[i],
        )  # fmt: skip
        found += [(start + i, e["cause"]) for e in new]
    return found


def noisy(count, slope=0.0, level=3.0, noise=0.1, seed=0):
    """Losses with noise around a line."""
    draw = random.Random(seed)
    return [level + slope * i + draw.gauss(0, noise) for i in range(count)]


# -------------------------------------------------------------------------- nan_patience


def test_patience_counts_consecutive_steps():
    """The third in a row is a collapse; a finite one starts anew; once until it clears."""
    nan = math.nan
    series = [1.0, nan, nan, 1.0, nan, nan, nan, nan, nan, 1.0, nan, nan, nan]
    assert feed(detector(nan_patience=3), series) == [(7, "nan_patience"), (13, "nan_patience")]


def test_a_finite_loss_with_bad_gradients_counts():
    """It is the step that is not finite, not the loss."""
    finite = [True, False, False]
    assert feed(detector(nan_patience=2), [1.0] * 3, finite=finite) == [(3, "nan_patience")]


def test_forgetting_starts_anew():
    """After a shift or a rollback the count starts at none, and the cause may come again."""
    watcher = detector(nan_patience=2)
    assert feed(watcher, [math.nan] * 2) == [(2, "nan_patience")]
    watcher.start_anew()
    assert feed(watcher, [math.nan] * 2, start=3) == [(4, "nan_patience")]


def test_a_forgiven_step_does_not_count():
    """The step because of which the format was shifted says nothing of the new one."""
    watcher = detector(nan_patience=1)
    found = watcher.observe(1, math.nan, is_finite=False, is_forgiven=True, learning_rate=1.0)
    assert (found, watcher.nonfinite) == ([], 0)


# ------------------------------------------------------------------------------ diverged


def test_a_loss_that_blows_up_at_once_has_diverged():
    """Within the first few losses already: the very first is what it started at."""
    found = feed(detector(), [5.5, 104.0, 238.0, 276.0, 219.0, *[95.0] * 40])
    assert found == [(FIRST + SMOOTH + 1, "diverged")]


def test_a_loss_that_doubles_has_diverged():
    """Compared are the mean of the last steps and that of the first five, not single values."""
    series = [2.0] * 30 + [8.0] * 40
    found = feed(detector(diverged_ratio=1.5), series)
    # 20 are averaged: (n * 8 + (20 - n) * 2) / 20 > 3 from n = 4 on.
    assert found == [(34, "diverged")]


def test_a_single_spike_is_no_divergence():
    """One bad batch in twenty moves the mean too little."""
    assert feed(detector(), [2.0] * 25 + [9.0] + [2.0] * 30) == []


def test_divergence_is_reported_again_after_it_cleared():
    """Once until it clears."""
    series = [2.0] * 30 + [8.0] * 30 + [2.0] * 30 + [8.0] * 30
    assert [c for _, c in feed(detector(), series)] == ["diverged", "diverged"]


def test_nothing_diverges_before_there_is_a_start():
    """The first steps are what later ones are compared with."""
    assert feed(detector(), [1.0] * 5 + [100.0] * (SMOOTH - 5)) == []


def test_negative_losses_diverge_upwards():
    """A log-likelihood of a density may be below zero: the ratio is of its size."""
    assert feed(detector(diverged_ratio=1.5), [-2.0] * 30 + [-1.5] * 40) == []
    assert feed(detector(diverged_ratio=1.5), [-2.0] * 30 + [0.0] * 40)[0][1] == "diverged"


# -------------------------------------------------------------------------------- dead


def test_dead_gradients_are_told_once_until_they_live():
    """The count comes from the device; at the window's length it is a collapse."""
    counts = [0, 3, 4, 5, 6, 0, 4, 5]
    found = feed(detector(dead_neuron_window=5), [1.0] * 8, dead=[{"a.weight": c} for c in counts])
    assert found == [(4, "dead_gradients"), (8, "dead_gradients")]


def test_dead_layers_are_named():
    """Those at the window's length and no others."""
    watcher = detector(dead_neuron_window=5)
    (evidence,) = watcher.observe(
        1, 1.0, is_finite=True, learning_rate=1.0, dead={"b": 5, "a": 9, "c": 4}
    )
    assert evidence["dead_layers"] == ["a", "b"]
    assert "a, b" in evidence["reason"]


# ------------------------------------------------------------------------------- stalled


def test_stalled_needs_a_full_window():
    """Twenty judged steps of a loss that stands still."""
    assert feed(detector(), noisy(60), stall=0.9) == [(20, "stalled")]


def test_stall_alone_is_never_a_collapse_while_the_loss_falls():
    """98 % stalled, as measured on real runs that learned all the same."""
    for seed in range(20):
        falling = noisy(300, slope=-0.04, seed=seed)
        assert feed(detector(), falling, stall=0.98) == []


def test_a_low_stall_rate_is_none():
    """A loss that stands still for other reasons is not blamed on the format."""
    assert feed(detector(bit_stall_threshold=0.5), noisy(200), stall=0.5) == []
    assert feed(detector(bit_stall_threshold=0.5), noisy(200), stall=0.51) != []


def test_stall_does_not_count_in_warm_up():
    """The window begins after the last step of warm-up."""
    assert feed(detector(warmup_steps=30), noisy(60), stall=0.9) == [(50, "stalled")]


def test_stall_does_not_count_at_a_low_learning_rate():
    """Below half the peak small updates are the schedule's doing."""
    assert feed(detector(), noisy(99), stall=0.9, learning_rate=0.49) == []
    assert feed(detector(), noisy(99), stall=0.9, learning_rate=0.5) == [(20, "stalled")]


def test_stall_is_the_mean_over_the_window():
    """Single steps above the threshold do not count."""
    rates = [0.9 if i % 2 else 0.0 for i in range(200)]
    assert feed(detector(), noisy(200), stall=rates) == []


def test_stalled_is_told_once_until_it_clears():
    """A loss that falls again clears it."""
    series = noisy(40) + noisy(40, slope=-0.1) + noisy(40, level=-1.0)
    assert [c for _, c in feed(detector(), series, stall=0.9)] == ["stalled", "stalled"]


def test_what_is_not_finite_enters_no_window():
    """NaN losses neither fill the window nor spoil its mean."""
    series = list(itertools.chain.from_iterable((x, math.nan) for x in noisy(30)))
    assert feed(detector(nan_patience=5), series, stall=0.9) == [(39, "stalled")]


def test_two_standard_errors_by_hand():
    """The halves of the window are compared: improvement against 2 * sqrt(v/n + v/n)."""
    for gap, found in ((1.90, True), (2.10, False)):
        # Each half: ten values of variance 10/9, so two standard errors are 2 * sqrt(2/9).
        half = [1.0, -1.0] * 5
        limit = 2 * math.sqrt(2 * (10 / 9) / 10)
        losses = [5 + x for x in half] + [5 - gap / 2 * limit + x for x in half]
        assert bool(feed(detector(), losses, stall=0.9)) == found
        assert limit == pytest.approx(0.9428, abs=1e-3)


def test_views_are_told_apart_from_stored_weights():
    """The evidence says of which the stall is, and its numbers."""
    watcher = detector()
    found = []
    for i, loss in enumerate(noisy(20)):
        found += watcher.observe(
            i + 1, loss, is_finite=True, learning_rate=1.0, stall=("view", 0.75)
        )
    (evidence,) = found
    assert evidence["stall_of"] == "view"
    assert evidence["rate"] == pytest.approx(0.75)
    assert evidence["window"] == 20
    assert "75.0% of view weight updates stalled" in evidence["reason"]


# -------------------------------------------------------------------------------- state


def test_a_restored_detector_goes_on_as_if_it_never_stopped():
    """At whatever step it is saved, what it finds later is the same."""
    series = [2.0] * 25 + [math.nan] * 4 + noisy(40) + [9.0] * 30
    whole = feed(detector(nan_patience=3), series, stall=0.9)
    assert {c for _, c in whole} == {"nan_patience", "diverged", "stalled"}
    for cut in range(len(series)):
        first = detector(nan_patience=3)
        found = feed(first, series[:cut], stall=0.9)
        second = detector(nan_patience=3)
        second.load_state_dict(first.state_dict())
        found += feed(second, series[cut:], start=cut + 1, stall=0.9)
        assert found == whole


def test_a_new_recipe_is_judged_by_its_own_steps():
    """The stall of the format before counts for nothing: the window fills anew."""
    detector = Detector(TrainConfig(stall_window=4, warmup_steps=0, max_steps=100))

    def see(first, count):
        rate = 1e-3
        return [
            evidence["cause"]
            for step in range(first, first + count)
            for evidence in detector.observe(
                step,
                2.0 + 0.01 * (step % 2),
                is_finite=True,
                learning_rate=rate,
                stall=("stored", 0.9),
            )
        ]

    assert see(1, 6) == ["stalled"]
    detector.start_anew()
    assert see(7, 3) == []
    assert see(10, 3) == ["stalled"]
