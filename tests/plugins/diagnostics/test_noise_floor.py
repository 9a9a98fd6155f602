"""The diagnostic ``noise-floor``: ratios worked out by hand, and a run that does not notice it."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import weights_sha256
from helpers_diagnostics import NoHostRead
from torch import nn

import altcore
from altcore.config import TrainConfig
from altcore.engine import Run, Step
from altcore_diagnostics.noise_floor import NoiseFloor, floor_measures
from altcore_diagnostics.shadow_gradients import GradientPair, sums_by_layer

ROOT3 = math.sqrt(3)


def compare(quantized, exact):
    """The measures of two gradients, by parameter name."""
    as_tensors = [
        {n: torch.tensor(g) for n, g in gradients.items()} for gradients in (quantized, exact)
    ]
    pair = GradientPair(*as_tensors, torch.zeros(()), torch.zeros(()))
    return {key: float(value) for key, value in floor_measures(sums_by_layer(pair)).items()}


def test_ratios_by_hand():
    """Norm 5 with errors of norm 1 and 5; the gradient's own norm, not the quantized one's."""
    exact = {"a.weight": [[3.0, 4.0]], "b.weight": [[3.0, 4.0]]}
    found = compare({"a.weight": [[3.0, 5.0]], "b.weight": [[0.0, 8.0]]}, exact)
    assert found["ratio/a"] == pytest.approx(5 / ROOT3)
    assert found["ratio/b"] == pytest.approx(1 / ROOT3) == pytest.approx(found["ratio_min"])
    assert found["below_share"] == 0.5
    assert found["ratio"] == pytest.approx(math.sqrt(50 / 26) / ROOT3)


def test_the_threshold_is_root_three():
    """An error of 1/√3 of the gradient is at the floor: a little more is below, less above."""
    exact = {"a.weight": [[1.0]], "b.weight": [[1.0]], "c.weight": [[1.0]]}
    errors = {"a.weight": 0.57, "b.weight": 0.58, "c.weight": -0.58}
    found = compare({n: [[1.0 + e]] for n, e in errors.items()}, exact)
    assert found["ratio/a"] > 1 > found["ratio/b"]
    assert found["below_share"] == pytest.approx(2 / 3)


def test_no_noise_no_gradient_and_nan():
    """Equal gradients are infinitely far above; 0 / 0 is left out; a gradient of zero is below."""
    exact = {"a.weight": [[1.0]], "b.weight": [[0.0]], "c.weight": [[0.0]]}
    found = compare({"a.weight": [[1.0]], "b.weight": [[0.0]], "c.weight": [[2.0]]}, exact)
    assert (found["ratio/a"], found["ratio/c"]) == (math.inf, 0.0)
    assert math.isnan(found["ratio/b"])
    assert (found["ratio_min"], found["below_share"]) == (0.0, 0.5)
    lost = compare({"a.weight": [[math.nan]], "b.weight": [[1.0]]}, {**exact, "b.weight": [[1.0]]})
    assert all(math.isnan(lost[key]) for key in ("ratio", "ratio_min", "below_share"))


def run_of(model, recipe):
    """A Run of a model of the test's own under a recipe."""
    loss = lambda model, batch: model(batch).square().mean()  # noqa: E731
    return Run(
        config=TrainConfig(device="cpu"),
        directory=None,
        device=torch.device("cpu"),
        workload=SimpleNamespace(model=model, loss=loss),
        model=model,
        optimizer=None,
        quantization=altcore.quantize_model(model, recipe),
        on_event=None,
    )


def test_of_a_known_error():
    """Only the weight gradient is rounded, so its error is that of rounding it."""
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
    model(batch).square().mean().backward()
    exact = model[0].weight.grad.clone()
    error = altcore.fake_quantize(exact, "E2M1", "amax") - exact
    run = run_of(model, {"weight_gradient": "E2M1"})
    with NoHostRead():
        found = NoiseFloor().post_backward(run, Step(1, batch=batch))
    expected = float(exact.norm() / error.norm()) / ROOT3
    assert float(found["ratio/0"]) == float(found["ratio"]) == pytest.approx(expected, rel=1e-5)
    assert float(found["below_share"]) == float(expected < 1)
    assert torch.equal(model[0].weight.grad, exact)


def test_without_quantization_there_is_nothing_to_compare():
    """No measure, rather than infinities."""
    run = run_of(nn.Sequential(nn.Linear(2, 2)), {})
    assert NoiseFloor().post_backward(run, Step(1, batch=torch.ones(1, 2))) is None


def test_who_comes_first_changes_nothing(start):
    """The one that comes second has what the first computed, and measures the same."""
    due = {"noise-floor.interval": 3, "shadow.interval": 3}
    orders = [["noise-floor", "shadow"], ["shadow", "noise-floor"]]
    found = [
        start(order, name=order[0], recipe=RECIPE, gpt__dropout=0.2, **due) for order in orders
    ]
    first, second = (result.diagnostics_history[0] for result in found)
    assert first == pytest.approx(second, rel=1e-6)
    assert any(key.startswith("shadow/accumulated/") for key in second)


RECIPE = {
    "weight": {"format": "E4M3", "scaling": "delayed"},
    "activation": {"format": "E4M3", "rounding": "stochastic"},
    "gradient": {"format": "E2M1", "scaling": "delayed", "rounding": "stochastic"},
    "weight_gradient": {"format": "E5M2", "rounding": "stochastic"},
}


@pytest.mark.parametrize("plugins", [["noise-floor"], ["noise-floor", "shadow"]])
def test_in_a_run(start, plugins):
    """It is measured when due, and changes no number, with another that shares its gradients."""
    keys = {"recipe": RECIPE, "gpt__dropout": 0.2}
    plain = start(name="plain", **keys)
    due = {f"{name}.interval": 2 for name in plugins}
    measured = start(plugins, name="measured", **keys, **due)
    assert weights_sha256(measured.run_directory) == weights_sha256(plain.run_directory)
    assert [line["step"] for line in measured.diagnostics_history] == [1, 2]
    for a, b in zip(plain.metrics_history, measured.metrics_history, strict=True):
        assert a == {k: v for k, v in b.items() if k.partition("/")[0] not in plugins}
    line = measured.diagnostics_history[0]
    layer = "transformer.h.0.mlp.c_fc"
    assert 0 < line["noise-floor/ratio_min"] <= line[f"noise-floor/ratio/{layer}"]
    assert 0 <= line["noise-floor/below_share"] <= 1
    if "shadow" in plugins:
        # |a - b|² = |a|² + |b|² - 2 |a| |b| cos: both were made of the same gradients.
        cosine, ratio = (line[f"shadow/{key}/{layer}"] for key in ("cosine", "norm_ratio"))
        noise = math.sqrt(1 + ratio**2 - 2 * ratio * cosine)
        assert line[f"noise-floor/ratio/{layer}"] == pytest.approx(1 / (ROOT3 * noise), rel=1e-3)
