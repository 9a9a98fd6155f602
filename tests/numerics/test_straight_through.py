"""Derivatives of fake_quantize, of any order, and torch's function transforms of it."""

import importlib
from functools import partial

import pytest
import torch
from format_checks import HAS_VMAP, PATHS, assert_same, needs_vmap, path
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from altcore import encode, fake_quantize, neighbours, stiffness, ulp_distance
from altcore.errors import BadInput
from altcore.formats import float_format
from altcore.numerics.resolve import resolve_format

X = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)) * 3
ROWS = torch.rand(4, 1, generator=torch.Generator().manual_seed(1)) + 0.1
WIDE = float_format("E9M0", 9, 0)
WAYS = {
    "plain": partial(fake_quantize, fmt="E4M3"),
    "scaled": partial(fake_quantize, fmt="E2M1", scale=0.3),
    "by row": partial(fake_quantize, fmt="E3M4", scale=ROWS),
    "amax": partial(fake_quantize, fmt="E2M1", scale="amax"),
    "clipped": partial(fake_quantize, fmt="E2M1", scale=0.3, gradient="clipped"),
    "clipped rows": partial(fake_quantize, fmt="INT4", scale=ROWS / 3, gradient="clipped"),
    "clipped table": partial(fake_quantize, fmt="NF4", scale=2, gradient="clipped"),
    "by logarithm": partial(fake_quantize, fmt="E2M1", rounding="log-nearest"),
    "at random": partial(fake_quantize, fmt="E2M1", rounding="stochastic", key=3),
    "at random, key": partial(
        fake_quantize, fmt="NF4", rounding="stochastic", key=torch.tensor(3), scale="amax"
    ),
    "to infinity": partial(fake_quantize, fmt="E5M2", scale=1e-4, overflow="inf"),
    "wide": partial(fake_quantize, fmt=WIDE, scale=0.7),
    "MXFP4": partial(fake_quantize, fmt="MXFP4"),
    "MXFP4 columns": partial(
        fake_quantize, fmt="MXFP4-rceil", axis=0, rounding="stochastic", key=5
    ),
    "NVFP4": partial(fake_quantize, fmt="NVFP4", axis=-2),
    "squares": partial(fake_quantize, fmt="NVFP4-square"),
}
ways = pytest.mark.parametrize("f", WAYS.values(), ids=WAYS)


@ways
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_under_transforms(f, dtype):
    """Are those of the plain call bit for bit, and those of each slice's own under vmap."""
    x = X.to(dtype)
    with path("compiled"):
        whole, slices = f(x), torch.stack([f(part) for part in x])
    for way in PATHS:
        with path(way):
            assert_same(f(x), whole)
            assert_same(f(x.clone().requires_grad_()).detach(), whole)
            assert_same(jvp(f, (x,), (x,))[0], whole)
            assert_same(vjp(f, x)[0], whole)
            if not HAS_VMAP:
                continue
            assert_same(vmap(f)(x), slices)
            assert_same(vmap(f, in_dims=2, out_dims=1)(x.permute(1, 2, 0)).movedim(1, 0), slices)
            assert_same(vmap(vmap(f))(x[None]), slices[None])
            assert_same(vmap(lambda t: vjp(f, t)[0])(x), slices)
            assert_same(vmap(lambda t: jvp(f, (t,), (t,))[0])(x), slices)


def smooth(f, x):
    """What ``f`` comes to for its derivatives at ``x``: 1 or 0 times it, and what is missing."""
    slope = torch.ones_like(x)
    if f.keywords.get("gradient") == "clipped":
        low, high = {"E2M1": (-6, 6), "INT4": (-8, 7), "NF4": (-1, 1)}[f.keywords["fmt"]]
        y = x / f.keywords["scale"]
        slope = ((low <= y) & (y <= high)).to(x.dtype)
        assert 0 < slope.mean() < 1
    shift = f(x) - slope * x
    return lambda t: slope * t + shift


def loss(f, t):
    return (f(t).square() * t.sin()).mean()


def twice(f, t):
    """A double backward pass."""
    t = t.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(t), t, create_graph=True)
    (second,) = torch.autograd.grad((first * t.detach().cos()).sum(), t)
    return torch.stack([first.detach(), second])


def dual(f, t):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(t, t.sin()))).tangent


DERIVATIVES = {
    "grad": lambda f, t: grad(f)(t),
    "jvp": lambda f, t: jvp(f, (t,), (t.sin(),))[1],
    "dual numbers": dual,
    "jacrev": lambda f, t: jacrev(f)(t),
    "jacfwd": lambda f, t: jacfwd(f)(t),
    "hessian": lambda f, t: hessian(f)(t),
    "reverse over reverse": lambda f, t: jacrev(jacrev(f))(t),
    "forward over forward": lambda f, t: jacfwd(jacfwd(f))(t),
    "hvp": lambda f, t: jvp(grad(f), (t,), (t.sin(),))[1],
    "third": lambda f, t: grad(lambda u: grad(lambda v: grad(f)(v).sin().sum())(u).sum())(t),
    "double backward": twice,
    "functional hessian": torch.autograd.functional.hessian,
    "vectorized": partial(torch.autograd.functional.hessian, vectorize=True),
}


@ways
@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives(f, derivative):
    """Of any order, in either mode: those of a function that is 1 or 0 times its argument."""
    x = X[0].double().clamp(-6, 6)
    wanted = derivative(partial(loss, smooth(f, x)), x)
    torch.testing.assert_close(derivative(partial(loss, f), x), wanted)


@needs_vmap
@ways
def test_a_gradient_for_each_slice(f):
    """As one after another would have it, bit for bit."""
    for x in (X, X.bfloat16()):
        assert_same(vmap(grad(partial(loss, f)))(x), torch.stack([backward(f, t) for t in x]))


def backward(f, t):
    t = t.clone().requires_grad_()
    loss(f, t).backward()
    return t.grad


@needs_vmap
def test_a_scale_and_a_key_for_each():
    """Their own under vmap, beside the tensor or alone."""
    scales, keys = torch.tensor([0.1, 0.5, 2.0]), torch.tensor([1, 2, 3])
    x = X[0, 0]
    by_scale = [fake_quantize(x, "E2M1", s) for s in scales]
    assert_same(vmap(lambda s: fake_quantize(x, "E2M1", s))(scales), torch.stack(by_scale))
    for fmt in ("E2M1", "NF4", "MXFP4"):

        def drawn(t, key, fmt=fmt):
            return fake_quantize(t, fmt, rounding="stochastic", key=key)

        assert_same(vmap(drawn, (None, 0))(x, keys), torch.stack([drawn(x, k) for k in keys]))
        both = torch.stack([drawn(t, k) for t, k in zip(X[:, 0], keys, strict=True)])
        assert_same(vmap(drawn)(X[:, 0], keys), both)


def test_what_vmap_cannot_do():
    """Is said in altcore's words: an error that depends on a value."""
    f = partial(fake_quantize, fmt="E4M3", overflow="raise")
    assert_same(jvp(f, (X,), (X,))[0], f(X))
    with pytest.raises(BadInput, match=r"^overflow: raise does not work under vmap"):
        vmap(f)(X)


def test_a_torch_without_vmap_is_told_of(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Batching rule not implemented for aten::view.dtype")

    module = importlib.import_module("altcore.numerics.straight_through")
    monkeypatch.setattr(module, "fake_round", refuse)
    with pytest.raises(BadInput, match=r"^vmap over a rounding needs torch 2\.13 or newer"):
        vmap(WAYS["plain"])(X)


def test_the_result_may_be_changed_in_place():
    """And what is kept for the derivative stays."""
    x = (X * 10).requires_grad_()
    y = fake_quantize(x, "E2M1", gradient="clipped")
    y.mul_(2).sub_(1)
    y.sum().backward()
    assert torch.equal(x.grad, 2.0 * (X.abs() * 10 <= 6))


@pytest.mark.slow
@ways
@pytest.mark.parametrize("differentiated", [False, True])
def test_compiled_whole(f, differentiated):
    """By torch.compile, without a break in the graph."""
    given = {**f.keywords, "fmt": resolve_format(f.keywords["fmt"])}
    x = X[0].clone().requires_grad_(differentiated)
    torch._dynamo.reset()
    compiled = torch.compile(partial(fake_quantize, **given), backend="aot_eager", fullgraph=True)
    assert_same(compiled(x).detach(), f(X[0]))
    if differentiated:
        compiled(x).backward(X[1])
        wanted = torch.autograd.grad(f(x), x, X[1])[0]
        assert_same(x.grad, wanted)


@pytest.mark.parametrize(
    "f",
    [
        partial(fake_quantize, scale=0.3, gradient="clipped"),
        neighbours,
        stiffness,
        lambda x, fmt: ulp_distance(x.round(), x.round() + 1, fmt),
        lambda x, fmt: encode(x, fmt).float(),
    ],
    ids=["clipped", "neighbours", "stiffness", "ulp distance", "codes"],
)
def test_a_format_that_nobody_has_used_is_compiled_whole(f):
    """Its values are listed at their first use, behind a lock before Python 3.12."""
    x = X[0].clone().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(f, backend="eager", fullgraph=True)
    found, wanted = (g(x, float_format("NEW", 4, 3, specials="fn")) for g in (compiled, f))
    for one, other in zip(
        *(y if isinstance(y, tuple) else (y,) for y in (found, wanted)), strict=True
    ):
        assert_same(one.detach(), other.detach())


@pytest.mark.slow
def test_transforms_within_a_compiled_function():
    """Are refused: torch would give a derivative of 0, without a word."""
    f = partial(fake_quantize, fmt=resolve_format("E4M3"))
    for transformed in (grad(partial(loss, f)), vmap(f), lambda t: jvp(f, (t,), (t,))[1]):
        for whole in (True, False):
            torch._dynamo.reset()
            with pytest.raises((torch._dynamo.exc.Unsupported, BadInput)):
                torch.compile(transformed, backend="eager", fullgraph=whole)(X[0])
