"""Schedules, by their formulas and by torch's; and intervals that are no whole number of steps."""

import math
from fractions import Fraction

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from altcore.config import TrainConfig
from altcore.engine.schedule import is_due, learning_rate

PEAK, LOW, WARMUP, LAST = 0.5, 0.05, 10, 60


def rates(schedule, last=LAST, **keys):
    """Return the learning rate of each step."""
    given = {"learning_rate": PEAK, "min_lr_ratio": 0.1, "warmup_steps": WARMUP, **keys}
    config = TrainConfig(schedule=schedule, max_steps=last, **given)
    return [learning_rate(config, step) for step in range(1, last + 1)]


def torchs(periods, count, every=1):
    """Return the rates of torch's half cosine to LOW, changed after ``every`` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    schedule = CosineAnnealingLR(optimizer, T_max=periods, eta_min=LOW)
    found = []
    for step in range(1, count + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % every == 0:
            schedule.step()
    return found


@pytest.mark.parametrize("schedule", ["cosine", "constant", "linear", "wsd"])
def test_the_warm_up_rises_to_the_peak(schedule):
    """In equal steps, the peak being the one after the last."""
    expected = [PEAK * step / (WARMUP + 1) for step in range(1, WARMUP + 1)]
    assert rates(schedule)[:WARMUP] == pytest.approx(expected, rel=1e-15)


def test_each_schedule_follows_its_formula_after_the_warm_up():
    """As docs/configuration.md has them."""
    share = [i / (LAST - WARMUP) for i in range(1, LAST - WARMUP + 1)]
    cosine = [LOW + (PEAK - LOW) * (1 + math.cos(math.pi * t)) / 2 for t in share]
    assert rates("cosine")[WARMUP:] == pytest.approx(cosine)
    assert rates("constant")[WARMUP:] == [PEAK] * (LAST - WARMUP)
    linear = [LOW + (PEAK - LOW) * (1 - t) for t in share]
    assert rates("linear")[WARMUP:] == pytest.approx(linear)


@pytest.mark.parametrize(("part", "start"), [(0.2, 48), (0.5, 30), (1.0, WARMUP)])
def test_wsd_stays_at_the_peak_and_falls_in_a_line(part, start):
    """Over its share of the steps, and never before the warm-up is over."""
    found = rates("wsd", decay_share=part)
    assert found[WARMUP:start] == [PEAK] * (start - WARMUP)
    falling = [LOW + (PEAK - LOW) * (LAST - s) / (LAST - start) for s in range(start + 1, LAST + 1)]
    assert found[start:] == pytest.approx(falling)


def test_wsd_without_a_decay_is_constant():
    assert rates("wsd", decay_share=0.0) == rates("constant")


def test_cosine_full_is_torchs_over_all_steps():
    """Step for step; with warm-up, times its factor."""
    assert rates("cosine-full", warmup_steps=0) == pytest.approx(torchs(LAST, LAST))
    factors = [min(1, step / (WARMUP + 1)) for step in range(1, LAST + 1)]
    expected = [f * rate for f, rate in zip(factors, torchs(LAST, LAST), strict=True)]
    assert rates("cosine-full") == pytest.approx(expected)


def test_cosine_full_begins_each_epoch_as_torchs_over_epochs():
    """With T_max = epochs, of 12 steps each."""
    found = rates("cosine-full", warmup_steps=0)
    assert found[::12] == pytest.approx(torchs(5, LAST, every=12)[::12])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_a_schedule_ends_at_its_lowest_rate(schedule):
    assert rates(schedule)[-1] == pytest.approx(LOW)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "linear", "wsd", "cosine-full"])
def test_a_run_that_is_all_warm_up_has_a_rate(schedule):
    """Also a resumed one that goes on beyond."""
    assert all(0 < rate <= PEAK for rate in rates(schedule, last=5))


# ---------------------------------------------------------------------------------- intervals


def due(interval, last):
    """Return the steps on which an interval falls."""
    return [step for step in range(1, last + 1) if is_due(interval, step)]


def test_whole_intervals_fall_on_their_multiples():
    """Given as a fraction, too; 0 is never."""
    assert due(3, 10) == due(Fraction(3), 10) == [3, 6, 9]
    assert due(1, 4) == due(Fraction(1), 4) == [1, 2, 3, 4]
    assert due(0, 10) == []


def test_quarters_of_391_steps_are_the_nearest_steps():
    """Four in each epoch, the last one at its end."""
    found = due(Fraction(391, 4), 2 * 391)
    assert found == [98, 196, 293, 391, 489, 587, 684, 782]


@pytest.mark.parametrize("interval", [Fraction(7, 3), Fraction(3, 2), Fraction(391, 390)])
def test_an_interval_falls_once_on_the_step_nearest_to_each_multiple(interval):
    """As often as it fits, and never half a step away or more."""
    found = due(interval, 400)
    multiples = [k * interval for k in range(1, 401) if k * interval < 400 + Fraction(1, 2)]
    assert len(found) == len(multiples)
    gaps = [step - x for step, x in zip(found, multiples, strict=True)]
    assert all(-Fraction(1, 2) < gap <= Fraction(1, 2) for gap in gaps)
