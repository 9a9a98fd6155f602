"""The intervention ``partition-clip``: its threshold, and when it applies."""

from types import SimpleNamespace

import pytest
import torch
from helpers import events
from helpers_diagnostics import NoHostRead
from planted import check_resumes_alike, last_loss, plant, unscaled
from torch import nn

import altcore
from altcore.hooks import build
from altcore.recipes import change
from altcore_interventions.partition_clip import PartitionClip

UNSCALED = {"weight@fwd": unscaled("E5M2")}
DELAYED = {"weight@fwd": {"format": "E5M2", "scaling": "delayed"}}


class Bench:
    """Mode original. Two layers of four weights; what happens to gradients put there."""

    def __init__(self, layers, **settings):
        self.model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))
        self.quantization = altcore.quantize_model(self.model, {"layers": layers})
        self.events = []
        self.plugin = build(PartitionClip, {"mode": "original"} | settings, "partition-clip")
        self.run = SimpleNamespace(
            model=self.model,
            quantization=self.quantization,
            emit=lambda event, **data: self.events.append((event, data)),
        )

    def clip(self, weights, gradient):
        """Run a step forward with the first layer's weights; returns both layers' gradients."""
        with torch.no_grad():
            self.model[0].weight.copy_(torch.tensor([weights]))
        self.quantization.begin_step(1)
        self.model(torch.ones(1, 4))
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.model[0].weight.grad = torch.tensor([gradient])
        self.model[1].weight.grad = torch.tensor([gradient]).T.clone()
        self.model[0].bias.grad = torch.tensor([100.0])
        with NoHostRead():
            assert self.plugin.pre_step(self.run) is None
        first, second = (self.model[i].weight.grad.flatten().tolist() for i in (0, 1))
        return first, second


GRADIENT = [3.0, -2.0, 0.5, 0.0]
FITS = [1.0, 2.0, 3.0, 57344.0]
OVERFLOWS = [1.0, 2.0, 3.0, 1e6]


def test_clamps_at_base_where_a_layer_in_e5m2_overflows():
    """E5M2's largest value is 57344: its threshold is the base itself, on both sides."""
    bench = Bench({"0": UNSCALED})
    first, second = bench.clip(OVERFLOWS, GRADIENT)
    assert first == [1.0, -1.0, 0.5, 0.0]
    assert second == GRADIENT, "the other layer is not quantized"
    assert bench.model[0].bias.grad.item() == 100.0, "a bias is not a quantized weight"


def test_changes_nothing_without_overflow():
    """The largest value itself is on the grid: nothing overflowed, nothing is clipped."""
    assert Bench({"0": UNSCALED}).clip(FITS, GRADIENT)[0] == GRADIENT


def test_each_layer_is_judged_by_its_own_overflow():
    """Both layers may overflow and the first one does: the second keeps its gradient."""
    bench = Bench({"*": UNSCALED})
    first, second = bench.clip(OVERFLOWS, GRADIENT)
    assert first == [1.0, -1.0, 0.5, 0.0]
    assert second == GRADIENT


def test_clamps_under_delayed_scaling_while_the_history_is_too_small():
    """A weight that outgrew the last largest one overflows once; then the scale has followed."""
    bench = Bench({"0": DELAYED})
    assert bench.clip(FITS, GRADIENT)[0] == GRADIENT
    assert bench.clip(OVERFLOWS, GRADIENT)[0] == [1.0, -1.0, 0.5, 0.0]
    assert bench.clip(OVERFLOWS, GRADIENT)[0] == GRADIENT


@pytest.mark.parametrize(("rate", "is_clipped"), [(0.24, True), (0.25, False)])
def test_applies_above_the_overflow_rate(rate, is_clipped):
    """One weight of four overflows: a rate of 0.25 must be exceeded, not met."""
    first, _ = Bench({"0": UNSCALED}, overflow_rate=rate).clip(OVERFLOWS, GRADIENT)
    assert (first != GRADIENT) is is_clipped


@pytest.mark.parametrize(
    ("name", "largest", "base"),
    [("E3M4", 31.0, 1000.0), ("E4M3", 448.0, 100.0), ("E0M7", 127 / 128, 1e4)],
)
def test_the_threshold_follows_the_format(name, largest, base):
    """It is base × max / 57344, with the format's own max."""
    recipe = {"weight@fwd": {"format": name, "scaling": "none"}}
    first, _ = Bench({"0": recipe}, base=base).clip(OVERFLOWS, GRADIENT)
    threshold = base * largest / 57344
    assert first == pytest.approx([threshold, -threshold, min(0.5, threshold), 0.0])


def test_the_threshold_follows_a_shift():
    """After a change of recipe the layer's present format counts."""
    bench = Bench({"0": UNSCALED}, base=1000.0)
    assert bench.clip(OVERFLOWS, GRADIENT)[0] == GRADIENT, "1000 is above every gradient"
    plan = change(bench.quantization.plan, ["*"], [], format=altcore.get_format("E3M4"))
    bench.quantization.change(plan)
    first, _ = bench.clip(OVERFLOWS, GRADIENT)
    assert first[0] == pytest.approx(1000 * 31 / 57344)


def test_nothing_overflows_under_amax_scaling():
    """A weight far off the others only sets the scale: nothing to clip, and the run is told so."""
    bench = Bench({"0": {"weight@fwd": "E5M2"}}, base=1e-9)
    bench.plugin.run_start(bench.run)
    assert bench.clip(OVERFLOWS, GRADIENT)[0] == GRADIENT
    ((event, data),) = bench.events
    assert event == "warning"
    assert "nothing can overflow" in data["message"]


def test_says_so_where_nothing_is_quantized():
    """Without a quantizer it changes nothing either, for another reason."""
    bench = Bench({})
    bench.plugin.run_start(bench.run)
    assert "quantizes no product" in bench.events[0][1]["message"]


def test_is_silent_where_it_may_act():
    """One scale that does not follow the tensor is enough."""
    bench = Bench({"0": UNSCALED, "1": {"weight@fwd": "E5M2"}})
    bench.plugin.run_start(bench.run)
    assert bench.events == []


def test_nan_stays_nan():
    """Clipping hides no NaN from the engine, which looks at the gradients again afterwards."""
    first, _ = Bench({"0": UNSCALED}).clip(OVERFLOWS, [float("nan"), 2.0, 0.0, 0.0])
    assert first[0] != first[0]
    assert first[1] == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"base": 0.0},
        {"overflow_rate": 1.5},
        {"mode": "norm"},
        {"limit": 1.0},
        {"flushed_share": 1.0},
        {"shares": {"activations": 0.5}},
        {"shares": {"activation": 1.5}},
        {"quantile": 1.0},
        {"check_interval": 1},
    ],
)
def test_impossible_settings_are_refused(settings):
    """A mistyped or impossible setting stops the run before it starts, naming the plugin."""
    with pytest.raises(altcore.BadInput, match="partition-clip"):
        build(PartitionClip, settings, "partition-clip")


@pytest.mark.parametrize("scaling", ["none", "delayed"])
def test_a_run_survives_a_glitch_where_something_can_overflow(shelf, start, scaling):
    """One batch a million times too large throws SGD off for good; clamped, it goes on."""
    plant(shelf, "regression")
    keys = {
        "workload": "regression",
        "regression.glitch": 40,
        "recipe": {"activation": {"format": "E4M3", "scaling": scaling}},
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "grad_clip": 0,
        "max_steps": 80,
    }
    lost = start(**keys)
    assert lost.status == "collapsed" or last_loss(lost) > 1e6
    saved = start(["partition-clip"], **keys, **{"partition-clip.mode": "original"})
    assert saved.status == "finished"
    assert last_loss(saved) < 0.5  # from 0.87


def test_original_in_a_run_under_amax_scaling(start):
    """It is the run without it, and its record says why."""
    keys = {"format": "E5M2", "max_steps": 3, "partition-clip.mode": "original"}
    plain = start(format="E5M2", max_steps=3)
    clipped = start(["partition-clip"], **keys)
    untouched = [
        {**line, "grad_norm_after_plugins": line["grad_norm"]} for line in plain.metrics_history
    ]
    assert clipped.metrics_history == untouched
    (warning,) = events(clipped.run_directory, "warning")
    assert "partition-clip will change nothing" in warning["message"]


# ------------------------------------------------------------------------- mode scaled


class Scaled:
    """Mode scaled. Layers with four inputs, fed with what flushes as much as is said."""

    def __init__(self, recipe, **settings):
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        self.quantization = altcore.quantize_model(self.model, recipe)
        self.plugin = build(PartitionClip, settings, "partition-clip")
        self.messages = []
        self.run = SimpleNamespace(
            model=self.model,
            quantization=self.quantization,
            emit=lambda event, message: self.messages.append(message),
        )

    def measured(self):
        """What is measured of a forward and backward pass with one outlier in the input."""
        self.quantization.begin_step(1)
        x = torch.tensor([[1.0, 1.0, 1.0, 1e6]])
        self.model[0](x).sum().backward()
        with NoHostRead():
            measures = self.plugin.post_backward(self.run)
        return {key: float(value) for key, value in measures.items()}

    def propose(self, shares):
        """Tell what was recorded; returns what is proposed."""
        line = {f"partition-clip/flushed_{k}": v for k, v in shares.items()}
        self.plugin.on_record({"step": 1, **line})
        with NoHostRead():
            return self.plugin.pre_step(self.run)


def test_measures_what_was_flushed():
    """Three of four inputs are nothing beside the outlier; weights are not flushed."""
    bench = Scaled({"activation": "E0M7", "weight": "E4M3"})
    found = bench.measured()
    assert found["flushed_activation@fwd/0"] == 0.75
    assert found["flushed_weight@fwd/0"] == 0
    assert found["flushed_activation@fwd/1"] == 0, "was not called"
    assert "flushed_activation@wgrad/0" not in found, "one rounding serves both"


def test_gives_a_tensor_a_quantile():
    """Of that layer, for all operands that share the rounding, with the scaling as it was."""
    delayed = {"kind": "delayed", "history": 4}
    bench = Scaled({"activation": {"format": "E0M7", "scaling": delayed}, "weight": "E4M3"})
    action = bench.propose({"activation@fwd/1": 0.4, "activation@fwd/0": 0.1, "weight@fwd/1": 0.0})
    assert (action.layers, action.roles) == (("1",), ("activation@fwd", "activation@wgrad"))
    assert (action.format, action.rounding) == ("keep", "keep")
    s = action.scaling
    assert (s.kind, s.history, s.quantile) == ("delayed", 4, 0.9999)
    assert "40.0% of activation@fwd of 1 was flushed to zero" in action.reason
    plan = change(bench.quantization.plan, action.layers, action.roles, scaling=s)
    bench.quantization.change(plan)
    assert bench.propose({"activation@fwd/1": 0.9}) is None, "there it has acted"


def test_one_role_at_a_time_that_of_most_layers():
    """What is left is measured again."""
    bench = Scaled({"activation": "E0M7", "weight": {"format": "E4M3", "scaling": "channel"}})
    shares = {"weight@fwd/0": 0.5, "activation@fwd/0": 0.2, "activation@fwd/1": 0.3}
    action = bench.propose(shares)
    assert (action.layers, action.roles[0]) == (("0", "1"), "activation@fwd")
    assert "30.0% of activation@fwd of 1" in action.reason
    assert bench.propose({}) is None, "nothing new was measured"
    action = bench.propose({"weight@fwd/0": 0.5})
    assert action.roles == ("weight@fwd",), "along channels each operand is rounded for itself"
    assert action.scaling.kind == "channel"


@pytest.mark.parametrize("event", ["recipe", "rollback"])
def test_shares_of_another_recipe_or_of_undone_steps_tell_nothing(event):
    """Nor does a line of such a step that comes later."""
    bench = Scaled({"activation": "E0M7"})
    line = {"partition-clip/flushed_activation@fwd/0": 0.9}
    bench.plugin.on_record({"step": 5, **line})
    bench.plugin.on_event({"event": event, "step": 7, "plugin": "another"})
    assert bench.plugin.pre_step(bench.run) is None
    again = build(PartitionClip, {}, "partition-clip")
    again.load_state_dict(bench.plugin.state_dict())
    bench.plugin = again
    bench.plugin.on_record({"step": 7, **line})
    assert bench.plugin.pre_step(bench.run) is None
    bench.plugin.on_record({"step": 10, **line})
    assert bench.plugin.pre_step(bench.run) is not None


def test_thresholds_by_role_and_operand():
    """The narrower name wins."""
    shares = {"activation": 0.5, "gradient@wgrad": 0.9}
    plugin = build(PartitionClip, {"flushed_share": 0.2, "shares": shares}, "partition-clip")
    names = ("activation@fwd", "gradient@dgrad", "gradient@wgrad", "weight@fwd")
    assert [plugin.threshold(name) for name in names] == [0.5, 0.2, 0.9, 0.2]


@pytest.mark.parametrize(
    "cast",
    [
        unscaled("E4M3"),
        "MXFP8-E4M3",
        {"format": "E4M3", "scaling": "rms"},
        {"format": "E4M3", "scaling": {"kind": "tensor", "quantile": 0.99}},
    ],
)
def test_leaves_alone_what_knows_no_quantile(cast):
    """Or has one already; the run is told where that is all there is."""
    bench = Scaled({"activation": cast})
    bench.plugin.run_start(bench.run)
    assert bench.messages == [
        "partition-clip will change nothing: no scale follows its tensor's largest magnitude"
    ]
    bench.plugin.on_event({"event": "recipe", "step": 1})
    bench.plugin.run_start(bench.run)
    assert len(bench.messages) == 1, "a run that goes on, which its own changes brought there"
    assert bench.measured() == {}
    assert bench.propose({"activation@fwd/0": 1.0}) is None


def test_leaves_alone_products_of_stored_weights():
    """They are not rounded again, so that there is nothing to measure."""
    bench = Scaled({"stored_weight": "E0M7", "weight": "E0M7", "activation": "E0M7"})
    assert set(bench.measured()) == {f"flushed_activation@fwd/{i}" for i in range(3)}


@pytest.mark.parametrize("name", ["E0M7", "E3M4"])
def test_a_run_survives_outliers(shelf, start, name):
    """One input in 16,384 is 100,000: all others are flushed and nothing is learned."""
    plant(shelf, "regression")
    keys = {
        "workload": "regression",
        "regression.batch": 1024,
        "regression.outlier": 1e5,
        "recipe": {"activation": name},
        "max_steps": 120,
    }
    lost = start(**keys)
    assert last_loss(lost) > 0.9  # 0.98, from 0.96
    saved = start(["partition-clip"], **keys)
    assert last_loss(saved) < 0.1  # 0.022 after 150 steps
    (event,) = events(saved.run_directory, "recipe")
    assert event["step"] == 20
    assert event["change"]["layers"] == ["0"]
    assert event["change"]["scaling"]["quantile"] == 0.9999
    assert saved.diagnostics_history[0]["partition-clip/flushed_activation@fwd/0"] > 0.99


def test_resumes_alike_and_whatever_is_saved_or_evaluated(shelf, start):
    """When it acts does not hang on when lines are written: a checkpoint flushes them."""
    plant(shelf, "regression")
    keys = {
        "workload": "regression",
        "regression.outlier": 1e5,
        "recipe": {"activation": "E0M7", "weight": "E0M7"},
        "partition-clip.check_interval": 2,
        "partition-clip.quantile": 0.99,
        "partition-clip.flushed_share": 0.005,
    }
    whole = check_resumes_alike(shelf, start, ["partition-clip"], **keys)
    steps = [e["step"] for e in events(whole.run_directory, "recipe")]
    assert len(steps) > 1
    other = start(["partition-clip"], **keys, max_steps=12, checkpoint_interval=1, eval_interval=3)
    assert [e["step"] for e in events(other.run_directory, "recipe")] == steps
    assert other.final_loss == whole.final_loss
