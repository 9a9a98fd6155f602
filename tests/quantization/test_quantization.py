"""Quantization in a model: products against a straightforward reference, and taking it all back."""

import copy

import pytest
import torch
from helpers_quantization import STORED, Tied, build_net, embedder, net, smallest_power, step_of
from torch import nn
from torch.nn import functional

import altcore
from altcore import BadInput, get_format, quantize_model
from altcore.numerics import scale_of
from altcore.quantization.stored import StoredWeight
from altcore.recipes import Scaling, change, read_recipe


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


EVERY_ROLE = {
    "weight": "E4M3",
    "activation": "E4M3",
    "gradient": "E5M2",
    "stored_weight": "E4M3",
    "layers": {"<any>": {"weight_gradient": "E4M3", "weight": "E4M3"}},
}


def test_a_plan_does_not_suit_a_model_with_other_layers():
    """Its layers' names are those of before; a recipe finds the new ones."""
    model = build_net()
    with quantize_model(model, STORED) as q:
        model.append(nn.Linear(2, 2))
        with pytest.raises(BadInput, match=r"other layers .*\(3\): change_recipe"):
            q.change(q.plan)
        q.change_recipe(STORED)
        assert "3.weight" in q.stored


def test_a_state_comes_back_at_its_own_scale():
    """Weights are loaded before anybody could ask at which scale a table's values were stored."""
    steep = altcore.table_format("STEEP", [-1.0, -0.3, -0.03, 0.0, 0.03, 0.3, 1.0])
    model = build_net()
    with quantize_model(model, {"stored_weight": steep}, head=None) as q:
        with torch.no_grad():
            model[0].weight.mul_(0.04)
        q.store()  # the scale is halved once a step, and lags behind
        state, weights = q.state_dict(), {n: p.clone() for n, p in model.state_dict().items()}
        assert 0 < len(weights["0.weight"].unique()) <= 3
        for _ in range(9):
            with torch.no_grad():
                model[0].weight.mul_(0.5)
            q.store()
        q.load_state_dict(state, weights)
        assert torch.equal(model[0].weight, weights["0.weight"])
        assert torch.equal(
            q.state_dict()["stored"]["0.weight"]["scale"], state["stored"]["0.weight"]["scale"]
        )


def test_what_is_no_model_and_no_plan_is_named():
    with pytest.raises(BadInput, match=r"model: a torch\.nn\.Module is needed, not 3"):
        quantize_model(3, "E4M3")
    for wrong, said in (
        ({"seed": 1.5}, r"seed: a whole number is needed, not 1\.5"),
        ({"seed": None}, "seed: a whole number is needed, not None"),
        ({"head": ["1"]}, r"head: the name of a module is needed, or None, not \['1'\]"),
        ({"head": nn.Identity()}, r"head: the name of a module .* not Identity\(\)"),
        ({"optimizer": "adamw"}, r"optimizer: one of torch\.optim's is needed, .* not str"),
        ({"recipe": "purr"}, r"unknown recipe 'purr' \(did you mean pure\?\): one of full,"),
        ({"recipe": "pur", "format": "E4M3"}, r"unknown recipe .*\(did you mean pure\?\)"),
    ):
        with pytest.raises(BadInput, match=said):
            quantize_model(nn.Linear(2, 2), **{"recipe": "E4M3"} | wrong)
    q = quantize_model(nn.Sequential(nn.Linear(2, 2)), "E4M3")
    with pytest.raises(BadInput, match="a plan is needed, not 'E7M0'; change_recipe takes"):
        q.change("E7M0")


def test_a_change_that_is_refused_changes_nothing():
    """Neither the plan nor the hooks on gradients."""
    recipe = {"weight": "E4M3", "weight_gradient": "E2M1", "stored_weight": "E4M3"}
    model = embedder()
    with quantize_model(model, recipe) as q:
        before, stored = q.plan, dict(q.stored)
        with pytest.raises(BadInput, match="stored_weight has one scale"):
            q.change(change(q.plan, ["*"], [], format=get_format("MXFP4")))
        assert q.plan is before
        assert q.stored == stored
        model[1](model[0](torch.arange(4))).square().sum().backward()
        grad = model[1].weight.grad
        assert len((grad / grad.abs().max()).unique()) <= 15


def test_a_change_leaves_out_what_lies_elsewhere():
    """Attention's roles reach attention, those of products the others, as in a recipe."""
    with quantize_model(embedder(), {"weight": "E4M3"}) as q:
        q.change(change(q.plan, ["*"], ["attention"], format=get_format("E5M2")))
        assert {n for n, casts in q.plan.items() if casts["attention@query"]} == {"2"}
        q.change(change(q.plan, ["*"], ["weight"], format=get_format("E5M2")))
        assert not q.plan["2"]["weight@fwd"]
        with pytest.raises(BadInput, match="no layer has what the change asks for"):
            q.change(change(q.plan, ["1"], ["attention"], format=get_format("E4M3")))


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"layers": {"1": {"weight": "MXFP4"}}}, "format MXFP4 brings its own"),
        ({"stored_weight": "E4M3"}, "stored_weight has a single scale"),
    ],
)
def test_a_change_of_scaling_is_held_to_what_a_recipe_may_say(recipe, says):
    """Otherwise a run could not be resumed, or would report a scaling that it has not."""
    with quantize_model(embedder(), recipe) as q, pytest.raises(BadInput, match=says):
        q.change(change(q.plan, ["*"], [], scaling=Scaling("channel")))


@pytest.mark.parametrize(
    "recipe", [{}, {"weight": "none", "activation": None}, read_recipe("pure", "none")]
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


@pytest.mark.parametrize("follows", [True, False])
def test_in_a_loop_of_ones_own_stats_are_those_of_the_last_step(follows):
    """Of all its passes, until the next one trains; evaluation in between moves nothing."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recipe = {"activation": {"format": "E4M3", "scaling": "none"}, "weight_gradient": "E5M2"}
    sizes = {"activation@fwd": 2 * (8 + 8) * 3, "weight_gradient": 2 * (64 + 32)}
    given = optimizer if follows else None
    with quantize_model(model, recipe, head=None, optimizer=given) as q:
        for _ in range(3):
            for _ in range(2):
                model(torch.full((3, 8), 1e6)).sum().backward()
            optimizer.step()
            q.store(optimizer)
            with torch.no_grad(), q.frozen():
                model(torch.ones(3, 8))
            rows = q.stats()
            for operand, size in sizes.items():
                assert sum(r["elements"] for r in rows if r["operand"] == operand) == size
            assert rows[0]["overflow"] == 2 * 24


def test_off_is_the_plain_model(draw):
    """Within it the outputs are bit for bit the plain ones, and nothing is counted or moved."""
    model = Tied()
    plain = copy.deepcopy(model)
    q = quantize_model(model, read_recipe("original", get_format("E4M3")))
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


@pytest.mark.parametrize("recipe", ["E4M3", get_format("E3M4"), read_recipe("pure", "E3M4")])
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
        ("pure", "recipe pure: it needs a format: give one, as format='E4M3'"),
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
        assert (q.recipe.name, set(q.layers)) == ("mine.yaml", {"inner"})


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


def test_a_change_re_encodes_only_what_changed():
    """The same cast keeps values and scale; another one is encoded anew, with its error told."""
    model = net()
    q = quantize_model(model, read_recipe("pure", get_format("E3M4")))
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
