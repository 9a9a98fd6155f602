"""The layers that a recipe can speak of, and the parameters in them."""

import pytest
import torch
from helpers_quantization import STORED, build_net
from torch import nn
from torch.nn.utils import parametrizations

import altcore
from altcore import BadInput, quantize_model


def test_a_layer_parametrized_afterwards_is_named():
    model = build_net()
    with quantize_model(model, STORED) as q:
        parametrizations.weight_norm(model[0])
        with pytest.raises(BadInput, match="has no parameter weight any more: quantize a model af"):
            q.store()


def test_a_lone_layer_is_no_head():
    """A model of one Linear is quantized; one that has nothing to quantize is refused."""
    with quantize_model(nn.Linear(4, 4), "E4M3") as q:
        assert len(q.quantizers) == 3
    with pytest.raises(BadInput, match="no layer that it quantizes"):
        quantize_model(nn.Sequential(nn.ReLU()), "E4M3")


def test_layers_in_modules_of_any_kind():
    """Sequential, lists, dicts and nested modules; a layer that is used twice; one alone."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict(
                {"a": nn.Linear(4, 4), "b": nn.ModuleList([nn.Linear(4, 4)])}
            )

        def forward(self, x):
            return self.parts["b"][0](self.parts["a"](self.parts["a"](x)))

    model = nn.Sequential(nn.Sequential(Inner(), nn.ReLU()), nn.Linear(4, 2))
    q = quantize_model(model, "E4M3")
    q.begin_step(1)
    model(torch.ones(3, 4)).sum().backward()
    assert set(q.layers) == {"0.0.parts.a", "0.0.parts.b.0"}
    elements = {r["layer"]: r["elements"] for r in q.stats() if r["operand"] == "weight@fwd"}
    assert elements == {"0.0.parts.a": 32, "0.0.parts.b.0": 16}

    alone = nn.Linear(3, 2)
    with quantize_model(alone, {"layers": {"<linear>": {"weight": "E2M1"}}}) as q:
        assert list(q.layers) == [""]
        y = alone(torch.eye(3)) - alone.bias
    q, s = altcore.quantize(alone.weight, "E2M1")
    torch.testing.assert_close(y.detach(), (q * s).T)
