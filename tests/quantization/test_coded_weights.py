"""The codes of weights: what products see of them, and nothing else."""

import pytest
import torch
from helpers_quantization import Looped, Weird, quantize_in_float32
from torch import nn

from altcore import fake_quantize, get_format, quantize_model
from altcore.numerics import scale_of
from altcore.quantization import weight_codes


class Half(nn.Linear):
    """Multiplies by a part of its weight."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight[:4])


class Turned(nn.Linear):
    """Multiplies by its weight from the right."""

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("scaling", ["tensor", "channel"])
def test_weights_that_no_product_sees_have_no_codes(scaling):
    """They are named, with why; the others decode to what the product multiplies by."""
    model = nn.Sequential(Looped(), nn.Linear(6, 4), Weird(4, 4), Turned(4, 4), Half(4, 8))
    with quantize_in_float32(model, {"weight": {"format": "E3M4", "scaling": scaling}}) as q:
        model(torch.randn(5, 4))
        coded, others = weight_codes(q)
        parts = [name for name, why in others.items() if "a part of it, or" in why]
        assert parts == ["0.experts", "2.weight", "4.weight"]
        is_turned = scaling == "tensor"
        assert list(coded) == ["1.weight", "3.weight"][: 1 + is_turned]
        for name, weight in coded.items():
            layer = model[int(name[0])]
            seen = layer(torch.eye(layer.in_features)).detach()
            seen = seen if name[0] == "3" else (seen - layer.bias.detach()).T
            torch.testing.assert_close(weight.values(), seen, rtol=1e-6, atol=1e-6)


def at_boundaries(fmt):
    """Rows of numbers for which ``x * r`` and ``x * (1 / s)`` lie on two sides of a boundary."""
    middles = torch.tensor([float(b) for b in fmt.boundaries if b > 0])
    for largest in torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.5:
        s, r = scale_of(largest, fmt)
        x = middles / r
        x = torch.stack([x, x.nextafter(largest * 2), x.nextafter(largest * 0)]).flatten()
        is_apart = (x * r >= middles.repeat(3)) != (x * (1 / s) >= middles.repeat(3))
        if is_apart.any():
            yield torch.cat([largest[None], x[is_apart]])[None]


def test_codes_are_those_of_the_product():
    """With its own inverse of the scale: 1 / s is another number, and rounds to another value."""
    fmt, rows = get_format("E4M3"), 0
    for w in at_boundaries(fmt):
        layer = nn.Linear(w.shape[1], 1, bias=False)
        layer.weight.data = w
        with quantize_model(layer, {"layers": {"": {"weight": fmt}}}) as q:
            values = weight_codes(q)[0]["weight"].values()
        assert torch.equal(values, fake_quantize(w, fmt, "amax"))
        rows += 1
    assert rows > 20


def test_codes_overflow_as_the_product_does():
    """By the cast's rule: an infinity, or NaN."""
    for rule, largest in (("saturate", 57344.0), ("inf", torch.inf), ("nan", torch.nan)):
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[1e9, 1.0]])
        cast = {"format": "E5M2", "scaling": "none", "overflow": rule}
        with quantize_model(layer, {"layers": {"": {"weight": cast}}}) as q:
            values = weight_codes(q)[0]["weight"].values()
        torch.testing.assert_close(values, torch.tensor([[largest, 1.0]]), equal_nan=True)
