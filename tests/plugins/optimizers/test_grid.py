"""The optimizer plugin ``grid``: rungs by hand, their mean, and runs that do not stall."""

import copy
import math

import pytest
import torch
from helpers_diagnostics import NoHostRead
from planted import check_resumes_alike, last_loss
from torch import nn

from altcore import BadInput, get_format
from altcore.hooks import build as build_settings
from altcore.numerics import round_to_grid
from altcore.quantization import WeightGrid
from altcore_optimizers.grid import Grid, over_rms

BY_HAND = {"beta": 0.0, "normalize": False}
"""The update is the learning rate times the gradient."""


def grid(name, scale=None, *, is_stored=True):
    s = None if scale is None else torch.as_tensor(scale)
    return WeightGrid(get_format(name), s, is_stored)


def build(named, of, **settings):
    return build_settings(Grid, settings, "grid").build(named, lambda p: of)


def step(weights, gradients, of, lr=1.0, **settings):
    """Take one step from ``weights``; returns the new ones and the state."""
    p = nn.Parameter(torch.tensor([weights]))
    optimizer = build([("w", p)], of, **settings)
    p.grad = torch.tensor([gradients])
    optimizer.param_groups[0]["lr"] = lr
    with NoHostRead():
        optimizer.step()
    return p.detach()[0].tolist(), optimizer.state[p]


def test_the_root_mean_square_of_16_bits_is_taken_in_float32():
    """The norm of this float16 momentum is not one: it would be divided by infinity."""
    x = torch.full((64, 64), 3e4, dtype=torch.float16)
    assert torch.equal(over_rms(x), torch.ones_like(x))


def test_whole_rungs_by_hand():
    """E3M4: 1/16 above 1, 1/32 below it, 1/64 around zero, and no rung for no gradient."""
    start = [1.0, 1.0, 0.0, 1 / 64, 2.0, -1.0]
    gradients = [-2 / 16, 1 / 32, 3 / 64, 2 / 64, 0.0, -2 / 32]
    found, state = step(start, gradients, grid("E3M4"), **BY_HAND)
    assert found == [1.125, 1 - 1 / 32, -3 / 64, -1 / 64, 2.0, -1 + 2 / 32]
    assert int(state["updates"]) == int(state["flips"]) == 5


def test_rungs_are_counted_in_grid_values():
    """Two rungs from 1 upwards cross no binade, 17 would: each is a value, not a width."""
    found, _ = step([1.9375], [-2 / 16], grid("E3M4"), **BY_HAND)
    assert found == [2.125]
    found, _ = step([2.0], [-3.0], grid("E7M0"), **BY_HAND)
    assert found[0] in (4.0, 8.0), "three over a width of two: one rung or two"


def test_the_scale_is_the_grids():
    """At a scale of 4 E3M4's rung at 4 is 1/4."""
    found, _ = step([4.0], [-0.5], grid("E3M4", 4.0), **BY_HAND)
    assert found == [4.5]


@pytest.mark.parametrize(("clip", "expected"), [(10, 10 / 64), (3, 3 / 64)])
def test_rungs_are_clipped(clip, expected):
    """Ten unless told."""
    found, _ = step([0.0, 0.0], [-1e3, 1e30], grid("E3M4"), clip=clip, **BY_HAND)
    assert found == [expected, -expected]


def test_beyond_the_largest_value_the_grid_goes_on():
    """As the format would, for a stored weight's scale to follow."""
    found, _ = step([31.0, -31.0, 31.0], [-2.0, 1.0, 1.0], grid("E3M4"), **BY_HAND)
    assert found == [33.0, -32.0, 30.0]
    found, _ = step([2.0**64], [-(2.0**64)], grid("E7M0"), **BY_HAND)
    assert found == [2.0**65]


def test_a_master_keeps_its_place_between_the_values():
    """It moves by as much as its view does."""
    of = grid("E3M4", 0.5, is_stored=False)
    found, _ = step([1.01, -0.3], [-1 / 16, 1 / 64], of, **BY_HAND)
    # Seen at 1.01 / 0.5 as 2, two rungs of 1/8 · 0.5; at -0.3 / 0.5 as -0.59375: one of 1/32 · 0.5.
    assert found == pytest.approx([1.01 + 1 / 16, -0.3 - 1 / 64], abs=1e-7)


@pytest.mark.parametrize("size", [0.3, 2.7])
def test_the_mean_of_rungs_is_the_update(size):
    """Over 40,000 weights, in either direction."""
    for sign in (1, -1):
        p = nn.Parameter(torch.full((200, 200), 1.25))
        optimizer = build([("w", p)], grid("E3M4"), **BY_HAND)
        p.grad = torch.full_like(p, -sign * size / 16)
        optimizer.param_groups[0]["lr"] = 1.0
        optimizer.step()
        rungs = (p.detach() - 1.25).double() * 16
        assert set(rungs.unique().tolist()) == {sign * math.floor(size), sign * math.ceil(size)}
        fraction = size % 1
        deviation = math.sqrt(fraction * (1 - fraction) / p.numel())
        assert float(rungs.mean()) == pytest.approx(sign * size, abs=4 * deviation)
        moved = int((rungs != 0).sum())
        assert int(optimizer.state[p]["flips"]) == moved
        assert int(optimizer.state[p]["updates"]) == p.numel()


def test_the_momentum_over_its_size():
    """M = 0.5 g at first; over its root mean square, times the rate, it is 4 and 0 rungs."""
    g = [3.0, -3.0, 0.0, 0.0]
    rate = 4 / 16 / math.sqrt(2)
    found, state = step([1.0] * 4, g, grid("E0M7", 8.0), lr=rate, beta=0.5)
    assert found == pytest.approx([0.75, 1.25, 1.0, 1.0])
    assert state["momentum"][0].tolist() == [1.5, -1.5, 0.0, 0.0]
    found, _ = step([1.0], [0.0], grid("E3M4"))
    assert found == [1.0], "no gradient at all is no division by zero"


def test_weight_decay_is_part_of_the_update():
    """Only of matrices: 0.5 · 2 downwards are 8 rungs of 1/8 above 2, and 16 of 1/16 below."""
    found, _ = step([2.0], [0.0], grid("E3M4"), lr=0.25, weight_decay=0.5, **BY_HAND)
    assert found == [2.0 - 4 / 16]
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = build([("b", p)], grid("E3M4"), weight_decay=0.5, **BY_HAND)
    p.grad = torch.zeros(1)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert p.item() == 2.0


@pytest.mark.parametrize(
    "name", ["E7M0", "E0M7", "E1M6", "E3M4", "E4M3", "E5M2", "E2M1", "posit8_1", "BF16"]
)
def test_what_is_stored_is_on_the_grid_of_any_format(name):
    """Within the format's range each new weight is one of its values, times the scale."""
    fmt, scale = get_format(name), torch.tensor(0.25)
    torch.manual_seed(1)
    p = nn.Parameter(round_to_grid(torch.randn(50, 50), fmt) * scale)
    before = p.detach().clone()
    optimizer = build([("w", p)], grid(name, scale))
    for _ in range(3):
        p.grad = torch.randn(50, 50)
        optimizer.param_groups[0]["lr"] = 0.02
        optimizer.step()
    inside = p.detach()[p.detach().abs() <= fmt.max * scale]
    assert torch.equal(round_to_grid(inside / scale, fmt) * scale, inside)
    assert not torch.equal(p, before)


def test_without_a_grid_it_is_adamw_bit_for_bit():
    """PyTorch's own."""
    settings = {"beta": 0.8, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.1}
    mine, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    optimizers = [
        build([("w", mine)], None, **settings),
        torch.optim.AdamW(
            [theirs], betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, foreach=False, fused=False
        ),
    ]
    torch.manual_seed(2)
    for _ in range(5):
        gradient = torch.randn(3, 4)
        for p, optimizer in zip((mine, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = 1e-2
            optimizer.step()
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(lost):
    """A NaN or infinite weight stays that, and a NaN gradient makes one."""
    found, _ = step([lost, 1.0], [1.0, 0.0], grid("E3M4"), **BY_HAND)
    assert not math.isfinite(found[0])
    assert found[1] == 1.0
    found, _ = step([1.0], [math.nan], grid("E3M4"), **BY_HAND)
    assert math.isnan(found[0])


def test_random_bits_are_those_of_seed_name_and_step():
    """The same again, and others for another of the three."""

    def draws(name="w", seed=0, steps=1):
        p = nn.Parameter(torch.zeros(20, 20))
        optimizer = build([(name, p)], grid("E3M4"), seed=seed, **BY_HAND)
        for _ in range(steps):
            with torch.no_grad():
                p.zero_()
            p.grad = torch.full_like(p, 0.5 / 64)
            optimizer.param_groups[0]["lr"] = 1.0
            optimizer.step()
        return p.detach()

    assert torch.equal(draws(), draws())
    for other in (draws("v"), draws(seed=1), draws(steps=2)):
        assert not torch.equal(draws(), other)


def test_state_survives_a_save_and_a_load():
    """The very same next step, and counts beyond what float32 can count."""
    parameters = [nn.Parameter(torch.linspace(0.1, 4, 9).view(3, 3)) for _ in range(2)]
    first, second = (build([("w", p)], grid("E3M4")) for p in parameters)

    def move(p, optimizer):
        p.grad = torch.linspace(-1, 1, 9).view(3, 3)
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()

    move(parameters[0], first)
    first.state[parameters[0]]["updates"] += 2**24 + 1
    with torch.no_grad():
        parameters[1].copy_(parameters[0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for p, optimizer in zip(parameters, (first, second), strict=True):
        move(p, optimizer)
        count = optimizer.state[p]["updates"]
        assert (count.dtype, int(count)) == (torch.int64, 2**24 + 1 + 8 + 8)
    assert torch.equal(*parameters)


def test_a_tied_parameter_has_its_first_name_and_is_moved_once():
    """However often it is listed."""
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = build([("a", p), ("b", p)], grid("E3M4"), **BY_HAND)
    assert optimizer.names[p] == "a"
    p.grad = torch.full_like(p, -1 / 16)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((2, 2), 1 + 1 / 16))


@pytest.mark.parametrize(
    "settings", [{"clip": 0}, {"beta": 1.0}, {"weight_decay": -1.0}, {"eps": 0.0}]
)
def test_impossible_settings_are_refused(settings):
    """By name."""
    with pytest.raises(BadInput, match=f"grid.{next(iter(settings))}"):
        build([("w", nn.Parameter(torch.ones(2, 2)))], None, **settings)


@pytest.mark.parametrize(("name", "stuck", "learned"), [("E7M0", 5.2, 3.3), ("E3M4", 3.8, 2.4)])
def test_a_run_does_not_stall(start, name, stuck, learned):
    """Where AdamW loses its small updates in rounding, rungs come through."""
    keys = {
        "format": name,
        "recipe": "pure",
        "learning_rate": 1e-3,
        "warmup_steps": 5,
        "max_steps": 100,
    }
    assert last_loss(start(**keys)) > stuck  # 5.39 and 3.97, from 5.55
    moving = start(optimizer="grid", **keys)
    assert last_loss(moving) < learned  # 2.80 and 2.05
    assert max(x["stored_stall_rate"] for x in moving.metrics_history) < 1e-3


@pytest.mark.parametrize("recipe", ["pure", "master"])
def test_resumes_alike(shelf, start, recipe):
    """Momentum, counts and the steps that random bits are made of are part of the state."""
    check_resumes_alike(shelf, start, [], optimizer="grid", format="E3M4", recipe=recipe)
