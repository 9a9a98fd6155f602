"""Weights and optimizer state that live on a grid: values, scales, and slow counts of stall."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from helpers import events, state
from torch import nn

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.formats import round_scalar
from altcore.numerics import scale_of
from altcore.quantization.stored import StoredWeight
from altcore.recipes import change, named

FORMATS = ["E4M3", "E3M4", "E5M2", "E7M0", "E0M7", "E2M1"]


def net(seed=0):
    """A small model whose weights have some spread."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))


def step_of(model, optimizer, seed):
    """One step of the optimizer; returns what it proposed, by parameter."""
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - x[:, :1]).square().mean().backward()
    optimizer.step()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def smallest_power(amax, fmt):
    """The smallest power of two s with fmt.max * s >= amax, exactly."""
    power = Fraction(1)
    while Fraction(fmt.max) * power >= Fraction(amax) * 2:
        power /= 2
    while Fraction(fmt.max) * power < Fraction(amax):
        power *= 2
    while Fraction(fmt.max) * power / 2 >= Fraction(amax):
        power /= 2
    return float(power)


def is_on_grid(values, fmt, scale):
    """Whether every value times 1 / scale is a value of the format: by way of its code."""
    back = altcore.decode(altcore.encode(values, fmt, scale=scale), fmt, scale=scale)
    return torch.equal(back, values.detach())


def code(value, fmt, scale):
    """The position of a number on the grid, by the slow scalar reference."""
    return fmt.index_of(round_scalar(value / scale, fmt) + 0.0)


# -------------------------------------------------------------------------- on the grid


@pytest.mark.parametrize("name", FORMATS)
def test_stored_weights_live_on_the_grid(name):
    """From the start and after every step; biases do not."""
    fmt, model = get_format(name), net()
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    q = quantize_model(model, named("pure", fmt))
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
                assert is_on_grid(p.data, fmt, float(grid.scale))
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
    """BF16 as stored format: the values themselves are bfloat16 numbers."""
    model = net()
    q = quantize_model(model, {"stored_weight": "BF16"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    step_of(model, optimizer, 1)
    q.store(optimizer)
    assert torch.equal(model[0].weight, model[0].weight.bfloat16().float())
    assert all(float(w.scale) == 1 for w in q.stored.values())


# ------------------------------------------------------------------------------- scales


def stored(values, name="E3M4"):
    """A stored weight with these values."""
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
    assert is_on_grid(p.data, weight.cast.format, float(weight.scale))
    return float(weight.scale_before), float(weight.scale), counts.tolist()


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
        p, weight = stored([[31.0, 1.0]])
        assert float(weight.scale) == 1.0
        before, after, _ = put(p, weight, [[value, 1.0]])
        assert (before, after) == (1.0, scale), value
        assert abs(float(p.detach()[0, 0]) - value) <= scale


def test_the_scale_halves_below_a_quarter_of_the_maximum():
    """Once a step, when the largest is below 31/4 of the grid's unit."""
    p, weight = stored([[31.0, 1.0]])
    assert put(p, weight, [[7.75, 1.0]])[1] == 1.0
    assert put(p, weight, [[7.74, 1.0]])[1] == 0.5
    assert put(p, weight, [[0.01, 0.0]])[1] == 0.25, "one halving a step"
    assert put(p, weight, [[0.01, 0.0]])[1] == 0.125


def test_zero_weights_get_their_scale_at_the_first_update():
    """Until then there is nothing to scale; then it is the smallest power that holds them."""
    p, weight = stored([[0.0, 0.0]])
    assert float(weight.scale) == 1.0
    assert put(p, weight, [[0.0, 0.0]])[1] == 1.0
    before, after, counts = put(p, weight, [[3e-5, -1e-5]])
    assert before == after == smallest_power(float(torch.tensor(3e-5)), get_format("E3M4"))
    assert float(p.detach()[0, 0]) == pytest.approx(3e-5, rel=0.04)
    assert counts == [2, 0, 2, 0]


def test_tiny_and_huge_weights():
    """Scales stay numbers with an exact inverse, and nothing becomes NaN."""
    for value in (1e-38, 1e-44, 1e38):
        p, weight = stored([[value, 0.0]])
        for _ in range(3):
            put(p, weight, [[value, 0.0]])
        assert math.isfinite(float(p.detach()[0, 0]))
        assert float(weight.scale) in [2.0**k for k in range(-126, 128)]


def test_rescaling_is_counted_apart():
    """Codes are compared at the scale before the step; what a new scale moves is another column."""
    p, weight = stored([[31.0, 3 / 64, 1.0]])
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


# ---------------------------------------------------------------------------- slow counts


@pytest.mark.parametrize("name", ["E4M3", "E7M0", "E0M7"])
@pytest.mark.parametrize("rate", [1e-4, 3e-2])
def test_stall_against_a_slow_count(name, rate):
    """Element by element with the scalar reference, on the optimizer's real proposals."""
    fmt, model = get_format(name), net()
    q = quantize_model(model, named("pure", fmt))
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
    q = quantize_model(model, named("pure", get_format("E4M3")))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.zeros(4, 6)
    x[:, 0] = 1
    model(x).sum().backward()
    optimizer.step()
    q.store(optimizer)
    row = next(r for r in q.stats() if (r["layer"], r["operand"]) == ("0", "stored_weight"))
    assert 0 < row["updates"] <= 8, "one column of six has a gradient"


@pytest.mark.parametrize("name", ["E4M3", "E7M0"])
@pytest.mark.parametrize("rounding", ["nearest-even", "to-zero", "up"])
def test_view_stall_against_a_slow_count(name, rounding):
    """Masters that moved while their view, at the scale of the forward, did not."""
    fmt, model = get_format(name), net()
    cast = {"format": name, "rounding": rounding}
    q = quantize_model(model, {"weight": cast, "skip": ["<head>"]})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found_stall = False
    for step in range(1, 5):
        q.begin_step(step, tracking=True)
        before = {n: model.get_parameter(f"{n}.weight").detach().clone() for n in ("0", "2")}
        proposed = step_of(model, optimizer, step)
        q.store(optimizer)
        q.measure_views()
        rows = {r["layer"]: r for r in q.stats() if r["operand"] == "weight view"}
        for n, old in before.items():
            _, r = scale_of(old.abs().max(), fmt)
            codes = [
                [
                    round_scalar(x, fmt, rounding)
                    for x in (w * r).flatten().tolist()  # rounded to float32 first
                ]
                for w in (old, proposed[f"{n}.weight"])
            ]
            moved = (old != proposed[f"{n}.weight"]).flatten().tolist()
            stalled = sum(m and a == b for m, a, b in zip(moved, *codes, strict=True))
            assert (rows[n]["moved"], rows[n]["stalled"]) == (sum(moved), stalled)
            found_stall |= 0 < stalled < sum(moved)
    assert found_stall


def test_views_under_stochastic_rounding_are_compared_with_the_same_bits():
    """Masters that move by one part in 10^7 stall nearly all; other bits would flip a third."""
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 1))
    q = quantize_model(
        model, {"layers": {"0": {"weight": {"format": "E2M1", "rounding": "stochastic"}}}}
    )
    q.begin_step(1, tracking=True)
    model(torch.ones(2, 60)).sum().backward()
    with torch.no_grad():
        model[0].weight.mul_(1 + 2**-22)
    q.store()
    q.measure_views()
    (row,) = (r for r in q.stats() if r["operand"] == "weight view")
    assert row["moved"] > 3500
    assert row["stalled"] / row["moved"] > 0.99


def test_views_are_kept_on_recorded_steps_alone():
    """And not in a probe."""
    model = net()
    q = quantize_model(model, "E4M3")
    q.begin_step(1)
    model(torch.ones(1, 6))
    q.begin_step(2, tracking=True)
    with q.frozen():
        model(torch.ones(1, 6))
    q.measure_views()
    assert not [r for r in q.stats() if r["operand"] == "weight view"]
    assert "view_stall_rate" not in q.counters.stall_rates()


# -------------------------------------------------------------------------- optimizer state


@pytest.mark.parametrize("name", ["E4M3", "E7M0", "E2M1"])
@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_optimizer_state_lives_on_the_grid_and_the_second_moment_is_never_zero(name, rounding):
    """Under it the next step would divide by nothing; the first moment may vanish."""
    fmt, model = get_format(name), net()
    q = quantize_model(model, {"optimizer_state": {"format": name, "rounding": rounding}})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    lost = 0
    for step in range(1, 6):
        q.begin_step(step)
        step_of(model, optimizer, step)
        plain = {n: {k: v.clone() for k, v in optimizer.state[p].items()}
                 for n, p in model.named_parameters()}  # fmt: skip
        q.store(optimizer)
        for n, p in model.named_parameters():
            first, second = (optimizer.state[p][k] for k in ("exp_avg", "exp_avg_sq"))
            if p.dim() < 2:
                assert torch.equal(first, plain[n]["exp_avg"]), "vectors have no role"
                continue
            assert torch.equal(optimizer.state[p]["step"], plain[n]["step"])
            s, _ = scale_of(plain[n]["exp_avg_sq"].abs().max(), fmt)
            positive = plain[n]["exp_avg_sq"] > 0
            assert bool((second[positive] > 0).all())
            assert bool((second[~positive] == 0).all())
            if rounding == "nearest-even":
                expected = altcore.fake_quantize(plain[n]["exp_avg"], fmt, scale="amax")
                assert torch.equal(first, expected)
                rounded = altcore.fake_quantize(plain[n]["exp_avg_sq"], fmt, scale="amax")
                kept = rounded != 0
                assert torch.equal(second[kept], rounded[kept])
                floor = fmt.smallest * s
                assert bool((second[positive & ~kept] == floor).all())
            lost += int((second[positive] == fmt.smallest * s).sum())
    assert lost > 0 or name == "E7M0", "something must have been held up"


def test_moments_stay_float32_without_a_role():
    """Recipe pure stores weights, not what the optimizer remembers."""
    model = net()
    q = quantize_model(model, named("pure", get_format("E4M3")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step_of(model, optimizer, 1)
    plain = optimizer.state[model[0].weight]["exp_avg"].clone()
    q.store(optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], plain)


# --------------------------------------------------------------------------------- ties


class Tied(nn.Module):
    """An embedding whose weight is the head's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.inner = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.inner(self.embed(ids)))


@pytest.mark.parametrize("layer", ["embed", "head", "<any>", "<head>", "<embedding>"])
def test_a_tied_weight_is_stored_once_whichever_layer_says_so(layer):
    """Both layers then use the values on the grid."""
    model = Tied()
    q = quantize_model(model, {"layers": {layer: {"stored_weight": "E3M4"}}})
    assert next(iter(q.stored)) == "embed.weight"
    assert model.head.weight is model.embed.weight
    assert is_on_grid(
        model.head.weight.data, get_format("E3M4"), float(q.stored["embed.weight"].scale)
    )
    assert all(q.plan[n]["stored_weight"].format.name == "E3M4" for n in ("embed", "head"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(10)).square().sum().backward()
    optimizer.step()
    q.store(optimizer)
    assert is_on_grid(
        model.embed.weight.data, get_format("E3M4"), float(q.stored["embed.weight"].scale)
    )
    assert q.grid_of(model.head.weight).is_stored


def test_two_casts_for_one_tied_weight_are_an_error():
    """Both layers are named."""
    recipe = {"layers": {"embed": {"stored_weight": "E3M4"}, "head": {"stored_weight": "E4M3"}}}
    with pytest.raises(
        BadInput, match=r"embed and head share the parameter embed\.weight.*stored_w"
    ):
        quantize_model(Tied(), recipe)


# ------------------------------------------------------------------------------- changes


def test_a_weight_that_was_replaced_is_found_again():
    """Its grid and its optimizer state's cast are those of its place in the model."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    q = altcore.quantize_model(model, {"weight": "E4M3", "optimizer_state": "E4M3"})
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    q.store(optimizer)
    assert q.grid_of(model[0].weight).format.name == "E4M3"
    assert q.grid_of(model[0].bias) is None
    assert list(q.weights.parameters.values()) == [model[0].weight, model[1].weight]
    assert not torch.equal(optimizer.state[model[0].weight]["exp_avg"], before)
    twin = copy.deepcopy(q)
    assert twin.grid_of(twin.model[1].weight).format.name == "E4M3"
    assert twin.grid_of(model[1].weight) is None
    q.remove()
    kept = optimizer.state[model[0].weight]["exp_avg"].add_(0.1234567).clone()
    q.store(optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], kept)
    assert q.grid_of(model[0].weight) is None


def test_a_change_re_encodes_only_what_changed():
    """The same cast keeps values and scale; another one is encoded anew, with its error told."""
    model = net()
    q = quantize_model(model, named("pure", get_format("E3M4")))
    kept = dict(q.stored)
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    plan = {n: dict(casts) for n, casts in q.plan.items()}
    other = quantize_model(net(1), {"layers": {"2": {"stored_weight": "E2M1"}}}).plan["2"]
    plan["2"]["stored_weight"] = other["stored_weight"]
    errors = q.change(plan)
    assert set(errors) == {"2.weight"}
    assert q.stored["0.weight"] is kept["0.weight"]
    now, fmt = model[2].weight.detach(), get_format("E2M1")
    s = smallest_power(float(values["2.weight"].abs().max()), fmt)
    assert torch.equal(now, altcore.fake_quantize(values["2.weight"], fmt, scale=s))
    error = (now - values["2.weight"]).norm() / values["2.weight"].norm()
    assert errors["2.weight"] == pytest.approx(float(error), rel=1e-5)
    assert torch.equal(model[0].weight, values["0.weight"])


def test_another_recipe_in_a_loop_of_ones_own():
    """From then on it is as if the model had been quantized so, and the optimizer goes on."""
    model = net()
    q = quantize_model(model, "E4M3")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for recipe, keys in (("E5M2", {}), ({"weight": "E2M1"}, {}), ("pure", {"format": "E3M4"})):
        errors = q.change_recipe(recipe, **keys)
        fresh = copy.deepcopy(model)
        quantize_model(fresh, recipe, **keys)
        assert torch.equal(model(x), fresh(x))
        model(x).sum().backward()
        optimizer.step()
        q.store(optimizer)
        optimizer.zero_grad()
    assert set(errors) == set(q.stored) != set()
    assert all(state["step"] == 3 for state in optimizer.state.values())
    plan = q.plan
    with pytest.raises(BadInput):
        q.change_recipe({"layers": {"nowhere": {"weight": "E4M3"}}})
    blocked = {"layers": {"0": {"weight@fwd": {"format": "E4M3", "hadamard": 2}}}}
    with pytest.raises(BadInput, match=r"^recipe mine: layer 0 is Linear: activation@fwd and"):
        q.change_recipe({"name": "mine", **blocked})
    assert q.plan is plan


def test_a_change_starts_delayed_scaling_anew_where_it_changed():
    """The largest values that one format met say nothing of another's overflow."""
    delayed = {"format": "E4M3", "scaling": "delayed"}
    model = net()
    q = quantize_model(model, {"weight": delayed, "skip": ["<head>"]})
    q.begin_step(1)
    model(torch.ones(2, 6))
    before = {str(x.site): x.history for x in q.quantizers}
    assert all(h is not None for h in before.values())
    q.change(change(q.plan, ["0"], [], format=get_format("E5M2")))
    after = {str(x.site): x.history for x in q.quantizers}
    assert after["0:weight@fwd"] is None
    assert after["2:weight@fwd"] is before["2:weight@fwd"]
    model(torch.ones(2, 6))
    s, r = scale_of(model[0].weight.detach().abs().max(), get_format("E5M2"))
    seen = model[0](torch.eye(6)) - model[0].bias
    expected = altcore.numerics.round_to_grid(model[0].weight.detach(), get_format("E5M2"), r=r) * s
    torch.testing.assert_close(seen, expected.T)


def test_state_comes_back():
    """Scales, histories and plan are in the state; the values are the model's own."""
    fmt = get_format("E3M4")
    recipe = {
        "weight": {"format": "E4M3", "scaling": "delayed"},
        "stored_weight": fmt,
        "layers": {"4": {"weight": "none"}},
    }
    model, other = net(), net(5)
    q = quantize_model(model, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(1, 6):
        q.begin_step(step)
        step_of(model, optimizer, step)
        q.store(optimizer)
    twin = quantize_model(other, "E5M2")
    twin.load_state_dict(q.state_dict(), model.state_dict())
    assert twin.plan == q.plan
    assert {n: float(w.scale) for n, w in twin.stored.items()} == {
        n: float(w.scale) for n, w in q.stored.items()
    }
    for a, b in zip(q.quantizers, twin.quantizers, strict=True):
        assert a.site == b.site
        assert (a.history is None) == (b.history is None)
        assert a.history is None or torch.equal(a.history, b.history)
    x = torch.ones(2, 6)
    assert torch.equal(model(x), other(x))
    assert isinstance(next(iter(twin.stored.values())), StoredWeight)
