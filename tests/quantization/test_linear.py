"""A linear layer's three products, against exact arithmetic on rounded operands."""

import copy

import pytest
import torch
from helpers_quantization import E2M1_EVERYWHERE, model_of, only
from torch import nn

import altcore
from altcore import quantize_model
from altcore.recipes import PRODUCT_OPERANDS

SIX = dict(zip(PRODUCT_OPERANDS, ("E4M3", "E5M2", "E2M5", "E3M4", "E6M1", "E4M1"), strict=True))
"""Six operands in six formats."""


def quantized(t, fmt):
    """Exact grid values and scale in float64; a plain tensor where there is no format."""
    if fmt is None:
        return t.detach().double(), 1.0
    scaling = "none" if fmt == "BF16" else "tensor"
    q, s = altcore.quantize(t, fmt, scaling=scaling)
    return q.double(), s.double()


class Reference:
    """A linear layer's results and gradients in float64, each operand quantized by itself.

    ``bound_...`` is what float32 may add in summing: (K + 8) * 2^-24 * sum |a||b|.
    """

    def __init__(self, x, w, bias, dy, formats):
        flat, g = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        at = {
            o: quantized({"w": w, "a": flat, "g": g}[o[0]], formats.get(o))
            for o in PRODUCT_OPERANDS
        }
        y, self.bound_y = self.product(at["activation@fwd"], at["weight@fwd"], lambda a, b: a @ b.T)
        if bias is not None:
            y = y + bias.detach().double()
            self.bound_y = self.bound_y + 2**-23 * bias.detach().double().abs()
        self.y = y.reshape(dy.shape)
        self.bound_y = self.bound_y.reshape(dy.shape)
        dx, bound = self.product(at["gradient@dgrad"], at["weight@dgrad"], lambda a, b: a @ b)
        self.dx, self.bound_dx = dx.reshape(x.shape), bound.reshape(x.shape)
        self.dw, self.bound_dw = self.product(
            at["gradient@wgrad"], at["activation@wgrad"], lambda a, b: a.T @ b
        )
        self.db = g.double().sum(0)

    def product(self, a, b, multiply):
        (qa, sa), (qb, sb) = a, b
        k = qa.numel() * qb.numel() // max(1, multiply(qa, qb).numel())
        k = round(k**0.5)
        return multiply(qa, qb) * sa * sb, (k + 8) * 2**-24 * multiply(qa.abs(), qb.abs()) * sa * sb


def within(found, expected, bound):
    """Whether every element lies within its bound."""
    return bool(((found.double() - expected).abs() <= bound).all())


def run_layer(layer, x, dy):
    """Forward and backward; returns y and the three gradients."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad


def bfloat16_ulp(x):
    """The distance of neighbouring bfloat16 values at ``x``."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x.abs())[1] - 8)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(("inner", "outer"), [(0, 4), (4, 0)])
def test_layers_of_no_features(inner, outer):
    """They are legal in torch, and here."""
    layer, x = nn.Linear(inner, outer), torch.randn(3, inner, requires_grad=True)
    with quantize_model(nn.Sequential(layer), E2M1_EVERYWHERE):
        y = layer(x)
        y.sum().backward()
    assert y.shape == (3, outer)
    assert x.grad.shape == x.shape
    assert layer.weight.grad.shape == (outer, inner)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv1d(4, 4, 3, padding=1)])
def test_what_follows_may_work_in_place(layer):
    """``ReLU(inplace=True)`` behind a quantized layer, as ResNets have it."""
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    twin = nn.Sequential(copy.deepcopy(layer), nn.ReLU())
    found = []
    for each in (model, twin):
        torch.manual_seed(0)
        x = torch.randn(2, 4, 8, requires_grad=True)
        with quantize_model(each, {"weight": "E4M3", "activation": "E4M3", "gradient": "E5M2"}):
            each(x).square().sum().backward()
        found.append((x.grad, each[0].weight.grad))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


class Squared(nn.Bilinear):
    """Of one input."""

    def forward(self, x):
        return super().forward(x, x)


DOUBLES = {
    "linear": (nn.Linear(6, 4), (50, 6)),
    "convolution": (nn.Conv2d(3, 4, 3), (2, 3, 7, 7)),
    "transposed": (nn.ConvTranspose1d(3, 4, 3), (5, 3, 9)),
    "bilinear": (Squared(6, 6, 4), (50, 6)),
    "recurrent": (nn.LSTMCell(6, 4), (50, 6)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), (5, 3, 8)),
}


@pytest.mark.parametrize("size", [1.0, 1e39])
@pytest.mark.parametrize("kind", DOUBLES)
def test_in_float64_nothing_is_computed_in_fewer_bits(kind, size):
    """Weights on their grid make torch's own layer: the biases' gradients are its, too."""
    torch.manual_seed(0)
    layer, x = DOUBLES[kind][0].double(), torch.randn(DOUBLES[kind][1], dtype=torch.float64)
    for p in layer.parameters():
        p.data = torch.randint(-4, 5, p.shape).double()
    found = []
    for recipe in ({}, {"weight": {"format": "E4M3", "scaling": "none"}}):
        given = x.clone().requires_grad_()
        with quantize_model(nn.Sequential(layer), recipe, head=None, compute="float32"):
            y = layer(given)
            y = y if isinstance(y, torch.Tensor) else y[0]
            grads = torch.autograd.grad(y.sin().sum() * size, (given, *layer.parameters()))
        found.append((y, *grads))
    for plain, quantized in zip(*found, strict=True):
        assert (plain - quantized).abs().max() <= 1e-12 * plain.abs().max()


@pytest.mark.parametrize("compute", ["float32", "exact-bfloat16", "exact-float8"])
def test_in_float64_products_have_its_bits(compute):
    """However few the operands need, and wherever float32 would be multiplied in fewer."""
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16, bias=False).double(), torch.randn(16, 32, dtype=torch.float64)
    pairs = [altcore.quantize(t.detach(), "E4M3") for t in (x, layer.weight)]
    a, w = (q * s for q, s in pairs)
    recipe = {"weight": "E4M3", "activation": "E4M3"}
    with quantize_model(nn.Sequential(layer), recipe, head=None, compute=compute):
        torch.testing.assert_close(layer(x), a @ w.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(11,), (2, 5), ()])
@pytest.mark.parametrize(
    "formats",
    [
        SIX,
        dict.fromkeys(PRODUCT_OPERANDS, "E4M3"),
        dict.fromkeys(PRODUCT_OPERANDS, "E7M0"),
        dict.fromkeys(PRODUCT_OPERANDS, "BF16"),
        dict.fromkeys(PRODUCT_OPERANDS, "FP16"),
        dict.fromkeys(PRODUCT_OPERANDS, "E0M7"),
        *({operand: "E2M1"} for operand in PRODUCT_OPERANDS),
    ],
    ids=lambda f: " ".join(f) if len(f) == 1 else "-".join(dict.fromkeys(f.values())),
)
def test_the_three_products(draw, formats, shape, bias):
    """y, dx and dw are the products of operands quantized one by one, scales on the output.

    The bias and its gradient are untouched: that is no product.
    """
    model = model_of(draw, bias=bias)
    x, dy = draw(*shape, 7) * 1.7, draw(*shape, 5) * 1e-3
    quantize_model(model, only(formats), compute="float32")
    y, dx, dw, db = run_layer(model[0], x, dy)
    expected = Reference(x, model[0].weight, model[0].bias, dy, formats)
    assert within(y, expected.y, expected.bound_y)
    assert within(dx, expected.dx, expected.bound_dx)
    assert within(dw, expected.dw, expected.bound_dw)
    if bias:
        torch.testing.assert_close(db.double(), expected.db, rtol=1e-5, atol=1e-9)
    plain = Reference(x, model[0].weight, model[0].bias, dy, {})
    for which, operands in (("y", "fwd"), ("dx", "dgrad"), ("dw", "wgrad")):
        is_touched = any(o.endswith(operands) for o in formats)
        same = within(
            getattr(plain, which), getattr(expected, which), getattr(plain, f"bound_{which}")
        )
        assert same != is_touched, "the test must tell a quantized product from a plain one"


def test_products_at_the_top_of_e7m0_do_not_overflow(draw):
    """Every grid value is 2^64, so that a plain float32 product of 512 of them would be inf."""
    model = nn.Sequential(nn.Linear(512, 4, bias=False), nn.Linear(4, 1))
    x = torch.full((3, 512), 1e15)
    with torch.no_grad():
        model[0].weight.fill_(-2e-14)
    quantize_model(model, only(dict.fromkeys(PRODUCT_OPERANDS, "E7M0")), compute="float32")
    y, dx, dw, _ = run_layer(model[0], x, torch.full((3, 4), 3e-15))
    torch.testing.assert_close(y, torch.full((3, 4), -2e-14 * 1e15 * 512), rtol=1e-5, atol=0)
    torch.testing.assert_close(dx, torch.full((3, 512), -2e-14 * 3e-15 * 4), rtol=1e-5, atol=0)
    torch.testing.assert_close(dw, torch.full((4, 512), 1e15 * 3e-15 * 3), rtol=1e-5, atol=0)


def test_a_wide_spread_in_e7m0(draw):
    """Values over the whole range at once: what is shifted out is far below the result."""
    model = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 1))
    x = torch.ldexp(draw(5, 64).sign(), torch.arange(64) - 40).float()
    formats = dict.fromkeys(PRODUCT_OPERANDS, "E7M0")
    quantize_model(model, only(formats), compute="float32")
    dy = draw(5, 4)
    y, dx, dw, _ = run_layer(model[0], x, dy)
    expected = Reference(x, model[0].weight, None, dy, formats)
    assert within(y, expected.y, expected.bound_y)
    assert within(dx, expected.dx, expected.bound_dx)
    assert within(dw, expected.dw, expected.bound_dw)


@pytest.mark.parametrize("frozen", ["x", "w", "both"])
def test_gradients_that_nobody_wants(draw, frozen):
    """Inputs and weights that need no gradient get none, and the others are right."""
    model = model_of(draw)
    quantize_model(model, only(SIX), compute="float32")
    x, dy = draw(4, 7), draw(4, 5)
    x.requires_grad_(frozen == "w")
    model[0].weight.requires_grad_(frozen == "x")
    model[0](x).backward(dy)
    expected = Reference(x, model[0].weight, model[0].bias, dy, SIX)
    assert (x.grad is None) == (frozen != "w")
    assert (model[0].weight.grad is None) == (frozen != "x")
    if frozen == "w":
        assert within(x.grad, expected.dx, expected.bound_dx)
    if frozen == "x":
        assert within(model[0].weight.grad, expected.dw, expected.bound_dw)


def test_zeros_nan_and_infinities(draw):
    """Zeros stay zeros; what is not finite is never hidden, and is counted."""
    model = model_of(draw)
    q = quantize_model(model, only({"activation": "E4M3"}))
    q.begin_step(1)
    assert torch.equal(model[0](torch.zeros(2, 7)), model[0].bias.expand(2, 5))
    assert int(q.counters.nonfinite()) == 0
    x = draw(2, 7)
    x[0, 3] = float("nan")
    assert model[0](x).isnan().any()
    assert int(q.counters.nonfinite()) == 1


def test_a_narrow_type_is_quantized_as_it_arrives(draw):
    """bfloat16 inputs and float64 ones give results of their own type, rounded once to the grid."""
    for dtype in (torch.bfloat16, torch.float64):
        model = model_of(draw, bias=False).to(dtype)
        x, dy = draw(4, 7).to(dtype), draw(4, 5).to(dtype)
        quantize_model(model, only(SIX), compute="float32")
        y, dx, dw, _ = run_layer(model[0], x, dy)
        assert y.dtype == dx.dtype == dw.dtype == dtype
        expected = Reference(x, model[0].weight, None, dy, SIX)
        slack = 2**-8 if dtype == torch.bfloat16 else 0
        for found, which in ((y, "y"), (dx, "dx"), (dw, "dw")):
            value, bound = getattr(expected, which), getattr(expected, f"bound_{which}")
            assert within(found, value, bound + slack * value.abs())


@pytest.mark.parametrize("scaling", ["tensor", "power-of-two"])
@pytest.mark.parametrize("fmt", ["E4M3", "E5M2", "E3M4", "E2M1"])
def test_bfloat16_products(draw, fmt, scaling):
    """Grid values are exact in bfloat16, and what is rounded to it is the output.

    torch rounds the unscaled output, and its scale comes after: under powers of two that is one
    rounding, half a ULP; under exact amax scales another half, of a ULP that the scale has made up
    to twice as large.
    """
    model = model_of(draw, 96, 40, bias=False)
    x, dy = draw(33, 96), draw(33, 40)
    cast = {"format": fmt, "scaling": scaling}
    quantize_model(model, only(dict.fromkeys(PRODUCT_OPERANDS, cast)), compute="bfloat16")

    def exact(t):
        q, s = altcore.quantize(t, fmt, scaling=scaling)
        return q.double() * s.double()

    a, b = exact(x), exact(model[0].weight)
    with torch.autocast("cpu", torch.bfloat16):
        y, dx, dw, _ = run_layer(model[0], x, dy.bfloat16())
    g = exact(dy.bfloat16())
    assert y.dtype == torch.bfloat16
    ulps = 1.5 if scaling == "tensor" else 0.5
    for found, left, right in ((y, a, b.T), (dx, g, b), (dw, g.T, a)):
        expected = left @ right
        bound = ulps * bfloat16_ulp(expected) + left.shape[1] * 2**-24 * (left.abs() @ right.abs())
        assert within(found, expected, bound * (1 + 2**-6))
        assert bfloat16_ulp(expected).max() < expected.abs().max() / 64


def test_formats_that_bfloat16_cannot_hold_keep_float32_products(draw):
    """FP16 has 11 significant bits: under compute bfloat16 its products stay in float32."""
    x, dy = draw(9, 7), draw(9, 5)
    formats = dict.fromkeys(PRODUCT_OPERANDS, "FP16")
    model = model_of(draw)
    quantize_model(model, only(formats), compute="bfloat16")
    _, dx, dw, _ = run_layer(model[0], x, dy.bfloat16())
    expected = Reference(x, model[0].weight, None, dy.bfloat16(), formats)
    assert within(dx, expected.dx, expected.bound_dx)
    assert within(dw, expected.dw, expected.bound_dw)
