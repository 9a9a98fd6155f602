"""Convolutions under a recipe: products against float64 convolutions of rounded tensors."""

import pytest
import torch
from helpers_quantization import E3M4_OPERANDS, quantize_in_float32, rounded
from torch import nn
from torch.nn import functional

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.numerics import round_blocks

CONVS = {
    "plain": (lambda: nn.Conv2d(8, 12, 3), (4, 8, 9, 9)),
    "strided": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (4, 8, 10, 10)),
    "dilated": (lambda: nn.Conv2d(8, 12, 3, dilation=2, bias=False), (4, 8, 11, 11)),
    "same": (lambda: nn.Conv2d(8, 12, 4, padding="same"), (4, 8, 9, 9)),
    "circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), (4, 8, 9, 9)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), (4, 8, 9, 9)),
    "one": (lambda: nn.Conv1d(8, 12, 3, padding=1), (4, 8, 20)),
    "lone sample": (lambda: nn.Conv1d(8, 12, 3, padding=1), (8, 20)),
    "three": (lambda: nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5)),
}


SPATIAL = {"one": 1, "lone sample": 1, "three": 3}


def tensor_wise(x, fmt):
    """A tensor's values under one scale, in float64."""
    q, s = altcore.quantize(x, fmt)
    return q.double() * s.double()


def run(layer, x, dy):
    """Output, and the gradients of input, weight and bias."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    bias = None if layer.bias is None else layer.bias.grad
    return y.detach(), x.grad, layer.weight.grad, bias


def close(found, expected, tolerance=3e-6):
    """Whether two tensors are equal but for float32's sums."""
    return float((found.double() - expected).abs().max()) <= tolerance * float(expected.abs().max())


def slices(x, fmt, axes):
    """Values under one scale for each slice along ``axes``, float64."""
    largest = x.abs().amax(axes, keepdim=True)
    s = largest / get_format(fmt).max
    q = altcore.fake_quantize(x, fmt, scale=s)
    return q.double()


def in_blocks(x, fmt, axis):
    """A block format's values, blocks along ``axis``, float64."""
    made = round_blocks(x.movedim(axis, -1).contiguous(), get_format(fmt))
    return (made.values.double() * (1 if made.scale is None else made.scale.double())).movedim(
        -1, axis
    )


CONVOLUTIONS = {
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, output_padding=1), (2, 3, 5, 5)),
    "transposed, groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, padding=1), (2, 4, 7)),
    "one sample": (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 7)),
}


@pytest.mark.parametrize("kind", CONVS)
def test_products_of_rounded_operands(kind):
    """Output and both gradients are the convolutions of rounded tensors, the bias's a sum."""
    torch.manual_seed(0)
    build, shape = CONVS[kind]
    layer, x = build(), torch.randn(shape)
    dy = torch.randn_like(layer(x))
    recipe = {"weight": "E4M3", "activation": "E3M4", "gradient": "E5M2"}
    with quantize_model(nn.Sequential(layer), recipe, compute="float32"):
        found = run(layer, x, dy)
    # The plain layer in float64, given rounded tensors, has the same products.
    twin = build().double()
    twin.load_state_dict(layer.state_dict())
    padded = kind in ("same", "circular")
    rounded_x = tensor_wise(x, "E3M4")
    twin.weight.data = tensor_wise(layer.weight.detach(), "E4M3")
    y, dx, dw, _ = run(twin, rounded_x, tensor_wise(dy, "E5M2"))
    assert close(found[0], y)
    assert close(found[1], dx)
    assert close(found[2], dw)
    if layer.bias is not None:
        axes = [i for i in range(dy.dim()) if i != dy.dim() - 1 - SPATIAL.get(kind, 2)]
        assert close(found[3], dy.double().sum(axes))
    assert padded == (kind in ("same", "circular"))


@pytest.mark.parametrize("way", ["channel", "MXFP4", "NVFP4"])
def test_scales_lie_along_the_reduction(way):
    """A channel's or block's elements are those that a product sums over."""
    torch.manual_seed(0)
    layer = nn.Conv2d(40, 36, 3, padding=1)
    with torch.no_grad():
        layer.weight.mul_(torch.randn(36, 40, 1, 1).exp())
    x = torch.randn(3, 40, 7, 7) * torch.randn(3, 40, 1, 1).exp()
    dy = torch.randn(3, 36, 7, 7) * torch.randn(3, 36, 1, 1).exp()
    cast = {"format": "E3M4", "scaling": "channel"} if way == "channel" else way
    recipe = dict.fromkeys(("weight", "activation", "gradient"), cast)
    with quantize_model(nn.Sequential(layer), recipe, compute="float32"):
        found = run(layer, x, dy)

    def rounded(t, axes):
        return slices(t, "E3M4", axes) if way == "channel" else in_blocks(t, way, axes[0])

    w, bias = layer.weight.detach(), layer.bias.detach().double()
    y = functional.conv2d(rounded(x, (1, 2, 3)), rounded(w, (1, 2, 3)), bias, padding=1)
    dx = torch.nn.grad.conv2d_input(
        x.shape, rounded(w, (0, 2, 3)), rounded(dy, (1, 2, 3)), padding=1
    )
    dw = torch.nn.grad.conv2d_weight(
        rounded(x, (3, 2, 0)), w.shape, rounded(dy, (3, 2, 0)), padding=1
    )
    assert close(found[0], y, 1e-5)
    assert close(found[1], dx, 1e-5)
    assert close(found[2], dw, 1e-5)


def test_large_formats_do_not_overflow():
    """E7M0 reaches 2^64: the sum of its squares is beyond float32, and is kept below it."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 12, 3), torch.randn(4, 8, 9, 9)
    with quantize_model(nn.Sequential(layer), "E7M0"):
        recipe = dict.fromkeys(("weight", "activation", "gradient"), "E7M0")
    with quantize_model(nn.Sequential(layer), recipe):
        y, dx, dw, _ = run(layer, x, torch.randn(4, 12, 7, 7))
    assert all(bool(t.isfinite().all()) and float(t.abs().max()) > 0 for t in (y, dx, dw))


@pytest.mark.parametrize(
    ("cast", "message"),
    [
        ({"format": "E4M3", "scaling": "channel"}, "channel scaling needs groups=1"),
        ({"format": "E4M3", "hadamard": 16}, "a Hadamard transform needs a product"),
    ],
)
def test_what_a_convolution_cannot_take(cast, message):
    """It is refused when the model is quantized, by the layer's name."""
    with pytest.raises(BadInput, match=f"layer 0 is Conv2d.*{message}"):
        quantize_model(
            nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()),
            {"layers": {"0": {"weight": cast}}},
        )


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("scaling", ["tensor", "none"])
def test_transposed_convolutions(name, scaling):
    """They are convolutions with operands of their own, and axes the other way about."""
    build, shape = CONVOLUTIONS[name]
    model, x = nn.Sequential(build()), torch.randn(shape, requires_grad=True)
    module = model[0]
    cast = {"format": "E3M4", "scaling": scaling}
    scale = "amax" if scaling == "tensor" else None
    plain = functional.conv_transpose1d if x.dim() < 4 else functional.conv_transpose2d
    own = module.stride, module.padding, module.output_padding, module.groups
    a, w = (altcore.fake_quantize(t, "E3M4", scale=scale) for t in (x, module.weight))
    y = plain(a, w, None, *own)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, module.weight), altcore.fake_quantize(g, "E3M4", scale))
    with quantize_in_float32(model, dict.fromkeys(("weight", "activation", "gradient"), cast)):
        found = model(x)
        grads = torch.autograd.grad(found, (x, module.weight), g)
    shape = (-1, *(1,) * (y.dim() - (2 if x.dim() != 2 else 1)))
    torch.testing.assert_close(found - module.bias.reshape(shape), y, rtol=1e-4, atol=1e-5)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_channel_scales_of_a_transposed_convolution():
    """Each output channel has the scale of its own weights, along axis 1."""
    model, x = nn.Sequential(nn.ConvTranspose1d(3, 4, 2, bias=False)), torch.randn(2, 3, 5)
    w = model[0].weight
    with torch.no_grad():
        w.mul_(torch.tensor([1.0, 8.0, 64.0, 512.0])[None, :, None])
    scales = w.detach().abs().amax((0, 2), keepdim=True) / altcore.get_format("E3M4").max
    expected = functional.conv_transpose1d(x, altcore.fake_quantize(w, "E3M4", scale=scales))
    cast = {"format": "E3M4", "scaling": "channel"}
    with quantize_in_float32(model, {"weight": cast}):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [False, True])
def test_a_transposed_convolution_whose_weight_is_computed(stored):
    """A parametrization's result is met, whether or not its own parameters are stored."""
    module = nn.utils.parametrizations.weight_norm(nn.ConvTranspose1d(3, 4, 2, bias=False))
    x = torch.randn(2, 3, 5)
    recipe = E3M4_OPERANDS | ({"stored_weight": "E3M4"} if stored else {})
    with quantize_in_float32(nn.Sequential(module), recipe) as q:
        y = module(x)
        y.sum().backward()
        assert not [row.layer for row in q.coverage().rows if row.is_missed]
        expected = functional.conv_transpose1d(rounded(x), rounded(module.weight))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
