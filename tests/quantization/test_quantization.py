"""Quantization in a model: products against a straightforward reference, and taking it all back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.numerics import round_to_grid, scale_of
from altcore.recipes import PRODUCT_OPERANDS, named

SIX = dict(zip(PRODUCT_OPERANDS, ("E4M3", "E5M2", "E2M5", "E3M4", "E6M1", "E4M1"), strict=True))
"""Six operands in six formats."""


@pytest.fixture
def draw():
    """Return a function that draws normal tensors, always the same ones."""
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator)


def only(casts):
    """A recipe for layer 0 alone."""
    return {"layers": {"0": casts}}


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


def model_of(draw, inner=7, outer=5, bias=True):
    """Two Linears with weights of some spread."""
    model = nn.Sequential(nn.Linear(inner, outer, bias=bias), nn.Linear(outer, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(*p.shape) * 0.3)
    return model


# ------------------------------------------------------------------------------ products


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


# ---------------------------------------------------------------------- bfloat16 products


def bfloat16_ulp(x):
    """The distance of neighbouring bfloat16 values at ``x``."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x.abs())[1] - 8)


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


# ------------------------------------------------------------------------ other operands


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


class Table(nn.Module):
    """Adds its weight, as position tables do."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self, x):
        return x + self.weight.view(1, *self.weight.shape)


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


# ------------------------------------------------------------------------ delayed scaling


@pytest.mark.parametrize("module", ["embedding", "linear"])
def test_delayed_scaling_is_the_largest_of_the_last_16(draw, module):
    """Recipe original: max of the amax of the last 16 training forwards, times 1.01.

    The first forward has its own amax. Forwards in evaluation move nothing.
    """
    fmt = get_format("E4M3")
    model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        model[1].bias.zero_()
    quantize_model(model, named("original", fmt))
    layer = model[0] if module == "embedding" else model[1]
    probe = torch.arange(6) if module == "embedding" else torch.eye(6)
    seen = []
    for step in range(40):
        with torch.no_grad():
            size = 1 + (step % 23) / 4 if step != 20 else 40.0
            layer.weight.copy_(draw(6, 6) * size)
        largest = layer.weight.detach().abs().max()
        s, r = scale_of(torch.stack(seen[-16:] or [largest]).max(), fmt, margin=1.01)
        expected = round_to_grid(layer.weight.detach(), fmt, r=r) * s
        if module == "linear":
            expected = expected.T
        layer.eval()
        with torch.no_grad():
            assert torch.equal(layer(probe), expected), "evaluation"
        layer.train()
        assert torch.equal(layer(probe).detach(), expected), step
        seen.append(largest)


def test_delayed_scaling_can_overflow_and_counts_it(draw):
    """A tensor that has grown beyond its history saturates; amax scaling cannot, and says so."""
    model = model_of(draw)
    recipe = only({"weight": {"format": "E4M3", "scaling": "delayed"}, "activation": "E4M3"})
    q = quantize_model(model, recipe)
    q.begin_step(1)
    model(draw(3, 7))
    with torch.no_grad():
        model[0].weight *= 8
    q.begin_step(2)
    model(draw(3, 7))
    rows = {row["operand"]: row for row in q.stats()}
    assert rows["weight@fwd"]["overflow"] > 0
    assert rows["weight@fwd"]["elements"] == 35
    assert rows["activation@fwd"]["overflow"] is None
    over, all_of_them = rows["weight@fwd"]["overflow"], rows["weight@fwd"]["elements"]
    assert float(q.counters.met_rates()["overflow_rate"]) == over / all_of_them


# ----------------------------------------------------------------------- stochastic bits


def test_random_bits_are_a_function_of_where_they_are_used(draw):
    """Another step, call, layer or seed has others; the same place has the same; evaluation too."""
    cast = {"format": "E2M1", "rounding": "stochastic"}

    def outputs(seed, steps):
        model = nn.Sequential(*(nn.Linear(50, n, bias=False) for n in (50, 50, 2)))
        with torch.no_grad():
            for layer in model:
                layer.weight.copy_(
                    torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight)
                )
        q = quantize_model(model, {"weight": cast, "skip": ["2"]}, seed=seed)
        eye, found = torch.eye(50), {}
        for step in steps:
            q.begin_step(step)
            for call in (0, 1):
                for layer in (0, 1):
                    found[step, call, layer] = model[layer](eye).detach()
        model.eval()
        found["eval"] = model[0](eye)
        assert torch.equal(found["eval"], model[0](eye))
        return found

    one, again, other = outputs(0, (1, 2)), outputs(0, (1, 2)), outputs(1, (1, 2))
    for key, value in one.items():
        assert torch.equal(value, again[key])
        assert not torch.equal(value, other[key])
    values = list(one.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


def test_in_a_loop_of_ones_own_store_moves_the_bits_on(draw):
    """Nobody there says which step it is: each call of store is one."""
    model = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 2))
    q = quantize_model(model, only({"weight": {"format": "E2M1", "rounding": "stochastic"}}))
    model.eval()
    eye = torch.eye(50)
    first = model[0](eye)
    assert torch.equal(model[0](eye), first)
    q.store()
    assert not torch.equal(model[0](eye), first)


# ------------------------------------------------------------------- leaving things alone


class Tied(nn.Module):
    """An embedding whose weight is the head's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.inner = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.inner(self.embed(ids))))


def learn(model, steps=4, q=None):
    """Train a little; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(20).reshape(4, 5) % 10
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(model(ids).flatten(0, 1), (ids + 1).flatten() % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if q is not None:
            q.store(optimizer)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "recipe", [{}, {"weight": "none", "activation": None}, named("pure", None)]
)
def test_a_recipe_of_nothing_changes_nothing(recipe):
    """Losses and weights are bit for bit those of the plain model."""
    plain, model = Tied(), Tied()
    q = quantize_model(model, recipe)
    assert learn(plain) == learn(model, q=q)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    )
    assert q.stats() == []


def test_off_is_the_plain_model(draw):
    """Within it the outputs are bit for bit the plain ones, and nothing is counted or moved."""
    model = Tied()
    plain = copy.deepcopy(model)
    q = quantize_model(model, named("original", get_format("E4M3")))
    ids = torch.arange(10)[None]
    q.begin_step(1)
    with q.off():
        assert torch.equal(model(ids), plain(ids))
        with q.off():
            pass
        assert torch.equal(model(ids), plain(ids)), "it can be nested"
    assert int(q.counters.counts.sum()) == 0
    assert all(x.history is None for x in q.quantizers)
    assert not torch.equal(model(ids), plain(ids))


EVERY_ROLE = {
    "weight": "E4M3",
    "activation": "E4M3",
    "gradient": "E5M2",
    "stored_weight": "E4M3",
    "layers": {"<any>": {"weight_gradient": "E4M3", "weight": "E4M3"}},
}


def test_remove_takes_everything_back():
    """Forwards, hooks and types are as before; keys never changed; stored values stay."""
    model = Tied()
    keys, types = list(model.state_dict()), [type(m) for m in model.modules()]
    ids = torch.arange(10)[None]
    q = quantize_model(model, EVERY_ROLE)
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == types
    assert isinstance(model.head, nn.Linear)
    assert isinstance(model.head.weight, nn.Parameter)
    learn(model, q=q)
    values = {k: v.clone() for k, v in model.state_dict().items()}
    q.remove()
    assert list(model.state_dict()) == keys
    assert all("forward" not in vars(m) for m in model.modules())
    assert all(not p._backward_hooks for p in model.parameters())
    assert all(not m._forward_hooks for m in model.modules())
    plain = Tied()
    plain.load_state_dict(values)
    assert torch.equal(plain(ids), model(ids))
    for m in (plain, model):
        m.zero_grad()
        m(ids).sum().backward()
        assert m.head.weight is m.embed.weight
    assert torch.equal(plain.inner.weight.grad, model.inner.weight.grad)
    q.remove()


def test_remove_puts_back_a_forward_that_was_somebody_elses():
    """A module whose instance had a forward of its own has it again, and it was used meanwhile."""
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 2))
    calls = []
    own = model[0].forward

    def theirs(ids):
        calls.append(1)
        return own(ids)

    model[0].forward = theirs
    with quantize_model(model, {"layers": {"0": {"weight": "E4M3"}}}):
        assert model[0].forward is not theirs
        model(torch.arange(4))
    assert model[0].forward is theirs
    assert calls == [1]


def test_as_a_context_it_ends_with_the_block():
    """After an error too."""
    model, is_inside = Tied(), []

    def fail():
        with quantize_model(model, "E4M3"):
            is_inside.append("forward" in vars(model.inner))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert is_inside == [True]
    assert all("forward" not in vars(m) for m in model.modules())


def test_a_checkpoint_of_the_plain_model_loads_into_the_quantized_one():
    """And the other way round: there is nothing in a state dict but the model's own."""
    plain, model = Tied(), Tied()
    learn(plain)
    quantize_model(model, EVERY_ROLE)
    model.load_state_dict(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.embed.weight, model.embed.weight)


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


# ------------------------------------------------------------------------ people's loops


@pytest.mark.parametrize("recipe", ["E4M3", get_format("E3M4"), named("pure", get_format("E3M4"))])
def test_a_loop_of_ones_own(recipe):
    """Quantize, train, store, look: the loss falls as that of the plain model does."""
    model, plain = Tied(), Tied()
    with quantize_model(model, recipe) as q:
        losses = learn(model, 60, q)
        rows = q.stats()
    assert rows
    assert all(row["elements"] > 0 for row in rows if row["operand"] == "activation@fwd")
    assert losses[-1] < 0.5 * losses[0]
    # Stored weights lose updates; float32 masters do not.
    assert losses[-1] < learn(plain, 60)[-1] + (0.6 if q.recipe.name == "pure" else 0.15)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("E4M33", r"unknown format|E4M33"),
        ("pure", "the recipe pure needs a format: give one, as format='E4M3'"),
        ({"layers": {"nothing": {"weight": "E4M3"}}}, "matches no layer"),
        ("missing.yaml", "missing.yaml"),
    ],
)
def test_unknown_recipes_are_refused_before_anything_is_touched(recipe, says):
    """The model is as it was."""
    model = Tied()
    with pytest.raises(BadInput, match=says):
        quantize_model(model, recipe)
    assert all("forward" not in vars(m) for m in model.modules())
    with pytest.raises(BadInput, match="compute: 'float16' is none of auto, float32"):
        quantize_model(model, "E4M3", compute="float16")


def test_a_recipe_from_a_file(tmp_path):
    """The same form as on the command line."""
    (tmp_path / "mine.yaml").write_text("weight: E4M3\nskip: ['<head>']\n")
    for path in (tmp_path / "mine.yaml", str(tmp_path / "mine.yaml")):
        model = Tied()
        q = quantize_model(model, path)
        assert (q.recipe.name, set(q.layers)) == ("mine", {"inner"})


# -------------------------------------------------------------------------------- shares


def hand_computed():
    """Embedding (256, 8), Linear (8, 12), head (12, 256), with biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 256))


EMBED, INNER, HEAD = 256 * 8, 8 * 12, 12 * 256
TOTAL = EMBED + INNER + 12 + HEAD + 256


@pytest.mark.parametrize(
    ("recipe", "parameters", "flops"),
    [
        ("master", INNER, INNER / (INNER + HEAD)),
        ("pure", EMBED + INNER + HEAD, INNER / (INNER + HEAD)),
        ("original", EMBED + INNER + HEAD, 0.0),
        ({"weight": "E4M3", "activation@fwd": "E4M3"}, INNER + HEAD, 1 / 3),
        ({"activation": "E4M3", "gradient": "E4M3"}, 0, 1 / 3),
        ({"weight": "E4M3", "activation": "E4M3", "gradient": "E4M3"}, INNER + HEAD, 1.0),
        ({"stored_weight": "E4M3", "skip": ["<embedding>"]}, INNER + HEAD, 0.0),
        ({}, 0, 0.0),
    ],
)
def test_shares_by_hand(start, recipe, parameters, flops):
    """Parameters on a grid, and FLOPs of products with both operands on one.

    Each Linear has three products of the same size here, since the embedding wants its gradient.
    """
    fmt = "E4M3" if isinstance(recipe, str) else "none"
    run = altcore.train(start.config(recipe=recipe, format=fmt, max_steps=1), model=hand_computed())
    assert run.summary["parameter_share"] == pytest.approx(parameters / TOTAL)
    assert run.summary["flop_share"] == pytest.approx(flops)


def test_operands_of_unequal_roles_do_not_count_as_quantized_flops():
    """A product counts only when both of its operands are on a grid."""
    model = model_of(lambda *shape: torch.ones(*shape))
    q = quantize_model(model, only({"weight": "E4M3"}))
    assert q.count_flops(lambda: model(torch.ones(2, 7)).sum().backward()) == 0
    shares = q.coverage().flop_share_by_operand
    # The first layer has no product for its input's gradient: two of 35, and three of 15.
    assert shares == pytest.approx({"weight@fwd": 35 / (2 * 35 + 3 * 15)})
