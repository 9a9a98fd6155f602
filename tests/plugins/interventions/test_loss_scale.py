"""The intervention ``loss-scale``: its schedule, where it helps, and where it cannot."""

import json
from types import SimpleNamespace

import attrs
import pytest
from helpers import events, weights_sha256
from planted import check_resumes_alike, last_loss, plant, unscaled

import altcore
from altcore.engine import Step
from altcore.hooks import NonFinite, build
from altcore.recipes import Layer, read_recipe
from altcore_interventions.loss_scale import LossScale
from altcore_interventions.nonfinite import is_lost_gradient

LOST = NonFinite("gradient", "a.weight", value=float("inf"))


def steps(plugin, outcomes):
    """Take steps, ``x`` for an overflow and ``.`` for none; returns the scale of each."""
    scales = []
    for index, outcome in enumerate(outcomes, start=1):
        step = Step(index)
        plugin.pre_backward(step)
        scales.append(step.loss_scale)
        if outcome == "x":
            plugin.on_nan(step, LOST)
    return scales


def made(**settings):
    return build(LossScale, settings, "loss-scale")


def test_grows_after_enough_good_steps_in_a_row():
    """Three good steps double it, an overflow halves it and starts the count anew."""
    plugin = made(initial=8.0, growth_interval=3)
    assert steps(plugin, "....xx...") == [8, 8, 8, 16, 16, 8, 4, 4, 4]


def test_neither_passes_the_largest_nor_falls_below_one():
    """It stays in its range, and what is not finite at a scale of 1 is not its business."""
    assert steps(made(initial=8.0, growth_interval=1, largest=16.0), "...") == [8, 16, 16]
    plugin = made(initial=2.0, backoff=0.25)
    assert steps(plugin, "xx") == [2, 1]
    assert plugin.on_nan(Step(3), LOST) is None


def test_is_the_same_for_every_micro_batch():
    """It is set once a step, however many micro-batches there are."""
    plugin = made(growth_interval=1)
    for micro in range(3):
        step = Step(1, micro=micro, loss_scale=5.0)
        plugin.pre_backward(step)
        assert step.loss_scale == (65536.0 if micro == 0 else 5.0)


def test_proposes_a_skip_that_does_not_count():
    """And says what it did."""
    plugin = made(initial=16.0)
    plugin.pre_backward(Step(1))
    action = plugin.on_nan(Step(1), LOST)
    assert (type(action), action.counts) == (altcore.SkipStep, False)
    assert "at a loss scale of 16, which is lowered to 8" in action.reason


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (NonFinite("gradient", "a"), True),
        (NonFinite("quantizer", "a", "gradient@wgrad"), True),
        (NonFinite("quantizer", "a", "weight_gradient"), True),
        (NonFinite("quantizer", "a", "activation@fwd"), False),
        (NonFinite("quantizer"), False),
        (NonFinite("loss", "a", "weight@fwd"), False),
        (NonFinite("final gradient", "a"), False),
    ],
)
def test_an_overflow_is_a_gradient_lost_under_a_finite_loss(where, expected):
    """A loss that is not finite, or a clipper that breaks gradients, is no reason to scale less."""
    assert is_lost_gradient(where) is expected
    plugin = made()
    plugin.pre_backward(Step(1))
    assert (plugin.on_nan(Step(1), where) is not None) is expected
    assert plugin.scale == (32768 if expected else 65536)


def told(recipe):
    """What the run is told at its start."""
    messages = []
    plan = read_recipe(recipe).resolve([Layer("a", "linear"), Layer("b", "linear")])
    made().run_start(
        SimpleNamespace(
            quantization=SimpleNamespace(plan=plan),
            emit=lambda event, message: messages.append(message),
        )
    )
    return messages


def test_says_once_where_it_has_no_effect():
    """Roles whose scale follows the tensor are named; others, and other roles, are not."""
    (message,) = told({"weight": "E4M3", "gradient": "E5M2", "weight_gradient": "E4M3"})
    assert "no effect on what is rounded as gradient and weight_gradient" in message
    by_tensor = {"gradient": "E5M2", "weight_gradient": unscaled("E5M2", overflow="inf")}
    (message,) = told(by_tensor)
    assert "no effect on what is rounded as gradient:" in message
    assert told({"weight": "E4M3"}) == []


def test_says_where_it_cannot_see_overflow():
    """A saturated gradient is finite: the scale would only grow."""
    (message,) = told({"gradient": unscaled("E4M3")})
    assert "what overflows as gradient saturates" in message


def test_changes_no_bit_where_the_scale_follows_the_tensor(start):
    """Powers of two go in and come out again: weights, embeddings and head are the same."""
    runs = [start(plugins, format="E4M3", max_steps=4) for plugins in ((), ["loss-scale"])]
    assert weights_sha256(runs[0].run_directory) == weights_sha256(runs[1].run_directory)
    (warning,) = events(runs[1].run_directory, "warning")
    assert "no effect" in warning["message"]


@pytest.mark.parametrize("name", ["E4M3", "E3M4"])
def test_a_run_survives_gradients_too_small_for_the_format(shelf, start, name):
    """All gradients are flushed to zero and nothing is learned; scaled, they are not."""
    plant(shelf, "regression")
    keys = {
        "workload": "regression",
        "regression.loss_factor": 1e-3,
        "recipe": {"weight_gradient": unscaled(name)},
        "max_steps": 110,
    }
    lost = start(**keys)
    assert "the gradient of 0.weight, 2.weight, 4.weight was below" in lost.failure_reason
    assert last_loss(lost) > 9e-4  # 9.8e-4, from 8.7e-4
    saved = start(["loss-scale"], **keys)
    assert saved.failure_reason is None
    assert last_loss(saved) < 1e-4  # 3.1e-5 after 150 steps


@attrs.define(eq=False)
class FixedScale:
    """A loss scale that nobody lowers."""

    @altcore.hookimpl
    def pre_backward(self, step):
        step.loss_scale = 2.0**40


def test_overflow_counts_towards_no_patience(shelf, start):
    """From far too high it comes down past more overflows than the run's patience is."""
    shelf.install("intervention", "fixed-scale", FixedScale)
    keys = {
        "recipe": {"gradient": unscaled("E5M2", overflow="inf")},
        "nan_patience": 3,
        "max_steps": 60,
    }
    assert start(["fixed-scale"], **keys).steps_completed == 3
    high = {"loss-scale.initial": 2.0**40, "loss-scale.largest": 2.0**40}
    saved = start(["loss-scale"], **keys, **high)
    assert (saved.status, saved.failure_reason) == ("finished", None)
    assert last_loss(saved) < 3.0  # 2.75, from 5.55
    lost = [e["step"] for e in events(saved.run_directory, "nan")]
    assert lost == list(range(1, len(lost) + 1))
    assert len(lost) > 3


def test_resumes_alike(shelf, start):
    """Scale and counts are part of the state."""
    keys = {
        "recipe": {"gradient": unscaled("E5M2", overflow="inf")},
        "loss-scale.initial": 2.0**34,
        "loss-scale.largest": 2.0**40,
        "loss-scale.growth_interval": 3,
    }
    check_resumes_alike(shelf, start, ["loss-scale"], **keys)


def test_state_survives_a_checkpoint():
    """It is plain data."""
    plugin, other = made(initial=8.0, growth_interval=4), made(initial=64.0, growth_interval=4)
    steps(plugin, "x...")
    other.load_state_dict(json.loads(json.dumps(plugin.state_dict())))
    step = Step(5)
    other.pre_backward(step)
    assert (step.loss_scale, other.good) == (4, 3)
    step = Step(6)
    other.pre_backward(step)
    assert step.loss_scale == 8


@pytest.mark.parametrize(
    "settings", [{"initial": 0.5}, {"growth": 1.0}, {"backoff": 1.0}, {"growth_interval": 0}]
)
def test_impossible_settings_are_refused(settings):
    """By name."""
    with pytest.raises(altcore.BadInput, match=f"loss-scale.{next(iter(settings))}"):
        made(**settings)
