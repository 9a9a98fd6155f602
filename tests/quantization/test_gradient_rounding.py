"""The gradients of parameters are rounded, for the role weight_gradient."""

import copy

import torch
from helpers_quantization import Tied, build_net, model_of
from torch import nn

import altcore
from altcore import quantize_model


def test_the_gradient_of_an_unfrozen_weight_is_rounded():
    """It had none when the model was quantized."""
    model, x = build_net(), torch.randn(4, 8)
    model[0].weight.requires_grad_(False)
    with quantize_model(model, {"layers": {"0": {"weight_gradient": "E2M1"}}}):
        model(x).sum().backward()
        model[0].weight.requires_grad_(True)
        model(x).sum().backward()
        grad = model[0].weight.grad
        assert torch.equal(grad, altcore.fake_quantize(grad, "E2M1", scale="amax"))
        assert len(grad.unique()) <= 15
        model[0].weight = nn.Parameter(torch.randn(8, 8))
        model(x).sum().backward()
        assert len(model[0].weight.grad.unique()) <= 15


def test_sparse_gradients_are_rounded():
    """Those of an embedding that asks for them: what is not there is 0 on any grid."""
    dense, sparse = nn.Embedding(9, 4), nn.Embedding(9, 4, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    ids, grads = torch.tensor([1, 1, 5, 7]), []
    for module in (dense, sparse):
        recipe = {"layers": {"0": {"weight_gradient": "E2M1", "weight": "E4M3"}}}
        with quantize_model(nn.Sequential(module), recipe):
            module(ids).square().sum().backward()
        grads.append(module.weight.grad)
    assert grads[1].is_sparse
    assert torch.equal(grads[1].to_dense(), grads[0])


def test_off_is_off_for_weight_gradients():
    """Within ``off()`` a gradient comes out as the plain model's."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
    model(x).square().sum().backward()
    plain = model[0].weight.grad.clone()
    with quantize_model(model, {"weight_gradient": "E2M1"}) as q:
        model.zero_grad()
        with q.off():
            model(x).square().sum().backward()
        assert torch.equal(model[0].weight.grad, plain)
        model.zero_grad()
        model(x).square().sum().backward()
        assert not torch.equal(model[0].weight.grad, plain)


def test_weight_gradients_are_rounded_as_a_whole(draw):
    """The role weight_gradient: the accumulated gradient of one backward pass, own amax scale."""
    model = model_of(draw)
    plain = copy.deepcopy(model)
    q = quantize_model(
        model, {"weight_gradient": "E4M3", "layers": {"1": {"weight_gradient": "none"}}}
    )
    x = draw(6, 7)
    for m in (model, plain):
        m(x).square().sum().backward()
    expected = altcore.fake_quantize(plain[0].weight.grad, "E4M3", scale="amax")
    assert "0" not in q.layers, "the gradient alone asks for no product"
    # weight_gradient at the top level means linear layers.
    assert torch.equal(model[0].weight.grad, expected)
    assert not torch.equal(expected, plain[0].weight.grad)
    assert torch.equal(model[1].weight.grad, plain[1].weight.grad)
    assert torch.equal(model[0].bias.grad, plain[0].bias.grad)


def test_the_gradient_of_a_tied_weight_is_rounded_once(draw):
    """It is the sum over both uses that is rounded, not each."""
    model = Tied()
    plain = copy.deepcopy(model)
    quantize_model(model, {"layers": {"<any>": {"weight_gradient": "E3M4"}}})
    ids = torch.arange(8).reshape(2, 4)
    for m in (model, plain):
        m(ids).square().sum().backward()
    expected = altcore.fake_quantize(plain.embed.weight.grad, "E3M4", scale="amax")
    assert torch.equal(model.embed.weight.grad, expected)
