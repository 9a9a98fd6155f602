"""The intervention ``agc``: each unit by hand, and runs that it saves."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers_diagnostics import NoHostRead
from planted import last_loss
from torch import nn

import altcore
from altcore.hooks import build
from altcore_interventions.agc import Agc


def clip(model, gradients, **settings):
    """Return the gradients that are left, by name, of those given; others are zero."""
    for name, parameter in model.named_parameters():
        given = gradients.get(name)
        parameter.grad = torch.zeros_like(parameter) if given is None else given.clone()
    plugin = build(Agc, settings, "agc")
    with NoHostRead():
        assert plugin.pre_step(SimpleNamespace(model=model)) is None
    return {name: p.grad for name, p in model.named_parameters()}


def slow(weight, gradient, clipping=0.01, eps=1e-3):
    """The paper's equation 3 on a list of units, in Python's own numbers."""
    result = []
    for w, g in zip(weight.flatten(1).tolist(), gradient.flatten(1).tolist(), strict=True):
        size, norm = max(math.hypot(*w), eps), math.hypot(*g)
        factor = clipping * size / norm if norm / size > clipping else 1.0
        result.append([factor * x for x in g])
    return torch.tensor(result).view_as(gradient)


def two_layers(first=None):
    """A layer to be clipped, and a head."""
    return nn.Sequential(first or nn.Linear(2, 2), nn.Linear(2, 2))


def test_rows_of_a_linear_by_hand():
    """Norms 5 and 0: a gradient of 10 becomes 0.05, one of 1 that of eps, a small one stays."""
    model = two_layers()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([3.0, 4.0]))
    gradients = {
        "0.weight": torch.tensor([[6.0, 8.0], [1.0, 0.0]]),
        "0.bias": torch.tensor([0.02, 0.04]),
    }
    found = clip(model, gradients)
    expected = torch.tensor([[0.03, 0.04], [1e-5, 0.0]])
    torch.testing.assert_close(found["0.weight"], expected)
    assert torch.equal(found["0.bias"], gradients["0.bias"]), "a norm of 0.045 of 5 is not above"
    gradients["0.bias"] = torch.tensor([0.3, 0.4])
    torch.testing.assert_close(clip(model, gradients)["0.bias"], torch.tensor([0.03, 0.04]))


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(3, 4), nn.Conv2d(3, 4, 2), nn.Embedding(5, 3)],
    ids=lambda m: type(m).__name__,
)
def test_units_agree_with_the_equation(layer):
    """Rows, filters and embeddings: some clipped, some not."""
    torch.manual_seed(0)
    model = two_layers(layer)
    scale = torch.logspace(-3, 1, len(layer.weight)).view(-1, *[1] * (layer.weight.dim() - 1))
    gradient = torch.randn_like(layer.weight) * scale
    found = clip(model, {"0.weight": gradient}, clipping=0.1)["0.weight"]
    expected = slow(layer.weight.detach(), gradient, clipping=0.1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[0], gradient[0])
    assert not torch.equal(found[-1], gradient[-1])


@pytest.mark.parametrize("is_subclass", [False, True])
def test_the_transposed_layer_of_transformers(is_subclass):
    """Its weight is (in, out): units are columns; of a subclass, too."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    cls = type("Own", (Conv1D,), {}) if is_subclass else Conv1D
    model = two_layers(cls(4, 3))
    gradient = torch.randn(3, 4)
    found = clip(model, {"0.weight": gradient})["0.weight"]
    torch.testing.assert_close(found, slow(model[0].weight.detach().t(), gradient.t()).t())


def test_the_head_and_what_is_named_are_left_alone():
    """As recipes find it, with a weight tied to it."""
    large = torch.full((2, 2), 1e3)
    model = two_layers()
    found = clip(model, {"0.weight": large, "1.weight": large})
    assert torch.equal(found["1.weight"], large)
    assert not torch.equal(found["0.weight"], large)
    assert torch.equal(clip(model, {"0.weight": large}, skip=["0.w*"])["0.weight"], large)
    model.get_output_embeddings = lambda: model[0]
    found = clip(model, {"0.weight": large, "1.weight": large})
    assert torch.equal(found["0.weight"], large)
    assert not torch.equal(found["1.weight"], large)
    model[1].weight = model[0].weight
    assert torch.equal(clip(model, {"0.weight": large})["0.weight"], large)
    assert not torch.equal(clip(nn.Linear(2, 2), {"weight": large})["weight"], large)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential())
    model[1].base_layer, model[1].lora = nn.Linear(2, 2), nn.Linear(2, 2)  # as adapters wrap it
    assert torch.equal(clip(model, {"1.base_layer.weight": large})["1.base_layer.weight"], large)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_units_of_16_bits_agree_with_the_equation(dtype):
    """Such a row is finite, and its norm may be above the largest float16."""
    torch.manual_seed(0)
    model = two_layers(nn.Linear(1024, 4)).to(dtype)
    gradient = (torch.randn(4, 1024) * torch.logspace(-3, 4, 4)[:, None]).to(dtype)
    found = clip(model, {"0.weight": gradient})["0.weight"].double().norm(dim=1)
    expected = slow(model[0].weight.detach().double(), gradient.double()).norm(dim=1)
    torch.testing.assert_close(found, expected.double(), rtol=2e-3, atol=0)


def test_a_name_to_skip_that_no_parameter_has_is_told():
    """A typo would clip what it was to spare."""
    said = []
    run = SimpleNamespace(model=two_layers(), emit=lambda event, message: said.append(message))
    build(Agc, {"skip": ["0.*", "1.wieght"]}, "agc").run_start(run)
    assert said == ["agc.skip: '1.wieght' matches no parameter (did you mean 1.weight?)"]


def test_what_is_not_finite_stays():
    """A NaN is for the engine to see; its row is not scaled, other rows are."""
    gradient = torch.tensor([[math.nan, 1e3], [1e3, 1e3]])
    found = clip(two_layers(), {"0.weight": gradient})["0.weight"]
    assert math.isnan(found[0, 0])
    assert found[0, 1] == 1e3
    assert found[1, 0] < 1


@pytest.mark.parametrize("settings", [{"clipping": 0.0}, {"eps": 0.0}])
def test_impossible_settings_are_refused(settings):
    """By name."""
    with pytest.raises(altcore.BadInput, match=f"agc.{next(iter(settings))}"):
        build(Agc, settings, "agc")


@pytest.mark.parametrize(("rate", "at_most"), [(1.0, 2.3), (3.0, 2.3)])
def test_a_run_survives_a_learning_rate_that_is_too_large(start, rate, at_most):
    """SGD with momentum at 10 and 30 times a good rate diverges to NaN; clipped it learns.

    At 30 times its loss is above the first one for a while, which is told, and comes back.
    """
    keys = {"optimizer": "sgd", "learning_rate": rate, "grad_clip": 0, "max_steps": 60}
    lost = start(**keys)
    assert (lost.status, lost.steps_completed < 30) == ("collapsed", True)
    saved = start(["agc"], **keys)
    assert saved.status == "finished"
    assert rate > 1 or saved.failure_reason is None
    assert last_loss(saved) < at_most  # 2.00 and 1.87, from 5.55; 2.43 unclipped at a rate of 0.1
