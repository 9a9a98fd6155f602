"""What a layer keeps: its operands, and the views of its master weights."""

import copy

import pytest
import torch
from helpers_quantization import E2M1_EVERYWHERE, net, only, step_of
from torch import nn
from torch.nn import functional

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.formats import round_scalar
from altcore.numerics import scale_of


class Table(nn.Module):
    """Adds its weight, as position tables do."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self, x):
        return x + self.weight.view(1, *self.weight.shape)


@pytest.mark.parametrize("loss", [torch.sum, lambda y: y.square().sum()])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(4, 4), lambda: nn.Conv1d(4, 4, 1)])
def test_a_second_derivative_is_refused(layer, loss):
    """A gradient penalty would be without effect, and nobody would know."""
    layer, x = layer(), torch.randn(4, 4, requires_grad=True)
    with quantize_model(nn.Sequential(layer), E2M1_EVERYWHERE) as q:
        with pytest.raises(BadInput, match=r"layer 0: .* no second derivative .*q\.off\(\)"):
            torch.autograd.grad(loss(layer(x)), x, create_graph=True)
        with q.off():
            (g,) = torch.autograd.grad(loss(layer(x)), x, create_graph=True)
        assert g.requires_grad


@pytest.mark.parametrize("width", [32, 24])
def test_a_hadamard_transform_of_stored_weights(width):
    """Both operands are transformed, though the weight is on the grid before: they cancel."""
    layer, x = nn.Linear(width, 16, bias=False), torch.randn(5, width)
    cast = {"format": "E4M3", "hadamard": 16}
    casts = {"weight@fwd": cast, "activation@fwd": cast, "stored_weight": "E4M3"}
    with quantize_model(nn.Sequential(layer), {"layers": {"0": casts}}):
        y = layer(x)
        plain = functional.linear(x, layer.weight)
    assert (y - plain).norm() < 0.06 * plain.norm()


def test_embeddings_and_other_layers_take_quantized_weights(draw):
    """Where there is no product, the module's own forward runs on rounded weights.

    The gradient passes straight through to the float32 master.
    """
    for module, x in (
        (nn.Embedding(9, 4), torch.arange(9)),
        (Table(9, 4), draw(2, 9, 4)),
    ):
        plain = copy.deepcopy(module)
        model = nn.Sequential(module)
        quantize_model(model, only({"weight": "E4M3"}))
        with torch.no_grad():
            plain.weight.copy_(altcore.fake_quantize(module.weight, "E4M3", scale="amax"))
        expected = plain(x)
        found = model(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for y in (found, expected):
            y.square().sum().backward()
        assert torch.equal(module.weight.grad, plain.weight.grad)
        assert isinstance(module.weight, nn.Parameter)
    with pytest.raises(BadInput, match=r"'0' says activation@fwd, which none of its layers"):
        quantize_model(nn.Sequential(nn.Embedding(9, 4)), only({"activation": "E4M3"}))


@pytest.mark.parametrize("name", ["E4M3", "E7M0"])
@pytest.mark.parametrize("rounding", ["nearest-even", "to-zero", "up"])
def test_view_stall_against_a_slow_count(name, rounding):
    """Masters that moved while their view, at the scale of the forward, did not."""
    fmt, model = get_format(name), net()
    cast = {"format": name, "rounding": rounding}
    q = quantize_model(model, {"weight": cast, "skip": ["<head>"]})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found_stall = False
    for step in range(1, 5):
        q.begin_step(step, tracking=True)
        before = {n: model.get_parameter(f"{n}.weight").detach().clone() for n in ("0", "2")}
        proposed = step_of(model, optimizer, step)
        q.store(optimizer)
        q.measure_views()
        rows = {r["layer"]: r for r in q.stats() if r["operand"] == "weight view"}
        for n, old in before.items():
            _, r = scale_of(old.abs().max(), fmt)
            codes = [
                [
                    round_scalar(x, fmt, rounding)
                    for x in (w * r).flatten().tolist()  # rounded to float32 first
                ]
                for w in (old, proposed[f"{n}.weight"])
            ]
            moved = (old != proposed[f"{n}.weight"]).flatten().tolist()
            stalled = sum(m and a == b for m, a, b in zip(moved, *codes, strict=True))
            assert (rows[n]["moved"], rows[n]["stalled"]) == (sum(moved), stalled)
            found_stall |= 0 < stalled < sum(moved)
    assert found_stall


def test_views_under_stochastic_rounding_are_compared_with_the_same_bits():
    """Masters that move by one part in 10^7 stall nearly all; other bits would flip a third."""
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 1))
    q = quantize_model(
        model, {"layers": {"0": {"weight": {"format": "E2M1", "rounding": "stochastic"}}}}
    )
    q.begin_step(1, tracking=True)
    model(torch.ones(2, 60)).sum().backward()
    with torch.no_grad():
        model[0].weight.mul_(1 + 2**-22)
    q.store()
    q.measure_views()
    (row,) = (r for r in q.stats() if r["operand"] == "weight view")
    assert row["moved"] > 3500
    assert row["stalled"] / row["moved"] > 0.99


def test_views_are_kept_on_recorded_steps_alone():
    """And not in a probe."""
    model = net()
    q = quantize_model(model, "E4M3")
    q.begin_step(1)
    model(torch.ones(1, 6))
    q.begin_step(2, tracking=True)
    with q.frozen():
        model(torch.ones(1, 6))
    q.measure_views()
    assert not [r for r in q.stats() if r["operand"] == "weight view"]
    assert "view_stall_rate" not in q.counters.stall_rates()
