"""The diagnostic ``bit-stall``: a weight, gradient signal and learning rate for every cause."""

import math

import pytest
import torch
from helpers_diagnostics import Bench, linear
from torch import nn

import altcore
from altcore_diagnostics.bit_stall import (
    CAUSES,
    BitStall,
    boundaries,
    boundary_distance,
    decay_rate,
)

LR, LR_MAX, DECAY = 1e-3, 1e-2, 1.0
"""One step's learning rate is a tenth of the peak."""
CASES = {
    # weight: [the optimizer's part of the update], around E3M4's values at a scale of 1
    "no_signal": (1.0, 0.0),  # decay alone: 1 -> 0.999
    "cancelled": (16.0, 0.51),  # the boundary is 0.5 away; decay takes 0.016 back
    "schedule": (1.0, 0.005),  # 0.05 at the peak, and the boundary is 1/32 = 0.031 away
    "coarse": (1.0, 0.002),  # 0.02 at the peak; a whole step is 0.01 there
    "weak_signal": (1 / 64, 0.0005),  # 0.005 at the peak; the boundary is 1/128 = 0.0078 away
}


def optimizer_of(model, cls=torch.optim.AdamW, lr=LR, decay=DECAY):
    return cls(model.parameters(), lr=lr, weight_decay=decay)


def proposed(weight, signal):
    """What AdamW makes of the weight."""
    return weight * (1 - LR * DECAY) + signal


def measure(weights, after, recipe=None, cls=torch.optim.AdamW):
    """Measure one update of stored weights; the first, 31, keeps the scale at 1."""
    model = nn.Sequential(linear(31.0, *weights))
    bench = Bench(model, recipe or {"stored_weight": "E3M4"}, optimizer_of(model, cls), LR_MAX)
    return bench.step(BitStall(), {"0.weight": [[31.0, *after]]})


def causes(found, kind="stored"):
    return {cause: found[f"{kind}_cause_{cause}"] for cause in CAUSES}


@pytest.mark.parametrize("cause", CASES)
def test_each_cause(cause):
    """One stalled weight: all of the stalled share has its cause."""
    weight, signal = CASES[cause]
    found = measure([weight], [proposed(weight, signal)])
    assert causes(found) == {c: float(c == cause) for c in CAUSES}
    assert found["stored_stall_share"] == 1
    assert found["stored_zero_update_share"] == 0.5


def test_all_causes_together():
    """Shares of the stalled add up to 1; what moved and what had no update is apart."""
    weights = [w for w, _ in CASES.values()] + [1.0, 2.0]
    after = [proposed(w, u) for w, u in CASES.values()] + [1.25, 2.0]
    found = measure(weights, after)
    assert causes(found) == pytest.approx(dict.fromkeys(CAUSES, 0.2))
    assert found["stored_stall_share"] == pytest.approx(5 / 6)
    assert found["stored_zero_update_share"] == 2 / 8  # that of 2, and of 31
    assert found["stored_cause_coarse/0"] == found["stored_cause_coarse"]


def test_the_boundary_is_that_in_the_direction_of_the_update():
    """Below 1 values are 1/32 apart, above it 1/16: 0.003 is enough at the peak only downwards."""
    for signal, cause in ((-0.002, "schedule"), (0.003, "coarse")):
        assert causes(measure([1.0], [proposed(1.0, signal)]))[cause] == 1


def test_nothing_lies_beyond_the_largest_value():
    """Against the end of the grid even the largest step is no move."""
    model = nn.Sequential(linear(31.0))
    bench = Bench(model, {"stored_weight": "E3M4"}, optimizer_of(model), 1e3)
    found = bench.step(BitStall(), {"0.weight": [[31.4]]})
    assert causes(found)["coarse"] == 1


def test_where_nothing_stalls_there_is_no_cause():
    found = measure([1.0], [2.0])
    assert found["stored_stall_share"] == 0
    assert all(math.isnan(share) for share in causes(found).values())


def test_coupled_decay_is_part_of_the_gradient():
    """Adam with L2 decay: an update that AdamW's decay explains is the optimizer's own here."""
    after = [proposed(*CASES["no_signal"])]
    assert causes(measure([1.0], after))["no_signal"] == 1
    assert causes(measure([1.0], after, cls=torch.optim.Adam))["no_signal"] == 0


def test_which_decay_is_decoupled():
    model = nn.Linear(2, 2)

    class Own(torch.optim.Optimizer):
        def __init__(self, parameters, lr, weight_decay):
            super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    for cls, expected in (
        (torch.optim.AdamW, 0.3),
        (torch.optim.Adam, 0.0),
        (torch.optim.SGD, 0.0),
        (Own, 0.3),
    ):
        optimizer = optimizer_of(model, cls, decay=0.3)
        assert decay_rate(optimizer, optimizer.param_groups[0]) == expected
    group = {"decoupled_weight_decay": False, "weight_decay": 0.3}
    assert decay_rate(optimizer, group) == 0
    assert decay_rate(optimizer, {}) == 0


def test_a_new_scale_is_no_movement():
    """The largest outgrows the grid, and its neighbour is moved by that alone: both stalled."""
    model = nn.Sequential(linear(31.0, 1 / 64))
    bench = Bench(model, {"stored_weight": "E3M4"}, optimizer_of(model), LR_MAX)
    found = bench.step(BitStall(), {"0.weight": [[40.0, 1 / 64 + 1e-3]]})
    assert model[0].weight.tolist() == [[40.0, 1 / 32]]
    assert found["stored_stall_share"] == 1


@pytest.mark.parametrize("name", ["E3M4", "E0M7", "E7M0", "posit8_1", "FP4-BNB", "E1M6-flush"])
def test_boundaries_are_where_rounding_changes(name):
    """From every value, up and down: just before the boundary it stays, just after it has left."""
    if name == "E1M6-flush":
        fmt = altcore.float_format(name, 1, 6, subnormals=False)
    else:
        fmt = altcore.get_format(name)
    values = torch.tensor(fmt.values, dtype=torch.float64)
    grid = type("Grid", (), {"format": fmt, "scale": torch.tensor(0.5)})
    for sign in (1, -1):
        w = values * 0.5
        upward = torch.full_like(w, sign > 0, dtype=torch.bool)
        h = boundary_distance(w, upward, grid, "nearest-even")
        assert (h.isinf() == (w == w.max() if sign > 0 else w == w.min())).all()
        # Nothing but 0 itself becomes 0 in a posit: there the boundary is 0.
        inner = h.isfinite() & ((w != 0) | (h > 0))
        assert inner.sum() >= len(values) - 2
        for factor, stays in ((1 - 1e-9, True), (1 + 1e-9, False)):
            moved = altcore.fake_quantize((w + sign * factor * h)[inner], fmt, 0.5)
            assert ((moved == w[inner]) == stays).all()


def test_boundaries_of_other_roundings():
    """Geometric means under log-nearest; the next value where only that is certain."""
    fmt = altcore.table_format("T", [-4.0, -1.0, 0.0, 1.0, 4.0])
    inf = math.inf
    below, above = boundaries(fmt, "log-nearest").tolist()
    assert below == [-inf, -2.0, -0.5, 0.5, 2.0]
    assert above == [-2.0, -0.5, 0.5, 2.0, inf]
    below, above = boundaries(fmt, "stochastic").tolist()
    assert below == [-inf, -4.0, -1.0, 0.0, 1.0]
    assert above == [-1.0, 0.0, 1.0, 4.0, inf]


def test_views_are_apart():
    """1 -> 1.1 is seen as 1 still, 2 -> 3.1 as 4, and 0.5 does not move: one of two stalls."""
    e7m0 = {"format": "E7M0", "scaling": "none"}
    model = nn.Sequential(linear(1.0, 2.0, 0.5))
    bench = Bench(model, {"layers": {"0": {"weight@fwd": e7m0}}}, optimizer_of(model))
    found = bench.step(BitStall(), {"0.weight": [[1.1, 3.1, 0.5]]})
    assert found == {"view_stall_share": 0.5, "view_stall_share/0": 0.5}


def test_what_is_not_finite_is_no_number():
    found = measure([1.0], [math.nan])
    assert math.isnan(found["stored_stall_share"])
    assert math.isnan(found["stored_cause_coarse/0"])


def test_an_unquantized_model_has_no_measures():
    assert measure([1.0], [2.0], {"skip": ["*"]}) == {}


@pytest.mark.parametrize("recipe", ["pure", "master"])
@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_in_a_run(start, recipe, rounding):
    """Stall shares are the core's rates, and the causes add up."""
    cast = {"format": "E3M4", "rounding": rounding}
    made = {"stored_weight": cast} if recipe == "pure" else {"weight": cast}
    interval = {"bit-stall__interval": 2}
    result = start(["bit-stall"], recipe=made, max_steps=4, **interval)
    assert [line["step"] for line in result.diagnostics_history] == [1, 2, 4]
    core = {line["step"]: line for line in result.metrics_history}
    for line in result.diagnostics_history:
        if recipe == "master":
            share = line["bit-stall/view_stall_share"]
            assert share == pytest.approx(core[line["step"]]["view_stall_rate"])
            assert "bit-stall/stored_stall_share" not in line
            continue
        share = line["bit-stall/stored_stall_share"]
        # Where a scale changed, only the core knows what the random bits made of it.
        exact = {"abs": 1e-3} if rounding == "stochastic" else {}
        assert share == pytest.approx(core[line["step"]]["stored_stall_rate"], **exact)
        causes = sum(line[f"bit-stall/stored_cause_{c}"] for c in CAUSES)
        assert causes == pytest.approx(1 if share else math.nan, nan_ok=True)
        assert "bit-stall/stored_cause_coarse/transformer.h.0.mlp.c_fc" in line
