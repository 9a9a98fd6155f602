"""The detector, on synthetic series: each cause, once until it clears, and never stall alone."""

import itertools
import json
import math
import random

import pytest

from altcore.config import TrainConfig
from altcore.engine.collapse import FIRST, SMOOTH, Detector


def detector(**keys):
    """A detector that judges quickly, of a run that makes no evaluations."""
    given = {
        "warmup_steps": 0,
        "stall_window": 20,
        "learning_rate": 1.0,
        "max_steps": 10_000,
        "eval_interval": 0,
    }
    return Detector(TrainConfig(**{**given, **keys}))


def feed(watcher, losses, **keys):
    """Feed a series; returns (step, cause) of all collapses that were found."""
    return told(watcher, losses, **keys)[0]


def told(
    watcher,
    losses,
    *,
    start=1,
    stall=None,
    of="stored",
    dead=None,
    learning_rate=1.0,
    finite=None,
    evaluations=(),
):
    """Feed a series and validation losses by step; returns (step, cause) of collapses, warnings."""
    found = [], []
    rates = [stall] * len(losses) if isinstance(stall, float) else stall
    for i, loss in enumerate(losses):
        new = watcher.observe(
            start + i,
            loss,
            is_finite=math.isfinite(loss) if finite is None else finite[i],
            learning_rate=learning_rate,
            stall=None if rates is None else (of, rates[i]),
            dead=None if dead is None else dead[i],
        )  # fmt: skip
        for kept, evidence in zip(found, new, strict=True):
            kept += [(start + i, e["cause"]) for e in evidence]
        if start + i in dict(evaluations):
            watcher.evaluated(start + i, dict(evaluations)[start + i])
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
    assert (found, watcher.nonfinite) == (([], []), 0)


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


def test_a_rollback_leaves_the_losses_of_abandoned_steps_behind():
    """What follows is judged by twenty losses of its own, and a run that goes on so is told again.

    A step in which the state was rolled back is of the state before.
    """
    for level, found in ((1.0, []), (9.0, [(30 + SMOOTH, "diverged")])):
        watcher = detector()
        assert feed(watcher, [1.0] * 25 + [9.0] * 4)[0][1] == "diverged"
        watcher.start_anew()
        watcher.observe(30, 1e9, is_finite=True, is_forgiven=True, learning_rate=1.0)
        assert feed(watcher, [level] * 60, start=31) == found


def test_negative_losses_diverge_upwards():
    """A log-likelihood of a density may be below zero: the ratio is of its size."""
    assert feed(detector(diverged_ratio=1.5), [-2.0] * 30 + [-1.5] * 40) == []
    assert feed(detector(diverged_ratio=1.5), [-2.0] * 30 + [0.0] * 40)[0][1] == "diverged"


# -------------------------------------------------------------------------------- dead


def test_dead_gradients_are_told_once_until_they_live():
    """The count comes from the device; at the window's length it is a collapse."""
    counts = [0, 1, 2, 3, 4, 5, 6, 0, 4, 5]
    watcher = detector(dead_neuron_window=5)
    found = feed(watcher, [1.0] * 10, dead=[{"a.weight": c} for c in counts])
    assert found == [(6, "dead_gradients"), (10, "dead_gradients")]


def test_dead_layers_are_named():
    """Those at the window's length and no others."""
    watcher = detector(dead_neuron_window=5)
    feed(watcher, noisy(4))
    (evidence,), warnings = watcher.observe(
        5, 3.0, is_finite=True, learning_rate=1.0, dead={"b": 5, "a": 9, "c": 4}
    )
    assert warnings == []
    assert evidence["dead_layers"] == ["a", "b"]
    assert "a, b" in evidence["reason"]
    assert "less than two standard errors" in evidence["reason"]


def test_dead_gradients_are_no_collapse_while_the_loss_falls():
    """One warning that names them; what a run learns without is not what holds it up later."""
    watcher = detector(dead_neuron_window=20)
    falling, flat = noisy(60, slope=-0.04), noisy(200, level=0.6, seed=1)
    dead = [{"norm.bias": i, "alive": 0} for i in range(1, 61)]
    assert told(watcher, falling, dead=dead) == ([], [(20, "dead_gradients")])
    still = [{"norm.bias": i, "alive": 0} for i in range(61, 261)]
    assert told(watcher, flat, start=61, dead=still) == ([], [])
    # Another one that dies while the loss stands still is a cause, and named alone.
    found, _ = watcher.observe(
        261, 0.6, is_finite=True, learning_rate=1.0, dead={"norm.bias": 261, "other": 20}
    )
    assert [e["dead_layers"] for e in found] == [["other"]]


def test_a_gradient_that_lives_and_dies_again_is_judged_anew():
    """It was harmless when it was dead before: now the loss stands still."""
    watcher = detector(dead_neuron_window=20)
    assert told(watcher, noisy(20, slope=-0.1), dead=[{}] * 19 + [{"a": 20}])[0] == []
    found = told(watcher, noisy(40, level=1.0), start=21, dead=[{}] * 39 + [{"a": 20}])
    assert found == ([(60, "dead_gradients")], [])


def test_dead_gradients_wait_for_validation():
    """Where it is measured, a noisy training loss says too little."""
    dead = [{"a": i} for i in range(1, 101)]
    still = {30: 2.0, 60: 2.1, 90: 2.0}
    keys = {"dead_neuron_window": 20, "eval_interval": 30}
    found = told(detector(**keys), noisy(100), dead=dead, evaluations=still)
    assert found == ([(61, "dead_gradients")], [(20, "dead_gradients")])
    better = {30: 2.0, 60: 1.9, 90: 1.8}
    found = told(detector(**keys), noisy(100), dead=dead, evaluations=better)
    assert found == ([], [(20, "dead_gradients")])


def test_dead_gradients_are_not_judged_in_warm_up():
    """Where the learning rate begins at nothing the loss stands still; they are warned of."""
    dead = [{"a": i} for i in range(1, 61)]
    found = told(detector(dead_neuron_window=20, warmup_steps=30), noisy(60), dead=dead)
    assert found == ([(50, "dead_gradients")], [(20, "dead_gradients")])


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


def test_a_stall_of_views_is_a_warning_and_told_once():
    """However often the training loss falls and stands still: nothing is lost."""
    series = noisy(40) + noisy(40, slope=-0.1) + noisy(40, level=-1.0)
    assert told(detector(), series, stall=0.9, of="view") == ([], [(20, "stalled")])


def test_a_loss_that_does_not_move_at_all_stands_still():
    """A batch that is always the same, and weights that are: there is no noise to compare with."""
    assert feed(detector(), [2.0] * 30, stall=1.0) == [(20, "stalled")]


def test_evidence_says_whose_stall_it_is():
    """And its numbers, in a warning as in a collapse."""
    for of, is_collapse in (("stored", True), ("view", False)):
        watcher = detector()
        collapses, warnings = [], []
        for i, loss in enumerate(noisy(20)):
            new = watcher.observe(i + 1, loss, is_finite=True, learning_rate=1.0, stall=(of, 0.75))
            collapses += new[0]
            warnings += new[1]
        assert (len(collapses), len(warnings)) == (is_collapse, not is_collapse)
        (evidence,) = collapses + warnings
        assert evidence["stall_of"] == of
        assert evidence["rate"] == pytest.approx(0.75)
        assert evidence["window"] == 20
        assert f"75.0% of {of} weight updates stalled" in evidence["reason"]
        assert "it was judged without validation" in evidence["reason"]
        assert (evidence["val_loss_before"], evidence["val_loss_since"]) == (None, None)


# ------------------------------------------------------------------- stalled, and validation


def test_a_stall_is_no_collapse_while_validation_improves():
    """Single batches are too noisy to show it: the run learns, and is only warned."""
    better = {i: 3.0 - i / 1000 for i in range(10, 300, 10)}
    found = told(detector(eval_interval=10), noisy(300), stall=0.9, evaluations=better)
    assert found == ([], [(20, "stalled")])


@pytest.mark.parametrize("worse", [0.0, 0.01, -0.0001])
def test_a_stall_is_a_collapse_where_validation_stands_still_too(worse):
    """Or becomes worse, or improves by less than rounding would."""
    still = {i: 3.0 + worse * i / 10 for i in range(10, 300, 10)}
    found = told(detector(eval_interval=10), noisy(300), stall=0.9, evaluations=still)
    # The window began at step 2: the evaluation of step 10 says how, that of 20 how it went on.
    # By chance the training loss of some windows later improves: that does not end it.
    assert found == ([(21, "stalled")], [(20, "stalled")])


def test_a_stall_waits_for_validation():
    """Until an evaluation fell into the window, and one before it, it is a warning."""
    evaluations = {50: 3.0, 100: 3.0, 150: 3.0}
    found = told(detector(eval_interval=50), noisy(160), stall=0.9, evaluations=evaluations)
    assert found == ([(101, "stalled")], [(20, "stalled")])
    # The window that has no evaluation ends nothing that was told.
    watcher = detector(eval_interval=50)
    texts = []
    for step, loss in enumerate(noisy(160), start=1):
        new = watcher.observe(step, loss, is_finite=True, learning_rate=1.0, stall=("stored", 0.9))
        texts += [e["reason"] for kind in new for e in kind]
        if step in evaluations:
            watcher.evaluated(step, evaluations[step])
    assert "validation has not been measured yet" in texts[0]
    assert "the best validation loss was 3 before and 3 since" in texts[1]


def test_the_best_validation_loss_counts():
    """A single bad evaluation before the window does not make the next one an improvement."""
    evaluations = {40: 2.0, 80: 2.5, 120: 2.2}
    found = feed(detector(eval_interval=40), noisy(130), stall=0.9, evaluations=evaluations)
    assert found == [(81, "stalled")]
    evaluations = {40: 2.5, 80: 2.4, 120: 2.45}
    found = feed(detector(eval_interval=40), noisy(130), stall=0.9, evaluations=evaluations)
    assert found == [(121, "stalled")]


def test_a_validation_loss_that_is_not_finite_is_no_improvement():
    """Neither before the window nor in it."""
    for evaluations in ({40: 2.0, 80: math.nan}, {40: 2.0, 60: math.nan, 80: 2.0}):
        found = feed(detector(eval_interval=20), noisy(100), stall=0.9, evaluations=evaluations)
        assert [c for _, c in found] == ["stalled"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_validation_is_judged_by_what_is_monitored(mode):
    """A run whose accuracy rises learns; one whose accuracy falls does not."""
    rising = {i: i / 1000 for i in range(10, 300, 10)}
    keys = {"eval_interval": 10, "monitor": "val_accuracy", "monitor_mode": mode}
    watcher = detector(**keys)
    found = told(watcher, noisy(300), stall=0.9, evaluations=rising)
    collapses = [] if mode == "max" else [(21, "stalled")]
    assert found == (collapses, [(20, "stalled")])
    # Of those up to step 191, where the window of the last evaluation began, the best is kept.
    assert watcher.evaluations[0] == {"max": (190, 0.19), "min": (10, 0.01)}[mode]


def test_a_monitored_value_that_is_not_finite_is_the_worst():
    """In either direction, and a reason names what was monitored."""
    watcher = detector(eval_interval=20, monitor="val_accuracy", monitor_mode="max")
    reasons, still = [], {40: 0.5, 60: math.nan, 80: 0.5}
    for step, loss in enumerate(noisy(100), start=1):
        new = watcher.observe(step, loss, is_finite=True, learning_rate=1.0, stall=("stored", 0.9))
        reasons += new[0]
        if step in still:
            watcher.evaluated(step, still[step])
    (evidence,) = reasons
    assert (evidence["val_accuracy_before"], evidence["val_accuracy_since"]) == (0.5, -math.inf)
    assert "the best val_accuracy was 0.5 before and -inf since" in evidence["reason"]


def test_few_evaluations_are_kept():
    """Of those before every window the best only, so that a checkpoint stays small."""
    watcher = detector(eval_interval=1, dead_neuron_window=20)
    feed(watcher, noisy(500), stall=0.9, evaluations={i: 2 + i / 500 for i in range(1, 500)})
    assert len(watcher.evaluations) < 25
    assert watcher.evaluations[0] == (1, 2 + 1 / 500)


# -------------------------------------------------------------------------------- state


def test_a_restored_detector_goes_on_as_if_it_never_stopped():
    """At whatever step it is saved, what it finds later is the same."""
    series = [2.0] * 25 + [math.nan] * 4 + noisy(40) + [9.0] * 30
    keys = {"nan_patience": 3, "eval_interval": 10, "dead_neuron_window": 8}
    evaluations = dict.fromkeys(range(10, 100, 10), 2.0)
    dead = [{"a": max(0, i - 30)} for i in range(len(series))]

    def both(watcher, part):
        given = {"start": part.start + 1, "dead": dead[part], "evaluations": evaluations}
        return told(watcher, series[part], stall=0.9, **given)

    whole = both(detector(**keys), slice(0, len(series)))
    assert {c for _, c in whole[0]} == {"nan_patience", "diverged", "stalled", "dead_gradients"}
    assert {c for _, c in whole[1]} == {"stalled", "dead_gradients"}
    for cut in range(len(series)):
        first, second = detector(**keys), detector(**keys)
        found = both(first, slice(0, cut))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        rest = both(second, slice(cut, len(series)))
        assert (found[0] + rest[0], found[1] + rest[1]) == whole


def test_a_new_recipe_is_judged_by_its_own_steps():
    """The stall of the format before counts for nothing: the window fills anew."""
    for of, kind in (("stored", 0), ("view", 1)):
        watcher = detector(stall_window=4)

        def see(first, count, watcher=watcher, of=of, kind=kind):
            losses = [2.0 + 0.01 * (step % 2) for step in range(first, first + count)]
            found = told(watcher, losses, start=first, stall=0.9, of=of)
            return [cause for _, cause in found[kind]]

        assert see(1, 6) == ["stalled"]
        watcher.start_anew()
        assert see(7, 3) == []
        assert see(10, 3) == ["stalled"]
