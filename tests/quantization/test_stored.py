"""Weights that live on a grid: values, scales, slow counts of stall, and what others change."""

import math
import warnings
from fractions import Fraction

import pytest
import torch
from helpers import events, state
from helpers_quantization import (
    STORED,
    TiedHead,
    build_net,
    is_on_grid,
    net,
    smallest_power,
    step_of,
)
from torch import nn
from torch.func import functional_call

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.formats import round_scalar
from altcore.recipes import read_recipe

TOLD = r"stored weight 0\.weight was changed by something other than q\.store"


def values_of(model, x=None):
    """The weight that the first layer's product sees."""
    return model[0](torch.eye(8)).detach().T


class Limited(nn.Linear):
    """Limits the norms of its rows before each use, as EEGNet's layers do."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


class Renewed(nn.Linear):
    """Puts another parameter in its weight's place, which no function of torch sees."""

    def forward(self, x):
        self.weight = nn.Parameter(torch.randn(8, 8))
        return nn.functional.linear(x, self.weight)


class Merged(nn.Linear):
    """Adds to a copy of its weight, which lies on a grid, and multiplies by that."""

    def forward(self, x):
        w = self.weight.clone()
        w.view(-1).add_(1 / 3)
        return nn.functional.linear(x, w)


class Shared(nn.Module):
    """A module that is no Linear, and stores its matrix."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return x @ self.table


FORMATS = ["E4M3", "E3M4", "E5M2", "E7M0", "E0M7", "E2M1"]


def is_at_scale(values, fmt, scale):
    """Whether every value times 1 / scale is a value of the format: by way of its code."""
    back = altcore.decode(altcore.encode(values, fmt, scale=scale), fmt, scale=scale)
    return torch.equal(back, values.detach())


def code(value, fmt, scale):
    """The position of a number on the grid, by the slow scalar reference."""
    return fmt.index_of(round_scalar(value / scale, fmt) + 0.0)


def stored_alone(values, name="E3M4"):
    """A stored_alone weight with these values."""
    p = nn.Parameter(torch.tensor(values))
    q = quantize_model(Holder(p), {"layers": {"": {"stored_weight": name}}})
    return p, q.stored["weight"]


class Holder(nn.Module):
    """One parameter."""

    def __init__(self, p):
        super().__init__()
        self.weight = p


def put(p, weight, values):
    """Propose values and store them; returns (scale before, scale after)."""
    with torch.no_grad():
        p.copy_(torch.tensor(values))
    counts = weight.store()
    assert is_at_scale(p.data, weight.cast.format, float(weight.scale))
    return float(weight.scale_before), float(weight.scale), counts.tolist()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("factor", [1.0, 64.0, 2.0**-9])
def test_weights_that_are_loaded_are_rounded(assign, factor):
    """At a scale that fits them, without a word: loading is what a checkpoint is for."""
    model, other = build_net(), build_net()
    with torch.no_grad():
        other[0].weight.mul_(factor)
    with quantize_model(model, STORED) as q, warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(other.state_dict(), assign=assign)
        assert is_on_grid(model[0].weight)
        assert torch.equal(values_of(model), model[0].weight)
        error = (model[0].weight - other[0].weight * 1.0).norm() / other[0].weight.norm()
        assert error < 0.05 or assign
        assert q.coverage().parameter_share == pytest.approx((64 + 16) / (64 + 16 + 2))


def test_a_checkpoint_of_stored_weights_comes_back_as_it_was():
    """Whatever the scale was at which they were stored."""
    model = build_net()
    with quantize_model(model, STORED) as q:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
            q.store(optimizer)
        state = {n: p.clone() for n, p in model.state_dict().items()}
    again = build_net()
    with quantize_model(again, STORED):
        again.load_state_dict(state)
        assert all(torch.equal(again.state_dict()[n], p) for n, p in state.items())


@pytest.mark.parametrize("name", ["E4M3", "NF4", "FEW"])
def test_values_of_a_grid_stay_when_they_are_loaded(name):
    """Also at a scale that was not halved yet, and in a model that is quantized anew."""
    few = altcore.table_format("FEW", [-1.0, -0.4, -0.1, 0.0, 0.1, 0.4, 1.0])
    fmt = few if name == "FEW" else get_format(name)
    small = [v for v in fmt.values if abs(v) < fmt.max / 4]
    p, weight = stored_alone([[fmt.max, *small]], fmt)
    _, scale, _ = put(p, weight, [[fmt.max / 4, *small]])
    assert scale == 1
    kept = p.detach().clone()
    again, new = stored_alone(kept.tolist(), fmt)
    other, loaded = stored_alone(torch.randn(kept.shape).tolist(), fmt)
    with torch.no_grad():
        other.copy_(kept)
    for at, found in ((new.scale, again), loaded.as_seen(other)):
        assert torch.equal(found, kept)
        assert is_at_scale(kept, fmt, float(at))


def test_a_weight_that_is_not_finite_was_changed_by_nobody():
    """A NaN of the optimizer's takes the scale with it, and every weight seems to be another."""
    model = build_net()
    with quantize_model(model, STORED) as q, warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with torch.no_grad():
            model[0].weight[0, 0] = math.nan
        q.store(optimizer)
        values_of(model)


@pytest.mark.parametrize("how", ["in place", "data", "replaced", "vector"])
def test_a_weight_that_was_changed_is_rounded_and_told(how):
    """Averages of weights, hand-made updates, optimizers that write to ``data``."""
    model, new = build_net(), torch.randn(8, 8)
    with quantize_model(model, STORED):
        w = model[0].weight
        if how == "in place":
            with torch.no_grad():
                w.copy_(new)
        elif how == "data":
            w.data.copy_(new)
        elif how == "replaced":
            model[0].weight = nn.Parameter(new.clone())
        else:
            vector = torch.cat([new.flatten(), *(p.flatten() for p in model[2].parameters())])
            torch.nn.utils.vector_to_parameters(vector, model.parameters())
        with pytest.warns(RuntimeWarning, match=TOLD):
            found = values_of(model)
        assert is_on_grid(found)
        assert torch.equal(found, model[0].weight)
        assert (found - new).norm() < 0.05 * new.norm()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values_of(model)


def test_a_weight_that_its_own_forward_changes_is_rounded():
    model = nn.Sequential(Limited(8, 8, bias=False))
    with quantize_model(model, STORED):
        found = values_of(model)
        assert torch.equal(found, model[0].weight)
        assert is_on_grid(found)


def test_a_loop_that_forgets_to_store_is_told():
    """And its products are quantized all the same."""
    model = build_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with quantize_model(model, STORED):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        assert not is_on_grid(model[0].weight)
        with pytest.warns(RuntimeWarning, match=TOLD + r".*call q\.store\(optimizer\)"):
            assert is_on_grid(values_of(model))


def test_a_loop_that_forgets_to_store_is_told_in_a_few_lines():
    """Of a large model there would be hundreds."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(9)))
    with quantize_model(model, STORED), torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
        with pytest.warns(RuntimeWarning) as told:
            model(torch.randn(2, 8))
    assert [str(w.message).split()[:3] for w in told][2:] == [
        ["stored", "weight", "2.weight"],
        ["more", "stored", "weights"],
    ]


def test_functional_calls_see_the_grid():
    """The tensor that is given stays as it is, and gets its gradient."""
    model, w = build_net(), torch.randn(8, 8, requires_grad=True)
    with quantize_model(model, STORED):
        before = model[0].weight.clone()
        y = functional_call(model[0], {"weight": w}, torch.eye(8))
        assert is_on_grid(y.T)
        assert not is_on_grid(w)
        y.sum().backward()
        assert torch.equal(w.grad, torch.ones(8, 8))
        assert torch.equal(model[0].weight, before)


def test_a_weight_that_its_own_forward_replaces_is_rounded_and_told():
    model = nn.Sequential(Renewed(8, 8, bias=False))
    with quantize_model(model, STORED), pytest.warns(RuntimeWarning, match=TOLD):
        assert is_on_grid(values_of(model))


def test_a_copy_of_a_stored_weight_that_was_written_to_is_not_stored():
    model = nn.Sequential(Merged(8, 8, bias=False))
    with quantize_model(model, {"stored_weight": "E3M4", "weight": "E3M4"}):
        expected = altcore.fake_quantize(model[0].weight + 1 / 3, "E3M4", scale="amax")
        torch.testing.assert_close(values_of(model), expected)


def test_an_embedding_that_was_resized():
    """It is found again by where it lies."""
    model = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 2))
    with quantize_model(model, STORED) as q:
        model[0].weight = nn.Parameter(torch.randn(9, 8))
        with pytest.warns(RuntimeWarning, match=r"stored weight 0\.weight"):
            model(torch.tensor([8]))
        assert is_on_grid(model[0].weight)
        assert q.grid_of(model[0].weight).is_stored


def test_stored_weights_of_any_module():
    """Seen in its own forward too."""
    model = nn.Sequential(Shared())
    with quantize_model(model, STORED):
        with torch.no_grad():
            model[0].table.add_(0.01)
        with pytest.warns(RuntimeWarning, match=r"stored weight 0\.table"):
            y = model(torch.eye(4))
        assert is_on_grid(y)
        with pytest.raises(BadInput, match="a tensor was put in its place that is on none"):
            functional_call(model[0], {"table": torch.randn(4, 8)}, torch.eye(4))


@pytest.mark.parametrize("name", FORMATS)
def test_stored_weights_live_on_the_grid(name):
    """From the start and after every step; biases do not."""
    fmt, model = get_format(name), net()
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    q = quantize_model(model, read_recipe("pure", fmt))
    assert set(q.stored) == {"0.weight", "2.weight", "4.weight"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    for n, p in model.named_parameters():
        if n in q.stored:
            s = float(q.grid_of(p).scale)
            assert s == smallest_power(float(first[n].abs().max()), fmt)
            assert torch.equal(p, altcore.fake_quantize(first[n], fmt, scale=s))
        else:
            assert torch.equal(p, first[n])
            assert q.grid_of(p) is None
    moved = 0
    for step in range(1, 25):
        q.begin_step(step)
        proposed = step_of(model, optimizer, step)
        before = {n: w.before.clone() for n, w in q.stored.items()}
        q.store(optimizer)
        for n, p in model.named_parameters():
            if n in q.stored:
                grid = q.grid_of(p)
                assert grid.is_stored
                assert is_at_scale(p.data, fmt, float(grid.scale))
                moved += int((p != before[n]).sum())
            else:
                assert torch.equal(p, proposed[n])
    assert moved > 0


def test_the_product_uses_the_stored_values_as_they_are():
    """No second quantization: with exact amax scales it would move them off their grid."""
    model = net()
    recipe = {"weight": "E4M3", "stored_weight": "E4M3"}
    quantize_model(model, recipe)
    y = model[0](torch.eye(6)) - model[0].bias
    torch.testing.assert_close(y, model[0].weight.T, rtol=1e-6, atol=1e-7)


def test_a_product_may_ask_for_another_format_than_the_stored_one():
    """Stored in E5M2 and multiplied in E2M1; one operand alone may ask for it."""
    model = net()
    quantize_model(model, {"weight@dgrad": "E2M1", "stored_weight": "E5M2"})
    w = model[0].weight.detach()
    x = torch.eye(6).requires_grad_()
    y = model[0](x)
    torch.testing.assert_close(y - model[0].bias, w.T, rtol=1e-6, atol=1e-7)
    y.backward(torch.eye(8)[:6])
    seen = altcore.fake_quantize(w, "E2M1", scale="amax")
    assert not torch.equal(seen, w)
    torch.testing.assert_close(x.grad, seen[:6], rtol=1e-6, atol=1e-7)


def test_a_format_without_scaling_has_scale_one():
    """BF16 as stored_alone format: the values themselves are bfloat16 numbers."""
    model = net()
    q = quantize_model(model, {"stored_weight": "BF16"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    step_of(model, optimizer, 1)
    q.store(optimizer)
    assert torch.equal(model[0].weight, model[0].weight.bfloat16().float())
    assert all(float(w.scale) == 1 for w in q.stored.values())


def test_the_scale_doubles_when_rounding_passes_the_largest_value():
    """E3M4 tops out at 31 and would go on to 32: up to 31.5 saturates, then the scale grows."""
    for value, scale in (
        (31.0, 1.0),
        (31.49, 1.0),
        (31.6, 2.0),
        (60.0, 2.0),
        (62.5, 4.0),
        (999.0, 64.0),
    ):
        p, weight = stored_alone([[31.0, 1.0]])
        assert float(weight.scale) == 1.0
        before, after, _ = put(p, weight, [[value, 1.0]])
        assert (before, after) == (1.0, scale), value
        assert abs(float(p.detach()[0, 0]) - value) <= scale


@pytest.mark.parametrize("side", [1, -1])
def test_the_scale_doubles_for_the_side_that_overflows(side):
    """As a fresh scale does: the other side, which is longer, holds more and does not count."""
    values = sorted(side * v for v in (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0))
    fmt = altcore.table_format("LONG", values)
    for value in (1.2, 1.3, 1.9, 3.5, 9.0, -1.2, -1.3, -1.9, -3.5, -9.0):
        p, weight = stored_alone([[0.9, -0.9]], fmt)
        _, after, _ = put(p, weight, [[value, 0.0]])
        over = Fraction(abs(value)) > Fraction(5, 4)  # the middle of 1 and 1.5, the next step
        assert after == (smallest_power(abs(value), fmt) if over else 1.0)
        assert float(p.detach()[0, 0]) == round_scalar(value / after, fmt) * after


def test_the_scale_halves_below_a_quarter_of_the_maximum():
    """Once a step, when the largest is below 31/4 of the grid's unit."""
    p, weight = stored_alone([[31.0, 1.0]])
    assert put(p, weight, [[7.75, 1.0]])[1] == 1.0
    assert put(p, weight, [[7.74, 1.0]])[1] == 0.5
    assert put(p, weight, [[0.01, 0.0]])[1] == 0.25, "one halving a step"
    assert put(p, weight, [[0.01, 0.0]])[1] == 0.125


def test_zero_weights_get_their_scale_at_the_first_update():
    """Until then there is nothing to scale; then it is the smallest power that holds them."""
    p, weight = stored_alone([[0.0, 0.0]])
    assert float(weight.scale) == 1.0
    assert put(p, weight, [[0.0, 0.0]])[1] == 1.0
    before, after, counts = put(p, weight, [[3e-5, -1e-5]])
    assert before == after == smallest_power(float(torch.tensor(3e-5)), get_format("E3M4"))
    assert float(p.detach()[0, 0]) == pytest.approx(3e-5, rel=0.04)
    assert counts == [2, 0, 2, 0]


def test_tiny_and_huge_weights():
    """Scales stay numbers with an exact inverse, and nothing becomes NaN."""
    for value in (1e-38, 1e-44, 1e38):
        p, weight = stored_alone([[value, 0.0]])
        for _ in range(3):
            put(p, weight, [[value, 0.0]])
        assert math.isfinite(float(p.detach()[0, 0]))
        assert float(weight.scale) in [2.0**k for k in range(-126, 128)]


def test_rescaling_is_counted_apart():
    """Codes are compared at the scale before the step; what a new scale moves is another column."""
    p, weight = stored_alone([[31.0, 3 / 64, 1.0]])
    # 3/64 is a subnormal of the grid at scale 1, and between two of the grid at scale 2.
    _, after, (updates, stalled, flips, rescaled) = put(p, weight, [[40.0, 3 / 64, 1.01]])
    assert after == 2.0
    assert (updates, stalled, flips) == (2, 2, 0), "40 saturates at the old scale: its code stayed"
    assert rescaled == 2, "40 and 3/64 are other values on the new grid"


def test_changes_of_scale_are_events(start):
    """Each is told with before and after, and what is told adds up to the scales at the end."""
    run = start(format="E3M4", recipe="pure", learning_rate=0.1, max_steps=8, name="r")
    told = events(run.run_directory, "rescale")
    assert told
    assert all(math.log2(e["after"] / e["before"]).is_integer() for e in told)
    ends = {}
    for e in told:
        assert ends.get(e["parameter"], e["before"]) == e["before"]
        ends[e["parameter"]] = e["after"]
    scales = state(run.run_directory)["quantization"]["stored"]
    first = start.engine(format="E3M4", recipe="pure", name="first").run.quantization.stored
    for name, s in scales.items():
        assert ends.get(name, float(first[name].scale)) == float(s["scale"])
    assert max(e["step"] for e in told) <= 8


@pytest.mark.parametrize("name", ["E4M3", "E7M0", "E0M7"])
@pytest.mark.parametrize("rate", [1e-4, 3e-2])
def test_stall_against_a_slow_count(name, rate):
    """Element by element with the scalar reference, on the optimizer's real proposals."""
    fmt, model = get_format(name), net()
    q = quantize_model(model, read_recipe("pure", fmt))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    seen = set()
    for step in range(1, 7):
        q.begin_step(step, tracking=True)
        before = {n: (p.detach().clone(), float(q.stored[n].scale)) for n, p in
                  model.named_parameters() if n in q.stored}  # fmt: skip
        proposed = step_of(model, optimizer, step)
        q.store(optimizer)
        rows = {r["layer"]: r for r in q.stats() if r["operand"] == "stored_weight"}
        all_updates = all_stalled = 0
        for n, (old, scale) in before.items():
            updates = stalled = flips = rescaled = 0
            after = model.get_parameter(n)
            for w, u, now in zip(old.flatten().tolist(), proposed[n].flatten().tolist(),
                                 after.flatten().tolist(), strict=True):  # fmt: skip
                same = code(w, fmt, scale) == code(u, fmt, scale)
                updates += u != w
                stalled += u != w and same
                flips += not same
                rescaled += round_scalar(u / scale, fmt) * scale != now
            row = rows[n.partition(".")[0]]
            assert [row[k] for k in ("updates", "stalled", "flips", "rescaled")] == [
                updates, stalled, flips, rescaled
            ]  # fmt: skip
            all_updates, all_stalled = all_updates + updates, all_stalled + stalled
        rate_told = float(q.counters.stall_rates()["stored_stall_rate"])
        assert rate_told == pytest.approx(all_stalled / all_updates)
        seen.add(rate_told)
    assert max(seen) > 0


def test_elements_without_an_update_are_counted_apart():
    """No gradient and no decay: nothing proposed, so nothing stalled."""
    model = net()
    q = quantize_model(model, read_recipe("pure", get_format("E4M3")))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.zeros(4, 6)
    x[:, 0] = 1
    model(x).sum().backward()
    optimizer.step()
    q.store(optimizer)
    row = next(r for r in q.stats() if (r["layer"], r["operand"]) == ("0", "stored_weight"))
    assert 0 < row["updates"] <= 8, "one column of six has a gradient"


@pytest.mark.parametrize("layer", ["embed", "head", "<any>", "<head>", "<embedding>"])
def test_a_tied_weight_is_stored_once_whichever_layer_says_so(layer):
    """Both layers then use the values on the grid."""
    model = TiedHead()
    q = quantize_model(model, {"layers": {layer: {"stored_weight": "E3M4"}}})
    assert next(iter(q.stored)) == "embed.weight"
    assert model.head.weight is model.embed.weight
    assert is_at_scale(
        model.head.weight.data, get_format("E3M4"), float(q.stored["embed.weight"].scale)
    )
    assert all(q.plan[n]["stored_weight"].format.name == "E3M4" for n in ("embed", "head"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(10)).square().sum().backward()
    optimizer.step()
    q.store(optimizer)
    assert is_at_scale(
        model.embed.weight.data, get_format("E3M4"), float(q.stored["embed.weight"].scale)
    )
    assert q.grid_of(model.head.weight).is_stored


@pytest.mark.parametrize("size", [0.0, 3000.0])
def test_the_error_of_a_float16_weight_is_a_number(size):
    """The norm of its square may be above the largest float16, or 0."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).half()
    nn.init.constant_(model[0].weight, size)
    with quantize_model(model, {"stored_weight": "E4M3"}, head=None) as q:
        (kept,) = q.stored.values()
    assert 0 <= float(kept.error) < 0.07
