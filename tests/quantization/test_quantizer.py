"""Scales, blocks and random bits of one operand, along each product's own reduction axis."""

import math

import pytest
import torch
from helpers_quantization import model_of, only
from torch import nn

import altcore
from altcore import BadInput, BlockFormat, get_format, quantize_model
from altcore.formats import float_format
from altcore.numerics import round_blocks, round_to_grid, scale_of, transform
from altcore.recipes import PRODUCT_OPERANDS, read_recipe

AXES = {o: 1 if o.endswith(("fwd", "dgrad")) else 0 for o in PRODUCT_OPERANDS} | {
    "weight@dgrad": 0,
    "gradient@dgrad": 1,
}
"""Of (tokens, features) and (out, in): where each operand's product sums."""


def test_the_values_of_a_float_format_are_not_listed():
    """A wide one has a million, and no recipe or rounding needs them."""
    fmt = float_format("WIDE", 8, 10)
    model = nn.Linear(2, 2)
    with quantize_model(model, {"weight": {"format": fmt, "scaling": "none"}, "gradient": fmt}):
        model(torch.randn(3, 2)).sum().backward()
    assert not {"code_values", "values"} & vars(fmt).keys()


def by_slices(x, axis, length, round_slice):
    """Round each slice of ``length`` elements along ``axis`` by itself; float64."""
    rows = x.movedim(axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    done = [torch.cat([round_slice(p) for p in row.split(length)]) for row in flat]
    return torch.stack(done).reshape(rows.shape).movedim(-1, axis)


def exact(x, fmt, **options):
    """A slice's values as one scale makes them, in float64."""
    q, s = altcore.quantize(x, fmt, **options)
    return q.double() * s.double()


def in_blocks_along(x, fmt, axis):
    """A block format's values, from a contiguous copy whose last axis is the one summed over."""
    made = round_blocks(x.movedim(axis, -1).contiguous(), get_format(fmt))
    values = made.values.double()
    return (values if made.scale is None else values * made.scale.double()).movedim(-1, axis)


def folded(x, fmt):
    """A block's values with its float32 scale in them, as they enter a product."""
    return exact(x, fmt).float().double()


WAYS = {
    "channel": (
        {"format": "E3M4", "scaling": "channel"},
        lambda x, axis: by_slices(x, axis, 10**6, lambda p: exact(p, "E3M4")),
    ),
    "channel, power of two": (
        {"format": "E4M3", "scaling": {"kind": "channel", "power_of_two": True}},
        lambda x, axis: by_slices(
            x, axis, 10**6, lambda p: exact(p, "E4M3", scaling="power-of-two")
        ),
    ),
    "block": (
        {"format": "E2M1", "scaling": {"kind": "block", "block": 8}},
        lambda x, axis: by_slices(x, axis, 8, lambda p: folded(p, "E2M1")),
    ),
    "MXFP8": ("MXFP8-E4M3", lambda x, axis: in_blocks_along(x, "MXFP8-E4M3", axis)),
    "MXFP4": ("MXFP4-ceil", lambda x, axis: in_blocks_along(x, "MXFP4-ceil", axis)),
    "NVFP4": ("NVFP4", lambda x, axis: in_blocks_along(x, "NVFP4", axis)),
}


def test_delayed_scaling_gets_over_an_infinity():
    """One bad step must not make the next sixteen NaN, nor the scale another kind of scale."""
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    bad = x.clone()
    bad[0, 0] = math.inf
    casts = {"activation": {"format": "E4M3", "scaling": "delayed"}}
    with quantize_model(nn.Sequential(layer), {"layers": {"0": casts}}) as q:
        layer(x)
        layer(bad)
        layer(bad * math.nan)
        assert layer(x / 8).isfinite().all()
        scale = float(q.quantizers[0].last_scale)
    assert scale == pytest.approx(float(x.abs().max()) / 448)


@pytest.mark.parametrize("module", ["embedding", "linear"])
def test_delayed_scaling_is_the_largest_of_the_last_16(draw, module):
    """Recipe original: max of the amax of the last 16 training forwards, times 1.01.

    The first forward has its own amax. Forwards in evaluation move nothing.
    """
    fmt = get_format("E4M3")
    model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6))
    with torch.no_grad():
        model[1].bias.zero_()
    quantize_model(model, read_recipe("original", fmt))
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


@pytest.mark.parametrize("way", WAYS)
def test_each_product_has_its_own_axis(way, draw_uneven):
    """Every operand is rounded along the axis its product sums over, from the unrounded tensor."""
    cast, rounded = WAYS[way]
    tokens, width, out = 40, 72, 24
    layer = nn.Linear(width, out)
    layer.weight.data = draw_uneven(out, width)
    x, dy = draw_uneven(tokens, width).requires_grad_(), draw_uneven(tokens, out)
    recipe = {"layers": {"0": dict.fromkeys(("weight", "activation", "gradient"), cast)}}
    with quantize_model(nn.Sequential(layer), recipe, compute="float32"):
        y = layer(x)
        y.backward(dy)
    tensors = {"w": layer.weight.detach(), "a": x.detach(), "g": dy}
    at = {o: rounded(tensors[o[0]], AXES[o]) for o in PRODUCT_OPERANDS}
    for found, a, b in (
        (y - layer.bias, at["activation@fwd"], at["weight@fwd"].T),
        (x.grad, at["gradient@dgrad"], at["weight@dgrad"]),
        (layer.weight.grad, at["gradient@wgrad"].T, at["activation@wgrad"]),
    ):
        bound = (a.shape[1] + 16) * 2**-23 * (a.abs() @ b.abs() + 1)
        assert bool(((found.double() - a @ b).abs() <= bound).all())


def test_square_blocks_serve_both_products(draw_uneven):
    """A weight in square blocks is rounded once: forward and backward see the same values."""
    layer = nn.Linear(48, 32)
    layer.weight.data = draw_uneven(32, 48)
    recipe = {"layers": {"0": {"weight": "NVFP4-square"}}}
    model = nn.Sequential(layer)
    with quantize_model(model, recipe, compute="float32") as q:
        assert [str(x.site) for x in q.quantizers] == ["0:weight@fwd"]
        x = torch.eye(48).requires_grad_()
        y = layer(x)
        seen = (y - layer.bias).detach().T
        y.sum().backward()
    torch.testing.assert_close(x.grad, seen.sum(0).expand(48, 48), rtol=1e-5, atol=1e-5)


def test_quantile_scale(draw_uneven):
    """The scale comes from the quantile: what lies above is clipped, and counted as overflow."""
    layer = nn.Linear(100, 50, bias=False)
    w = layer.weight.data = draw_uneven(50, 100)
    recipe = {
        "layers": {"0": {"weight": {"format": "E4M3", "scaling": {"quantile": 0.99}}}},
    }
    with quantize_model(nn.Sequential(layer), recipe) as q:
        seen = layer(torch.eye(100)).T
        row = next(r for r in q.stats() if r["operand"] == "weight@fwd")
    limit = w.abs().flatten().sort().values[math.ceil(0.99 * w.numel()) - 1]
    torch.testing.assert_close(seen.abs().max(), limit)
    assert 0 < row["overflow"] <= (w.abs() > limit).sum()


@pytest.mark.parametrize("scaling", ["tensor", "channel"])
@pytest.mark.parametrize("rounding", ["up", "down"])
def test_nothing_overflows_under_amax(scaling, rounding):
    """Whatever the overflow rule: it is what the same cast without one gives."""
    x, outputs, passed = torch.randn(200, 8), {}, 0
    for overflow in ("saturate", "inf", "nan", "raise"):
        cast = {"format": "E5M2", "scaling": scaling, "rounding": rounding, "overflow": overflow}
        with quantize_model(nn.Linear(8, 8), {"layers": {"": {"activation": cast}}}) as q:
            q.model.weight.data = torch.eye(8)
            q.model.bias.data.zero_()
            outputs[overflow] = torch.cat([q.model(row[None]) for row in x])
    assert all(torch.equal(y, outputs["saturate"]) for y in outputs.values())
    for row in x:
        passed += bool((row * scale_of(row.abs().max(), get_format("E5M2"))[1]).abs().max() > 57344)
    assert passed > 10
    assert outputs["saturate"].isfinite().all()


def test_clipped_straight_through(draw_uneven):
    """With it the gradient of what was clipped is zero; otherwise it passes."""
    w = draw_uneven(16, 16)
    gradients = {}
    for kind in ("identity", "clipped"):
        layer = nn.Linear(16, 16, bias=False)
        layer.weight.data = w.clone()
        cast = {"format": "E4M3", "scaling": {"quantile": 0.9}, "straight_through": kind}
        with quantize_model(
            nn.Sequential(layer), {"layers": {"0": {"weight": cast, "activation": cast}}}
        ):
            x = w.clone().requires_grad_()
            layer(x).sum().backward()
        gradients[kind] = (x.grad, layer.weight.grad)
    limit = w.abs().flatten().sort().values[math.ceil(0.9 * w.numel()) - 1]
    outside = w.abs() > limit
    assert outside.any()
    for plain, clipped in zip(gradients["identity"], gradients["clipped"], strict=True):
        assert not clipped[outside].any()
        assert torch.equal(plain[~outside], clipped[~outside])
        assert plain[outside].all()


@pytest.mark.parametrize(
    "cast",
    [
        *({"format": "E4M3", "scaling": kind} for kind in ("tensor", "channel", "block")),
        {"format": BlockFormat("E4M3-IN-8", get_format("E4M3"), block=8, rule="amax")},
    ],
    ids=str,
)
def test_under_amax_nothing_is_clipped(cast):
    """Though fl(x · r) passes the format's largest value in some tensors."""
    passed = 0
    layer = nn.Linear(20, 8)
    cast = cast | {"straight_through": "clipped"}
    with quantize_model(nn.Sequential(layer), {"weight": cast, "activation": cast}, head=None):
        for seed in range(50):
            x = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed))
            passed += bool((x * scale_of(x.abs().max(), get_format("E4M3"))[1]).abs().max() > 448)
            layer.weight.data = x.repeat(8, 1)
            layer.zero_grad()
            layer(x.requires_grad_()).backward(torch.ones(1, 8))
            assert x.grad.all()
            assert layer.weight.grad.all()
    assert passed > 0


@pytest.mark.parametrize("margin", [0.2, 0.26, 0.4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_numbers_are_clipped_in_sixteen_bits(dtype, margin):
    """The scaled value is compared in float32, in which it is rounded."""
    cast = {"format": "E4M3", "scaling": {"margin": margin}, "straight_through": "clipped"}
    x = torch.randn(500, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = []
    for kind in (dtype, torch.float32):
        layer = nn.Linear(100, 1, bias=False).to(kind)
        nn.init.ones_(layer.weight)
        given = x.to(kind).detach().requires_grad_()
        with quantize_model(nn.Sequential(layer), {"activation": cast}, head=None):
            layer(given).sum().backward()
        gradients.append(given.grad.float())
    assert torch.equal(*gradients)
    assert (gradients[0] == 0).any()


def test_hadamard_cancels_in_the_product(draw_uneven):
    """Both operands transformed: the product is that without, but for what rounding adds."""
    x, dy = draw_uneven(37, 24), draw_uneven(37, 40)
    found = {}
    for length in (0, 16):
        layer = nn.Linear(24, 40, bias=False)
        layer.weight.data = torch.ones(40, 24)
        cast = {"format": "BF16", "hadamard": length}
        recipe = {"layers": {"0": {"gradient@wgrad": cast, "activation@wgrad": cast}}}
        with quantize_model(nn.Sequential(layer), recipe, compute="float32"):
            layer(x).backward(dy)
        found[length] = layer.weight.grad
    exact = dy.T @ x
    for g in found.values():
        assert (g - exact).norm() < 3e-3 * exact.norm()
    assert not torch.equal(*found.values())


def test_hadamard_spreads_outliers():
    """One outlier among sixteen: its square is spread evenly over all of them."""
    x = torch.zeros(3, 40)
    x[0, 5] = x[1, 17] = 8.0
    y = transform(x, 16, -1, seed=1)
    assert y.shape == (3, 48)
    assert torch.equal(y[0, :16].abs(), torch.full((16,), 2.0))
    assert torch.equal(y[1, 16:32].abs(), torch.full((16,), 2.0))
    assert not y[2].any()
    assert not y[0, 16:].any()


def test_a_block_format_brings_its_scaling():
    """Another one beside it is refused."""
    recipe = {"weight": {"format": "MXFP4", "scaling": "tensor"}}
    with pytest.raises(BadInput, match="MXFP4 brings its own scaling"):
        quantize_model(nn.Sequential(nn.Linear(32, 32)), recipe)


def test_errors_are_measured_where_asked_cache():
    """Each operand's signal to noise, in the steps that ask; one seen by hand."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48), torch.randn(32, 64)
    model = nn.Sequential(layer)
    recipe = {"layers": {"0": {"weight": "E4M3", "activation": "MXFP4", "gradient": "NVFP4"}}}
    with quantize_model(model, recipe) as q:
        q.begin_step(1)
        layer(x).sum().backward()
        assert all(row["sqnr_db"] is None for row in q.stats())
        q.begin_step(2, errors=True)
        layer(x).square().sum().backward()
        found = {row["operand"]: row["sqnr_db"] for row in q.stats()}
    assert set(found) == {
        *("weight@fwd", "activation@fwd", "activation@wgrad"),
        *("gradient@dgrad", "gradient@wgrad"),
    }
    w = layer.weight.detach()
    error = (altcore.fake_quantize(w, "E4M3", scale="amax") - w).double().square().sum()
    expected = 10 * torch.log10(w.double().square().sum() / error)
    assert found["weight@fwd"] == pytest.approx(float(expected), abs=1e-3)
    rounded = altcore.fake_quantize(x, "MXFP4")
    error = (rounded - x).double().square().sum()
    expected = 10 * torch.log10(x.double().square().sum() / error)
    assert found["activation@fwd"] == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize(
    ("role", "fmt"),
    [
        ("weight", "E2M3"),
        ("weight", "MXFP4"),
        ("stored_weight", "E2M3"),
        ("optimizer_state", "E2M3"),
    ],
)
def test_a_few_random_bits_reach_every_quantizer(role, fmt):
    """With one bit and floor, less than half of a gap is never rounded away from zero."""
    model = nn.Linear(32, 8, bias=False)
    weight = torch.full((8, 32), 1.05)
    weight[:, 0] = 7.5 if fmt == "E2M3" else 6.0  # the largest value: the scale is 1
    model.weight.data = weight.clone()
    cast = {"format": fmt, "rounding": {"random_bits": 1, "few_bits": "floor"}}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
    q = quantize_model(model, {role: cast}, optimizer=optimizer)
    if role == "weight":
        found = model(torch.eye(32)).mT
    else:
        model.weight.grad = weight.clone()
        optimizer.step()
        moment = optimizer.state[model.weight]["momentum_buffer"]
        found = model.weight if role == "stored_weight" else moment
    assert found[:, 1:].detach().unique().tolist() == [1.0]
    q.remove()
