"""The optimizer plugin ``manifold-adamw``: against AdamW, and against itself in slow motion."""

import copy
import math

import pytest
import torch
from helpers_diagnostics import NoHostRead
from planted import check_resumes_alike
from torch import nn

import altcore
from altcore import BadInput, get_format
from altcore.hooks import build as build_settings
from altcore.quantization import WeightGrid
from altcore_optimizers.manifold_adamw import ManifoldAdamW

SETTINGS = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


def grid(name, scale=None, *, is_stored=True):
    """A grid, for every parameter."""
    s = None if scale is None else torch.as_tensor(scale)
    return WeightGrid(get_format(name), s, is_stored)


def build(named, of=None, **settings):
    made = build_settings(ManifoldAdamW, SETTINGS | settings, "manifold-adamw")
    return made.build(named, lambda p: of)


def torch_adamw(named, **settings):
    """The oracle, with the same groups."""
    s = SETTINGS | settings
    return torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": s["weight_decay"] if p.ndim > 1 else 0.0}
            for _, p in named
        ],
        lr=0.0,
        betas=(s["beta1"], s["beta2"]),
        eps=s["eps"],
        foreach=False,
        fused=False,
    )


def train(optimizer, parameters, gradients, lr=1e-3):
    """Take steps; returns the values of each parameter after each step."""
    path = []
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.to(p.dtype)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        path.append([p.detach().clone() for p in parameters])
    return path


def both(of, steps=8, dtype=torch.float32, weights=None, lr=1e-3, **settings):
    """The paths of this optimizer and of torch's AdamW from the same start."""
    generator = torch.Generator().manual_seed(3)
    first = weights if weights is not None else torch.randn(16, 8, generator=generator)
    gradients = [
        [torch.randn(w.shape, generator=generator) for w in (first, first[0])] for _ in range(steps)
    ]
    paths = []
    for make in (lambda named: build(named, of, **settings), torch_adamw):
        parameters = [nn.Parameter(w.clone().to(dtype)) for w in (first, first[0])]
        named = [("w", parameters[0]), ("b", parameters[1])]
        paths.append(train(make(named), parameters, gradients, lr))
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["update", "gradient"])
def test_without_a_grid_it_is_adamw_bit_for_bit(dtype, mode):
    """PyTorch's own, over several steps, decay and moments included."""
    mine, torchs = both(None, dtype=dtype, mode=mode)
    for a, b in zip(mine, torchs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_complex_parameters_get_adamw_bit_for_bit():
    """Real and imaginary parts have moments of their own."""
    first, *steps = torch.randn(9, 16, 8, dtype=torch.complex64)
    paths = []
    for make in (lambda named: build(named, None), torch_adamw):
        p = nn.Parameter(first.clone())
        paths.append(train(make([("w", p)]), [p], [[g] for g in steps]))
    assert all(torch.equal(x, y) for (x,), (y,) in zip(*paths, strict=True))


@pytest.mark.parametrize("name", ["E0M7", "E1M6"])
@pytest.mark.parametrize("scale", [None, 1.0, 2.0**-9, 0.123456789, 3.7e-5])
def test_on_fixed_point_an_update_is_adamws_to_an_ulp(name, scale):
    """Stiffness is the same everywhere, whatever the scale: its ratio to its mean is 1."""
    mine, torchs = both(grid(name, scale))
    for a, b in zip(mine, torchs, strict=True):
        for x, y in zip(a, b, strict=True):
            ulp = torch.nextafter(y.abs(), torch.tensor(math.inf)) - y.abs()
            assert bool(((x - y).abs() <= ulp).all())


def test_on_fixed_point_a_run_is_adamws(start):
    """Stored weights on E0M7, to what the fused kernel of adamw rounds in another order."""
    keys = {"format": "E0M7", "recipe": "pure", "max_steps": 6}
    mine, plain = (start(optimizer=name, **keys) for name in ("manifold-adamw", "adamw"))
    assert mine.final_loss == pytest.approx(plain.final_loss, rel=1e-4)


def reference(value, gradients, lr, mode, width_of, ratio_of):
    """The docstring's formulas on a list of numbers; returns the values after each step."""
    b1, b2, eps, decay = (SETTINGS[k] for k in ("beta1", "beta2", "eps", "weight_decay"))
    first, second = [0.0] * len(value), [0.0] * len(value)
    for t, gradient in enumerate(gradients, start=1):
        width = [width_of(w) for w in value]
        ratio = ratio_of(width)
        for i, g in enumerate(gradient):
            g = g * width[i] if mode == "gradient" else g
            first[i] = b1 * first[i] + (1 - b1) * g
            second[i] = b2 * second[i] + (1 - b2) * g * g
            mean, square = first[i] / (1 - b1**t), second[i] / (1 - b2**t)
            step = mean / (math.sqrt(square) + eps)
            step *= ratio[i] if mode == "update" else 1.0
            value[i] -= lr * (step + decay * value[i])
    return value


def e3m4_width(scale, largest):
    """The width of E3M4's interval above |w|: 1/64 up to 1/2 (where bits end), a 16th above."""

    def width(w):
        size = min(abs(w) / scale, 30.9)
        exponent = max(math.floor(math.log2(size)) if size else -9, -2)
        return min(2.0 ** (exponent - 4) * scale, largest)

    return width


@pytest.mark.parametrize("mode", ["update", "gradient"])
@pytest.mark.parametrize("largest", [1e6, 0.02])
def test_follows_its_formulas(mode, largest):
    """On E3M4 at a scale of 1/8, element by element, with and without a limit that is met."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(1, 40, generator=generator, dtype=torch.float64)
    gradients = torch.randn(12, 1, 40, generator=generator, dtype=torch.float64)
    p = nn.Parameter(start.clone())
    of = grid("E3M4", torch.tensor(0.125, dtype=torch.float64))
    optimizer = build([("w", p)], of, mode=mode, max_stiffness=largest)
    with NoHostRead():
        train(optimizer, [p], [[g] for g in gradients], lr=0.01)

    def over_rms(width):
        rms = math.sqrt(sum(x * x for x in width) / len(width))
        return [x / rms for x in width]

    widths = e3m4_width(0.125, largest)
    expected = reference(start[0].tolist(), gradients[:, 0].tolist(), 0.01, mode, widths, over_rms)
    assert p[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_adam_cancels_stiffness_in_the_gradient():
    """The claim about the original: its steps are AdamW's. Those of mode update are not."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.exp(2 * torch.randn(64, 64, generator=generator)).double()
    ratios = {}
    for mode in ("gradient", "update"):
        mine, torchs = both(
            grid("E5M2", 2.0**-8),
            40,
            dtype=torch.float64,
            weights=weights,
            lr=1e-6,
            mode=mode,
        )
        a, b = ((path[-1][0] - path[-2][0]).abs() for path in (mine, torchs))
        ratios[mode] = (a / b).flatten()
    assert float(ratios["gradient"].median()) == pytest.approx(1.0, abs=1e-3)
    low, high = ratios["gradient"].quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    assert (float(low), float(high)) == pytest.approx((1.0, 1.0), abs=0.01)
    low, high = ratios["update"].quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    assert high / low > 100


def test_keeps_the_bit_position_where_asked_cache():
    """Widths 1/16, 1/64, 1/64 and 1 have the exponents -4, -6, -6 and 0: a mean of -4."""
    p = nn.Parameter(torch.tensor([[1.0, 0.1, 0.0, 31.0]]))
    for asked, expected in ((True, -4.0), (False, None)):
        optimizer = build([("w", p)], grid("E3M4"), log_bit_position=asked)
        p.grad = torch.ones_like(p)
        with NoHostRead():
            optimizer.step()
        found = optimizer.state[p].get("bit_position")
        assert (found if found is None else found.item()) == expected
    optimizer = build([("w", p)], None, log_bit_position=True)
    optimizer.step()
    assert "bit_position" not in optimizer.state[p], "it is on no grid"


def test_follows_a_change_of_format():
    """The grid is asked for at each step."""
    p = nn.Parameter(torch.tensor([[1.0, 8.0]]))
    grids = iter([grid("E0M7", 16.0), grid("E7M0")])
    made = build_settings(ManifoldAdamW, {"weight_decay": 0.0}, "manifold-adamw")
    optimizer = made.build([("w", p)], lambda _: next(grids))
    (first,), (second,) = train(optimizer, [p], [[torch.ones(1, 2)]] * 2, lr=1e-4)
    before = torch.tensor([1.0, 8.0])
    assert (before - first)[0].tolist() == pytest.approx([1e-4, 1e-4], rel=0.01)
    moved = (first - second)[0]
    assert moved[1] / moved[0] == pytest.approx(8.0, rel=0.02)


def test_state_survives_a_save_and_a_load():
    """An optimizer loaded from another's state takes the very same next step."""
    parameters = [nn.Parameter(torch.linspace(0.1, 4, 9).view(3, 3)) for _ in range(2)]
    first, second = (build([("w", p)], grid("E3M4")) for p in parameters)
    gradient = [[torch.linspace(-1, 1, 9).view(3, 3)]]
    train(first, parameters[:1], gradient)
    with torch.no_grad():
        parameters[1].copy_(parameters[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.state[parameters[1]]["step"] == 1
    train(first, parameters[:1], gradient)
    train(second, parameters[1:], gradient)
    assert torch.equal(*parameters)


@pytest.mark.parametrize(
    "settings", [{"mode": "moments"}, {"max_stiffness": 0.0}, {"beta1": 1.0}, {"eps": 0.0}]
)
def test_impossible_settings_are_refused(settings):
    """By name."""
    with pytest.raises(BadInput, match=f"manifold-adamw.{next(iter(settings))}"):
        build([("w", nn.Parameter(torch.ones(2, 2)))], **settings)


@pytest.mark.parametrize("recipe", ["pure", "master"])
def test_resumes_alike(shelf, start, recipe):
    """Moments, steps and bit positions are part of the state; grids are those of the run."""
    whole = check_resumes_alike(
        shelf,
        start,
        [],
        optimizer="manifold-adamw",
        format="E3M4",
        recipe=recipe,
        **{"manifold-adamw.log_bit_position": True},
    )
    assert isinstance(whole, altcore.api.Result)
