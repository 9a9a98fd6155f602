"""The layers that a recipe can speak of, and the parameters in them."""

import pytest
import torch
from helpers_quantization import STORED, build_net
from torch import nn
from torch.nn.utils import parametrizations

import altcore
from altcore import BadInput, quantize_model
from altcore.quantization.discovery import find_layers, output_head


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


class Wrapper(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self):
        super().__init__()
        self.base_layer, self.lora = nn.Linear(2, 2), nn.Linear(2, 2)


def test_the_head_is_found():
    """By what the model says, else the last linear layer, Conv1D among them."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert output_head(model) is model[1]
    model.get_output_embeddings = lambda: model[0]
    assert output_head(model) is model[0]
    assert output_head(model, None) is None
    assert output_head(model, "1") is model[1]
    with pytest.raises(BadInput, match="the model has no module '2'"):
        output_head(model, "2")
    with pytest.raises(BadInput, match=r"^head: module '2', a ReLU, neither .*layers are 0, 1$"):
        output_head(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()), "2")
    model.get_output_embeddings = lambda: None
    assert output_head(model) is model[1]
    model.base_model = model  # as base models of the transformers library
    assert output_head(model) is None
    transformers = pytest.importorskip("transformers")
    model = nn.Sequential(nn.Linear(2, 2), transformers.pytorch_utils.Conv1D(2, 2), nn.ReLU())
    assert output_head(model) is model[1]


def test_a_head_that_adapters_wrap_is_the_wrapper():
    """Recipes and plugins leave alone all that is in it."""
    wrapped = nn.Sequential(nn.Linear(2, 2), Wrapper())
    assert output_head(wrapped) is wrapped[1]
    heads = [layer.name for layer, _ in find_layers(wrapped).values() if layer.is_head]
    assert heads == ["1.base_layer", "1.lora"]


@pytest.mark.parametrize("lone", [nn.Linear(2, 2), Wrapper()])
def test_only_the_last_of_several_layers_is_a_head(lone):
    """A lone layer is none, nor is one that adapters wrap; after a convolution it is one."""
    around = nn.Sequential(nn.Embedding(2, 2), lone, nn.LayerNorm(2), nn.ReLU())
    assert output_head(lone) is output_head(around) is output_head(nn.ReLU()) is None
    images = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(), lone)
    assert output_head(images) is lone
    assert output_head(images[:2]) is None
