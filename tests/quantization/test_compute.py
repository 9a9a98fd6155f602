"""In which type products run: decided by values and hardware, stated, and within its bound."""

import pytest
import torch
from helpers import events
from torch import nn

import altcore
from altcore import get_format, quantize_model, table_format
from altcore.quantization import compute
from altcore.quantization.compute import choose_compute, float8_dtype, is_exact_in_bfloat16
from altcore.quantization.product import product
from altcore.quantization.quantizer import Operand


class LinearByFunctions(nn.Linear):
    def forward(self, x):
        return torch.einsum("bi,oi->bo", x, self.weight)


CPU = torch.device("cpu")


def plan_of(weight, activation, gradient="none"):
    """The plan of one linear layer."""
    casts = {"weight": weight, "activation": activation, "gradient": gradient}
    with quantize_model(nn.Sequential(nn.Linear(4, 4)), {"layers": {"0": casts}}) as q:
        return q.plan


@pytest.fixture
def units(monkeypatch):
    """Return a function that pretends units for a type."""

    def have(*, bfloat16=False, float8=False):
        monkeypatch.setattr(compute, "has_fast_bfloat16", lambda _: bfloat16)
        monkeypatch.setattr(compute, "has_fast_float8", lambda _: float8)

    return have


def operands(first, second, m=48, k=256, n=32):
    """Two operands, (m, k) and (k, n)."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for fmt, shape in ((first, (m, k)), (second, (k, n))):
        q, s = altcore.quantize(torch.randn(shape, generator=generator), fmt)
        made.append(Operand(q, s, get_format(fmt)))
    return made


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (lambda: nn.Linear(8, 8), 1),
        (lambda: nn.Linear(8, 8).double(), 1),
        (lambda: LinearByFunctions(8, 8), 1),
        (lambda: nn.Conv1d(8, 8, 1), 1),
        (lambda: nn.ConvTranspose1d(8, 8, 1), 1),
        (lambda: nn.Bilinear(8, 8, 8), 2),
    ],
)
@pytest.mark.parametrize("recipe", ["E4M3", {"weight": "E4M3"}, {"gradient": "E5M2"}])
def test_autocast_decides_the_type_of_results(layer, inputs, recipe):
    """What follows may count on it; gradients are of their tensors' types."""
    model = nn.Sequential(layer())
    x = [torch.randn(8, 8, dtype=model[0].weight.dtype, requires_grad=True)] * inputs
    with torch.autocast("cpu", torch.bfloat16):
        plain = model[0](*x)
        with quantize_model(model, recipe, head=None):
            y = model[0](*x)
    assert y.dtype == plain.dtype
    y.sum().backward()
    assert all(t.grad.dtype == t.dtype for t in (x[0], model[0].weight))
    assert (y - plain).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize(
    ("weight", "activation", "expected"),
    [
        ("E4M3", "E3M4", "exact-bfloat16"),
        ("MXFP4", "NVFP4", "exact-bfloat16"),
        ("posit8_1", "E0M7", "exact-bfloat16"),
        ("FP16", "E4M3", "float32"),  # 11 significant bits
        ("LOG4_3-by-value", "E4M3", "float32"),  # irrational values
        ({"format": "E4M3", "scaling": "block"}, "E4M3", "float32"),  # float32 scales in the values
        ("E4M3", "none", "float32"),  # the other operand is not on a grid
    ],
)
def test_bfloat16_is_chosen_by_the_values(units, weight, activation, expected):
    """Where both operands of a product are exact in it, and the machine has units for it."""
    plan = plan_of(weight, activation)
    units(bfloat16=True)
    assert choose_compute("auto", plan, CPU) == expected
    units()
    assert choose_compute("auto", plan, CPU) == "float32"
    assert choose_compute("bfloat16", plan, CPU) == "bfloat16"


def test_float8_is_chosen_by_the_values(units):
    """A format of any name with the values of the units' own; E5M2 by E5M2 they cannot."""
    mine = table_format("mine", get_format("E4M3").values)
    assert float8_dtype(mine) == torch.float8_e4m3fn
    assert float8_dtype(get_format("E5M2")) == torch.float8_e5m2
    for other in ("E4M3IEEE", "E4M3FNUZ", "E3M4", "MXFP8-E4M3", "INT8"):
        assert float8_dtype(get_format(other)) is None, other
    units(bfloat16=True, float8=True)
    assert choose_compute("auto", plan_of(mine, "E5M2"), CPU) == "exact-float8"
    assert choose_compute("auto", plan_of("E5M2", "E5M2"), CPU) == "exact-bfloat16"
    assert choose_compute("auto", plan_of("E3M4", "E4M3"), CPU) == "exact-bfloat16"


def test_exactness_is_that_of_every_value():
    """What the function says of a format is true of all its values."""
    for name in ("E4M3", "E7M0", "FP16", "BF16", "INT8", "posit8_2", "posit16_1", "LOG4_3-by-log"):
        values = torch.tensor(get_format(name).values, dtype=torch.float64)
        normal = (values == 0) | (values.abs() >= 2.0**-126)
        fits = bool((values.to(torch.bfloat16).double() == values).all() and normal.all())
        assert is_exact_in_bfloat16(get_format(name)) == fits, name


@pytest.mark.parametrize("formats", [("E4M3", "E4M3"), ("E5M2", "E4M3"), ("E4M3", "E5M2")])
def test_float8_products(formats):
    """On the same grid values: torch's FP8 product is the float32 product, up to its sums."""
    a, b = operands(*formats)
    exact = (a.values.double() @ b.values.double()) * a.scale.double() * b.scale.double()
    bound = (256 + 8) * 2**-24 * (a.values.abs() @ b.values.abs()) * a.scale * b.scale
    for kind in ("exact-float8", "float32"):
        assert bool(((product(a, b, compute=kind) - exact).abs() <= bound).all())


def test_float8_leaves_what_the_units_cannot_take():
    """Odd sizes and other formats go to the next wider type."""
    a, b = operands("E4M3", "E4M3", m=5, k=24, n=7)
    assert torch.equal(
        product(a, b, compute="exact-float8"), product(a, b, compute="exact-bfloat16")
    )


class Halved(nn.Module):
    """Has a forward of its own, which multiplies by a part of its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(64, 64))

    def forward(self, x):
        return nn.functional.linear(x, self.weight[:32])


@pytest.mark.parametrize("layer", [lambda: nn.Linear(64, 64, bias=False), Halved])
@pytest.mark.parametrize("scaling", ["power-of-two", "rms", "none"])
@pytest.mark.parametrize("formats", [("E4M3", "E5M2"), ("E5M2", "E4M3")])
def test_stored_weights_are_multiplied_on_float8_units_without_their_scale(layer, scaling, formats):
    """Also those that torch.func.functional_call puts in their place, which have another one."""
    torch.manual_seed(0)
    weight, activation = formats
    stored = {"format": weight, "scaling": scaling}
    recipe = {"weight": weight, "activation": activation, "gradient": None, "stored_weight": stored}
    w, x = 0.002 * torch.randn(64, 64), torch.randn(32, 64)
    found = {}
    for kind in ("exact-float8", "float32"):
        model = nn.Sequential(layer())
        nn.init.zeros_(model[0].weight).data.add_(w)
        with quantize_model(model, recipe, head=None, compute=kind) as q:
            input = x.clone().requires_grad_()
            y = model(input)
            y.square().sum().backward()
            (kept,) = q.stored.values()
            other = {"0.weight": 8 * model[0].weight.detach()}
            found[kind] = (y, input.grad, torch.func.functional_call(model, other, x))
            assert scaling == "none" or kept.scale < 0.01
    for one, other in zip(*found.values(), strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.cuda
@pytest.mark.parametrize("formats", [("E4M3", "E4M3"), ("E5M2", "E4M3"), ("E4M3", "E5M2")])
def test_float8_products_on_cuda(formats):
    """Hopper's units keep about 14 bits of a sum: so far may its result differ."""
    device = torch.device("cuda")
    if not compute.has_fast_float8(device):
        pytest.skip("no FP8 matrix units")
    a, b = (Operand(o.values.to(device), o.scale.to(device), o.format) for o in operands(*formats))
    exact = (a.values.double() @ b.values.double()) * a.scale.double() * b.scale.double()
    bound = 2**-13 * (a.values.abs() @ b.values.abs()) * a.scale * b.scale
    assert bool(((product(a, b, compute="exact-float8") - exact).abs() <= bound).all())


def test_exact_bfloat16_leaves_plain_operands_alone():
    """Only autocast rounds what the recipe does not quantize."""
    a, _ = operands("E4M3", "E4M3")
    b = Operand(torch.randn(256, 32, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(product(a, b, compute="exact-bfloat16"), product(a, b))
    assert not torch.equal(product(a, b, compute="bfloat16"), product(a, b))


def test_the_run_says_what_it_computed_in(start):
    """In the events and the summary: not ``auto``, but what it came to."""
    result = start(format="E4M3", max_steps=1)
    opening = events(result.run_directory, "start")[0]
    assert opening["compute"] == result.summary["compute"]
    assert opening["compute"] in ("float32", "exact-bfloat16")
    assert start(format="E4M3", max_steps=1, compute="bfloat16").summary["compute"] == "bfloat16"


def test_a_format_of_twenty_numbers(start):
    """Nobody has heard of it: it trains by the kernels, and diagnostics know its grid."""
    draw = torch.Generator().manual_seed(11)
    numbers = torch.randn(20, generator=draw, dtype=torch.float64).sort().values.tolist()
    unheard = table_format("unheard-of", numbers)
    every_step = {"ulp-stats__interval": 1}
    result = start(["ulp-stats"], format=unheard, recipe="pure", max_steps=3, **every_step)
    assert result.status == "finished"
    last = result.diagnostics_history[-1]
    assert any(key.startswith("ulp-stats/") for key in last)
    x = torch.randn(1000, generator=draw)
    seen = altcore.fake_quantize(x, unheard, scale=0.5)
    nearest = torch.tensor(numbers)[(x[:, None] / 0.5 - torch.tensor(numbers)).abs().argmin(1)]
    torch.testing.assert_close(seen, nearest * 0.5)
    below, above = altcore.neighbours(x, unheard)
    assert bool(((below < x) | below.isnan()).all())
    assert bool(((above > x) | above.isnan()).all())


def test_a_product_of_tables_that_are_not_symmetric():
    """The largest magnitude decides whether a sum has room in float32, whatever its sign."""
    steep = altcore.table_format("STEEP", [-(2.0**100), -1.0, 0.0, 1.0])
    model, x = nn.Sequential(nn.Linear(64, 4, bias=False)), torch.full((2, 64), -3.0)
    with torch.no_grad():
        model[0].weight.fill_(-2.0)
    cast = {"format": steep, "scaling": {"kind": "tensor", "margin": 2.0**-100}}
    with quantize_model(model, {"weight": cast, "activation": cast}):
        y = model(x)
    assert torch.equal(y, torch.full((2, 4), 64 * 6.0))
