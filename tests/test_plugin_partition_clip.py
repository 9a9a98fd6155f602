"""The intervention ``partition-clip``: its threshold, and when it applies."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import altcore
from altcore.recipe import change
from altcore.settings import build
from altcore.state import Step
from altcore_interventions.partition_clip import PartitionClip

UNSCALED = {"weight@fwd": {"format": "E5M2", "scaling": "none"}}


class NoHostRead(TorchDispatchMode):
    """Fails on whatever brings a tensor's value to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), "a host read in the hot path"
        return func(*args, **(kwargs or {}))


class Bench:
    """Two layers of four weights; what happens to gradients that are put there."""

    def __init__(self, layers, **settings):
        self.model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))
        self.quantization = altcore.quantize_model(self.model, {"layers": layers})
        self.events = []
        self.plugin = build(PartitionClip, settings, "partition-clip")
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
            assert self.plugin.pre_step(self.run, Step(1)) is None
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
    "settings", [{"base": 0.0}, {"overflow_rate": 1.5}, {"mode": "norm"}, {"limit": 1.0}]
)
def test_impossible_settings_are_refused(settings):
    """A mistyped or impossible setting stops the run before it starts, naming the plugin."""
    with pytest.raises(altcore.BadInput, match="partition-clip"):
        build(PartitionClip, settings, "partition-clip")


def test_in_a_run(tmp_path):
    """Under amax scaling a run with it is the run without it, and its record says why."""
    config = {
        "format": "E5M2",
        "gpt.size": "tiny",
        "max_steps": 2,
        "checkpoint_interval": 0,
        "eval_interval": 0,
        "eval_steps": 1,
        "runs_dir": str(tmp_path),
    }
    plain = altcore.train({**config, "name": "plain"})
    clipped = altcore.train({**config, "name": "clipped", "plugins": ["partition-clip"]})
    assert clipped.final_loss == plain.final_loss
    events = (clipped.run_directory / "events.jsonl").read_text()
    assert events.count("partition-clip will change nothing") == 1
