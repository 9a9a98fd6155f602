"""Channel, block and quantile scales and block formats, along each product's own reduction axis."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.numerics import round_blocks, transform
from altcore.recipes import PRODUCT_OPERANDS

AXES = {o: 1 if o.endswith(("fwd", "dgrad")) else 0 for o in PRODUCT_OPERANDS} | {
    "weight@dgrad": 0,
    "gradient@dgrad": 1,
}
"""Of (tokens, features) and (out, in): where each operand's product sums."""


@pytest.fixture
def draw():
    """Return a function that draws normal tensors of very unlike rows and columns."""
    generator = torch.Generator().manual_seed(3)

    def tensor(rows, columns):
        x = torch.randn(rows, columns, generator=generator)
        spread = (
            torch.randn(rows, 1, generator=generator).exp()
            * torch.randn(1, columns, generator=generator).exp()
        )
        return x * spread

    return tensor


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


def in_blocks(x, fmt, axis):
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
    "MXFP8": ("MXFP8-E4M3", lambda x, axis: in_blocks(x, "MXFP8-E4M3", axis)),
    "MXFP4": ("MXFP4-ceil", lambda x, axis: in_blocks(x, "MXFP4-ceil", axis)),
    "NVFP4": ("NVFP4", lambda x, axis: in_blocks(x, "NVFP4", axis)),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_product_has_its_own_axis(way, draw):
    """Every operand is rounded along the axis its product sums over, from the unrounded tensor."""
    cast, rounded = WAYS[way]
    tokens, width, out = 40, 72, 24
    layer = nn.Linear(width, out)
    layer.weight.data = draw(out, width)
    x, dy = draw(tokens, width).requires_grad_(), draw(tokens, out)
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


def test_square_blocks_serve_both_products(draw):
    """A weight in square blocks is rounded once: forward and backward see the same values."""
    layer = nn.Linear(48, 32)
    layer.weight.data = draw(32, 48)
    recipe = {"layers": {"0": {"weight": "NVFP4-square"}}}
    model = nn.Sequential(layer)
    with quantize_model(model, recipe, compute="float32") as q:
        assert [str(x.site) for x in q.quantizers] == ["0:weight@fwd"]
        x = torch.eye(48).requires_grad_()
        y = layer(x)
        seen = (y - layer.bias).detach().T
        y.sum().backward()
    torch.testing.assert_close(x.grad, seen.sum(0).expand(48, 48), rtol=1e-5, atol=1e-5)


def test_quantile_scale(draw):
    """The scale comes from the quantile: what lies above is clipped, and counted as overflow."""
    layer = nn.Linear(100, 50, bias=False)
    w = layer.weight.data = draw(50, 100)
    recipe = {
        "layers": {"0": {"weight": {"format": "E4M3", "scaling": {"quantile": 0.99}}}},
    }
    with quantize_model(nn.Sequential(layer), recipe) as q:
        seen = layer(torch.eye(100)).T
        row = next(r for r in q.stats() if r["operand"] == "weight@fwd")
    limit = w.abs().flatten().sort().values[math.ceil(0.99 * w.numel()) - 1]
    torch.testing.assert_close(seen.abs().max(), limit)
    assert 0 < row["overflow"] <= (w.abs() > limit).sum()


def test_clipped_straight_through(draw):
    """With it the gradient of what was clipped is zero; otherwise it passes."""
    w = draw(16, 16)
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


def test_hadamard_cancels_in_the_product(draw):
    """Both operands transformed: the product is that without, but for what rounding adds."""
    x, dy = draw(37, 24), draw(37, 40)
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


def test_hadamard_needs_both_operands():
    """On one operand alone it would change the product: refused, naming both."""
    recipe = {"layers": {"0": {"weight@fwd": {"format": "E4M3", "hadamard": 16}}}}
    with pytest.raises(BadInput, match="activation@fwd and weight@fwd are multiplied"):
        quantize_model(nn.Sequential(nn.Linear(16, 16)), recipe)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
def test_published_recipes_train(name):
    """They are named, need no format, keep the layers that they should, and learn."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(m for _ in range(7) for m in (nn.Linear(32, 32), nn.Tanh())), nn.Linear(32, 4)
    )
    x = torch.randn(64, 32)
    target = x[:, :4].tanh()
    with quantize_model(model, name) as q:
        plan = {n: {o: c for o, c in casts.items() if c} for n, casts in q.plan.items()}
        kept = [n for n, casts in plan.items() if not casts]
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        losses = []
        for _ in range(60):
            loss = functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            q.store(optimizer)
            losses.append(float(loss.detach()))
    first = plan["0"]
    if name == "nvfp4":
        assert kept == ["12", "14"]  # the last 15 % of seven layers, and the head
        assert first["weight@fwd"].format.is_square
        drawn = {o for o, c in first.items() if c.rounding == "stochastic"}
        assert drawn == {"gradient@dgrad", "gradient@wgrad"}
        turned = {o for o, c in first.items() if c.hadamard}
        assert turned == {"gradient@wgrad", "activation@wgrad"}
    else:
        assert kept == ["14"]
        assert {c.format.name for c in first.values()} == {"MXFP8-E4M3-rceil"}
    assert losses[-1] < 0.3 * losses[0]


def test_stored_weights_refuse_blocks():
    """They have one scale for the whole tensor."""
    with pytest.raises(BadInput, match=r"stored_weight.*one scale"):
        quantize_model(nn.Sequential(nn.Linear(32, 32)), {"stored_weight": "MXFP4"})


def test_a_block_format_brings_its_scaling():
    """Another one beside it is refused."""
    recipe = {"weight": {"format": "MXFP4", "scaling": "tensor"}}
    with pytest.raises(BadInput, match="MXFP4 brings its own scaling"):
        quantize_model(nn.Sequential(nn.Linear(32, 32)), recipe)


@pytest.mark.parametrize("fmt", ["MXFP8-E4M3", "NVFP4"])
def test_views_and_grids_of_block_formats(fmt, draw):
    """A view's movement is counted, and a weight's grid is that of its elements, each scaled."""
    layer = nn.Linear(64, 32, bias=False)
    layer.weight.data = draw(32, 64)
    with quantize_model(nn.Sequential(layer), {"layers": {"0": {"weight": fmt}}}) as q:
        q.begin_step(1, tracking=True)
        seen = layer(torch.eye(64)).detach().T
        with torch.no_grad():
            layer.weight.add_(1e-6 * layer.weight)
        q.measure_views()
        moved, stalled = q.counters.view_moves.sum(0).tolist()
        grid = q.grid_of(layer.weight)
    assert moved > 1000
    assert stalled > 0.99 * moved
    assert grid.format == get_format(fmt).element
    places = seen / grid.scale
    values = torch.tensor(grid.format.values)
    nearest = (places[..., None] - values).abs().amin(-1)
    assert float(nearest[~places.isnan()].max()) < 1e-5
