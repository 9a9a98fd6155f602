"""The diagnostic ``grad-stats``: norms, ratios and dead shares worked out by hand."""

import math

import pytest
import torch
from helpers_diagnostics import Bench, linear, square
from torch import nn

from altcore_diagnostics.grad_stats import GradStats


def bench(*layers):
    return Bench(nn.Sequential(*layers), {})


def test_norms_and_snr_by_hand():
    """Of 3 and -4: the norm 5, the largest 4, a mean of -1/2 over a deviation of 7/2."""
    found = bench(linear(1.0, 1.0)).gradients(GradStats(), {"0.weight": [[3.0, -4.0]]})
    for place in ("", "/0", "_mean", "_min"):
        assert found[f"l2{place}"] == pytest.approx(5)
        assert found[f"linf{place}"] == 4
        assert found[f"snr{place}"] == pytest.approx(1 / 7)


def test_a_layer_is_all_its_parameters():
    """Weight 1, 2, 2 and bias 4: the norm 5; mean 9/4."""
    given = {"0.weight": [[1.0, 2.0, 2.0]], "0.bias": [4.0]}
    found = bench(nn.Linear(3, 1)).gradients(GradStats(), given)
    assert found["l2/0"] == pytest.approx(5)
    assert found["linf/0"] == 4
    assert found["snr/0"] == pytest.approx((9 / 4) / math.sqrt(25 / 4 - 81 / 16))


def test_the_aggregates():
    """Of all elements, and the mean and smallest over the layers, each layer counting once."""
    made = bench(square(1.0), linear(1.0, 1.0))
    given = {"0.weight": [[3.0, 4.0], [0.0, 0.0]], "1.weight": [[12.0, 0.0]]}
    found = made.gradients(GradStats(), given)
    assert (found["l2/0"], found["l2/1"]) == pytest.approx((5, 12))
    assert (found["l2"], found["l2_mean"], found["l2_min"]) == pytest.approx((13, 8.5, 5))
    assert (found["linf"], found["linf_mean"], found["linf_min"]) == (12, 8, 4)


def test_the_norms_of_the_whole_model():
    """Gradients 3, 4 and 12; weights 2, 2, 2, 2 and 3, 0."""
    made = bench(square(2.0), linear(3.0, 0.0))
    given = {"0.weight": [[3.0, 4.0], [0.0, 0.0]], "1.weight": [[12.0, 0.0]]}
    found = made.gradients(GradStats(), given)
    assert found["grad_norm_periodic"] == found["l2"] == pytest.approx(13)
    assert found["weight_norm_periodic"] == pytest.approx(5)


@pytest.mark.parametrize(("dtype", "weight"), [(torch.float16, 3e4), (torch.bfloat16, 1.0)])
def test_the_norm_of_16_bit_weights_is_not_rounded_to_16_bits(dtype, weight):
    """A float16 has no 95,000, and a bfloat16 no 3.162."""
    made = bench(nn.Linear(10, 1, bias=False).to(dtype))
    with torch.no_grad():
        made.run.model[0].weight.fill_(weight)
    found = made.gradients(GradStats(), x=torch.ones(1, 10, dtype=dtype))
    size = float(torch.tensor(weight, dtype=dtype))
    assert found["weight_norm_periodic"] == pytest.approx(size * math.sqrt(10), rel=1e-6)


def test_a_constant_gradient_has_no_snr():
    """Its layer is left out of mean and smallest; where every layer is constant, both are NaN."""
    made = bench(square(1.0), linear(1.0, 1.0))
    given = {"0.weight": [[0.1, 0.1], [0.1, 0.1]], "1.weight": [[1.0, 3.0]]}
    found = made.gradients(GradStats(), given)
    assert math.isnan(found["snr/0"])
    assert (found["snr_mean"], found["snr_min"]) == pytest.approx((2, 2))
    found = made.gradients(GradStats(), given | {"1.weight": [[0.0, 0.0]]})
    assert math.isnan(found["snr_mean"])
    assert math.isnan(found["snr_min"])


def test_what_is_not_finite_shows():
    made = bench(square(1.0), linear(1.0, 1.0))
    found = made.gradients(GradStats(), {"1.weight": [[math.nan, 1.0]]})
    assert math.isnan(found["l2/1"])
    assert math.isnan(found["l2_mean"])
    assert math.isnan(found["linf_min"])
    assert found["l2/0"] > 0


def test_dead_share_by_hand():
    """Dead in this step, and dead in each of the last three.

    The first lives in step 1 only, the second never, the third always, the fourth again in 5.
    """
    plugin = GradStats(interval=1, dead_window=3)
    made, found = bench(linear(1.0, 1.0, 1.0, 1.0)), []
    for step in range(1, 6):
        grad = [float(step == 1), 1e-9, -1.0, float(step == 5)]
        found.append(made.gradients(plugin, {"0.weight": [grad]}))
    assert [f["dead_share"] for f in found] == [0.5, 0.75, 0.75, 0.75, 0.5]
    assert [f.get("dead_window_share") for f in found] == [None, None, 0.5, 0.75, 0.5]


def test_dead_in_measured_steps():
    """With an interval of 2 and a window of 4, two measurements decide; others are not seen."""
    plugin, made, found = GradStats(interval=2, dead_window=4), bench(linear(1.0, 1.0)), []
    for step in range(1, 9):
        grad = [0.0, float(step in (1, 3, 6))]
        measured = made.forward(grads={"0.weight": [grad]})
        if step % 2 == 0:
            found.append(made.measure(plugin, measured, "post_backward").get("dead_window_share"))
    assert found == [None, 1.0, 0.5, 0.5]


def test_the_threshold():
    plugin = GradStats(dead_threshold=0.5, dead_window=1)
    found = bench(linear(1.0, 1.0, 1.0)).gradients(plugin, {"0.weight": [[0.4, 0.5, math.nan]]})
    assert found["dead_share"] == pytest.approx(1 / 3)


def test_no_gradient_is_a_dead_one():
    """Nothing reaches the parameter: there is no norm, and it is dead."""
    plugin = GradStats(dead_window=1)
    found = bench(square(1.0), linear(1.0, 1.0)).gradients(plugin, {"0.weight": None})
    assert "l2/0" not in found
    assert (found["dead_share/0"], found["dead_share_mean"], found["dead_share_min"]) == (1, 0.5, 0)


def test_state_goes_on_where_it_was():
    made, first, second = bench(linear(1.0, 1.0)), GradStats(dead_window=3), GradStats()
    second.dead_window = 3
    made.run.step = 10
    first.run_start(made.run)
    for _ in range(2):
        made.gradients(first, {"0.weight": [[0.0, 1.0]]})
    second.load_state_dict(first.state_dict())
    second.run_start(made.run)
    assert made.gradients(second, {"0.weight": [[0.0, 1.0]]})["dead_window_share"] == 0.5


def test_a_window_begins_where_the_run_does():
    """A run that goes on at step 10 has not seen three steps at step 11."""
    made, plugin = bench(linear(1.0, 1.0)), GradStats(dead_window=3)
    made.run.step = 10
    plugin.run_start(made.run)
    found = [made.gradients(plugin, {"0.weight": [[0.0, 1.0]]}) for _ in range(3)]
    assert [f.get("dead_window_share") for f in found] == [None, None, 0.5]


def adam_snr(gradients):
    """Let AdamW see a sequence of gradients of one layer; returns the measures of the last."""
    made = bench(linear(*gradients[0]))
    made.run.optimizer = torch.optim.AdamW(made.model.parameters(), betas=(0.9, 0.95))
    for grad in gradients:
        step = made.forward(grads={"0.weight": [list(grad)]})
        made.run.optimizer.step()
    return made.measure(GradStats(), step)


def test_adam_snr_by_hand():
    """1 for a gradient that keeps its value, and in the first step whatever it is."""
    assert adam_snr([(0.3, -20.0)])["adam_snr"] == pytest.approx(1, rel=1e-5)
    assert adam_snr([(0.3, -20.0)] * 5)["adam_snr/0"] == pytest.approx(1, rel=1e-5)
    # 1, then -1: m = -0.01 over 0.19, v = 0.0975 over 0.0975.
    assert adam_snr([(1.0,), (-1.0,)])["adam_snr_min"] == pytest.approx(0.01 / 0.19, rel=1e-4)
    # What has never had a gradient is left out.
    assert adam_snr([(1.0, 0.0)])["adam_snr_mean"] == pytest.approx(1, rel=1e-5)


def test_optimizers_without_moments():
    made = bench(linear(1.0, 1.0))
    made.run.optimizer = torch.optim.SGD(made.model.parameters())
    step = made.forward()
    made.run.optimizer.step()
    assert made.measure(GradStats(), step) == {}


def test_in_a_run(start):
    """Measured when due; the norm of everything is the core's, before clipping."""
    settings = {"grad-stats__interval": 2, "grad-stats__dead_window": 4}
    result = start(["grad-stats"], format="E3M4", max_steps=4, grad_clip=1e-3, **settings)
    core = {line["step"]: line for line in result.metrics_history}
    assert [line["step"] for line in result.diagnostics_history] == [1, 2, 4]
    for line in result.diagnostics_history:
        norm = core[line["step"]]["grad_norm"]
        assert line["grad-stats/l2"] == pytest.approx(norm, rel=1e-4)
        assert 0 < line["grad-stats/adam_snr_min"] <= line["grad-stats/adam_snr_mean"] <= 1.1
        assert line["grad-stats/l2_min"] <= line["grad-stats/l2/transformer.h.0.mlp.c_fc"]
        assert 0 <= line["grad-stats/dead_share"] < 1
    shares = [line.get("grad-stats/dead_window_share") for line in result.diagnostics_history]
    assert shares[:2] == [None, None]
    assert 0 <= shares[2] < 1


def test_each_parameter_by_itself():
    """A setting: weight and bias of a layer have measures of their own beside the layer's."""
    given = {"0.weight": [[3.0, 0.0, 4.0]], "0.bias": [12.0]}
    made = bench(nn.Linear(3, 1))
    plain = made.gradients(GradStats(dead_window=1), given)
    found = made.gradients(GradStats(dead_window=1, per_parameter=True), given)
    assert {k: v for k, v in found.items() if k in plain} == pytest.approx(plain, nan_ok=True)
    assert not any(".weight" in k for k in plain)
    assert (found["l2/0"], found["l2/0.weight"], found["l2/0.bias"]) == pytest.approx((13, 5, 12))
    assert (
        found["dead_share/0.weight"] == found["dead_window_share/0.weight"] == pytest.approx(1 / 3)
    )
    assert found["dead_share/0.bias"] == 0


def test_a_resumed_run_measures_the_same(start):
    settings = {"grad-stats__interval": 1, "grad-stats__dead_window": 5, "min_lr_ratio": 1.0}
    whole = start(["grad-stats"], name="whole", max_steps=6, **settings)
    start(["grad-stats"], name="part", max_steps=4, **settings)
    resumed = start.resume("part", max_steps=6)
    assert resumed.diagnostics_history == whole.diagnostics_history
