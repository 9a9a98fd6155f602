"""What others do to the weights of a quantized model: stored ones stay stored, or it is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import altcore
from altcore import BadInput, get_format, quantize_model

STORED = {"stored_weight": "E3M4"}
TOLD = r"stored weight 0\.weight was changed by something other than q\.store"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build():
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 2))


def is_on_grid(w, fmt="E3M4"):
    """Whether a power-of-two scale brings every element to a value of the format."""
    w, values = w.detach().double(), torch.tensor(get_format(fmt).values).double()
    return any(bool(torch.isin(w / 2.0**k, values).all()) for k in range(-40, 20))


def seen(model, x=None):
    """The weight that the first layer's product sees."""
    return model[0](torch.eye(8)).detach().T


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("factor", [1.0, 64.0, 2.0**-9])
def test_weights_that_are_loaded_are_rounded(assign, factor):
    """At a scale that fits them, without a word: loading is what a checkpoint is for."""
    model, other = build(), build()
    with torch.no_grad():
        other[0].weight.mul_(factor)
    with quantize_model(model, STORED) as q, warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(other.state_dict(), assign=assign)
        assert is_on_grid(model[0].weight)
        assert torch.equal(seen(model), model[0].weight)
        error = (model[0].weight - other[0].weight * 1.0).norm() / other[0].weight.norm()
        assert error < 0.05 or assign
        assert q.coverage().parameter_share == pytest.approx((64 + 16) / (64 + 16 + 2))


def test_a_checkpoint_of_stored_weights_comes_back_as_it_was():
    """Whatever the scale was at which they were stored."""
    model = build()
    with quantize_model(model, STORED) as q:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
            q.store(optimizer)
        state = {n: p.clone() for n, p in model.state_dict().items()}
    again = build()
    with quantize_model(again, STORED):
        again.load_state_dict(state)
        assert all(torch.equal(again.state_dict()[n], p) for n, p in state.items())


@pytest.mark.parametrize("how", ["in place", "data", "replaced", "vector"])
def test_a_weight_that_was_changed_is_rounded_and_told(how):
    """Averages of weights, hand-made updates, optimizers that write to ``data``."""
    model, new = build(), torch.randn(8, 8)
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
            found = seen(model)
        assert is_on_grid(found)
        assert torch.equal(found, model[0].weight)
        assert (found - new).norm() < 0.05 * new.norm()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seen(model)


class Limited(nn.Linear):
    """Limits the norms of its rows before each use, as EEGNet's layers do."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


def test_a_weight_that_its_own_forward_changes_is_rounded():
    model = nn.Sequential(Limited(8, 8, bias=False))
    with quantize_model(model, STORED):
        found = seen(model)
        assert torch.equal(found, model[0].weight)
        assert is_on_grid(found)


def test_a_loop_that_forgets_to_store_is_told():
    """And its products are quantized all the same."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with quantize_model(model, STORED):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        assert not is_on_grid(model[0].weight)
        with pytest.warns(RuntimeWarning, match=TOLD + r".*call q\.store\(optimizer\)"):
            assert is_on_grid(seen(model))


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
    model, w = build(), torch.randn(8, 8, requires_grad=True)
    with quantize_model(model, STORED):
        before = model[0].weight.clone()
        y = functional_call(model[0], {"weight": w}, torch.eye(8))
        assert is_on_grid(y.T)
        assert not is_on_grid(w)
        y.sum().backward()
        assert torch.equal(w.grad, torch.ones(8, 8))
        assert torch.equal(model[0].weight, before)


class Renewed(nn.Linear):
    """Puts another parameter in its weight's place, which no function of torch sees."""

    def forward(self, x):
        self.weight = nn.Parameter(torch.randn(8, 8))
        return nn.functional.linear(x, self.weight)


def test_a_weight_that_its_own_forward_replaces_is_rounded_and_told():
    model = nn.Sequential(Renewed(8, 8, bias=False))
    with quantize_model(model, STORED), pytest.warns(RuntimeWarning, match=TOLD):
        assert is_on_grid(seen(model))


class Merged(nn.Linear):
    """Adds to a copy of its weight, which lies on a grid, and multiplies by that."""

    def forward(self, x):
        w = self.weight.clone()
        w.view(-1).add_(1 / 3)
        return nn.functional.linear(x, w)


def test_a_copy_of_a_stored_weight_that_was_written_to_is_not_stored():
    model = nn.Sequential(Merged(8, 8, bias=False))
    with quantize_model(model, {"stored_weight": "E3M4", "weight": "E3M4"}):
        expected = altcore.fake_quantize(model[0].weight + 1 / 3, "E3M4", scale="amax")
        torch.testing.assert_close(seen(model), expected)


def test_an_embedding_that_was_resized():
    """It is found again by where it lies."""
    model = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 2))
    with quantize_model(model, STORED) as q:
        model[0].weight = nn.Parameter(torch.randn(9, 8))
        with pytest.warns(RuntimeWarning, match=r"stored weight 0\.weight"):
            model(torch.tensor([8]))
        assert is_on_grid(model[0].weight)
        assert q.grid_of(model[0].weight).is_stored


def test_a_plan_does_not_suit_a_model_with_other_layers():
    """Its layers' names are those of before; a recipe finds the new ones."""
    model = build()
    with quantize_model(model, STORED) as q:
        model.append(nn.Linear(2, 2))
        with pytest.raises(BadInput, match=r"other layers .*\(3\): change_recipe"):
            q.change(q.plan)
        q.change_recipe(STORED)
        assert "3.weight" in q.stored


def test_a_layer_parametrized_afterwards_is_named():
    model = build()
    with quantize_model(model, STORED) as q:
        parametrizations.weight_norm(model[0])
        with pytest.raises(BadInput, match="has no parameter weight any more: quantize a model af"):
            q.store()


class Shared(nn.Module):
    """A module that is no Linear, and stores its matrix."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return x @ self.table


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


# -------------------------------------------------------------------------------- gradients


def test_the_gradient_of_an_unfrozen_weight_is_rounded():
    """It had none when the model was quantized."""
    model, x = build(), torch.randn(4, 8)
    model[0].weight.requires_grad_(False)
    with quantize_model(model, {"layers": {"0": {"weight_gradient": "E2M1"}}}):
        model(x).sum().backward()
        model[0].weight.requires_grad_(True)
        model(x).sum().backward()
        grad = model[0].weight.grad
        assert torch.equal(grad, altcore.fake_quantize(grad, "E2M1", scale="amax"))
        assert len(grad.unique()) <= 15
        model[0].weight = nn.Parameter(torch.randn(8, 8))
        model(x).sum().backward()
        assert len(model[0].weight.grad.unique()) <= 15


def test_sparse_gradients_are_rounded():
    """Those of an embedding that asks for them: what is not there is 0 on any grid."""
    dense, sparse = nn.Embedding(9, 4), nn.Embedding(9, 4, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    ids, grads = torch.tensor([1, 1, 5, 7]), []
    for module in (dense, sparse):
        recipe = {"layers": {"0": {"weight_gradient": "E2M1", "weight": "E4M3"}}}
        with quantize_model(nn.Sequential(module), recipe):
            module(ids).square().sum().backward()
        grads.append(module.weight.grad)
    assert grads[1].is_sparse
    assert torch.equal(grads[1].to_dense(), grads[0])


# -------------------------------------------------------------------------------- optimizers


def test_an_optimizer_stores_by_itself():
    """One line for loops that are somebody else's; a later ``q.store`` does nothing."""
    results = []
    for ways in ("by itself", "by hand", "both"):
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), 0.05)
        recipe = {
            "stored_weight": {"format": "E3M4", "rounding": "stochastic"},
            "optimizer_state": {"format": "E5M2", "rounding": "stochastic"},
        }
        given = {} if ways == "by hand" else {"optimizer": optimizer}
        with quantize_model(model, recipe, **given) as q:
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.ones(4, 8)).square().sum().backward()
                optimizer.step()
                if ways != "by itself":
                    q.store(optimizer)
            assert q.context.clock.step == 5
            assert q.counters.stored_moves is not None
            moments = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
        results.append([*model.parameters(), *moments])
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    optimizer.step()
    assert not optimizer._optimizer_step_post_hooks


class Eight(torch.optim.SGD):
    """Keeps its momentum in eight bits."""

    def step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["momentum"] = torch.zeros_like(p, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Eight, r"Eight keeps .* momentum of 0\.weight \(Tensor, torch\.uint8, \[8, 8\]\)"),
        (torch.optim.Adafactor, r"row_var of 0\.weight \(Tensor, torch\.float32, \[8, 1\]\)"),
    ],
)
def test_state_that_cannot_be_rounded_is_named(make, says):
    model = build()
    optimizer = make(model.parameters(), lr=0.1)
    with quantize_model(model, {"optimizer_state": "E5M2"}) as q:
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        with pytest.warns(RuntimeWarning, match=says):
            q.store(optimizer)


@pytest.mark.parametrize("bag", [False, True])
def test_rows_that_an_embedding_shrinks_are_looked_up_on_the_grid(bag):
    """``max_norm`` writes to the weight in the forward pass: it is rounded before it is used."""
    layer = (nn.EmbeddingBag if bag else nn.Embedding)(6, 8, max_norm=1.0)
    model, index = nn.Sequential(layer), torch.tensor([[1], [2], [3]])
    with quantize_model(model, {"stored_weight": "E2M1"}, head=None), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            y = model(index)
            assert is_on_grid(layer.weight, "E2M1")
            assert torch.equal(y.flatten(0, -2), layer.weight[1:4])
    assert (layer.weight[1:4].norm(dim=1) < 1.2).all()


# ------------------------------------------------------------------- optimizers that are given


class Wrapper(torch.optim.Optimizer):
    """An optimizer by name, as accelerate's: it steps another one, and runs no hooks itself."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)

    def step(self):
        self.optimizer.step()


class Twin:
    """An optimizer's attributes under another name, as Lightning's wrapper has them."""

    def __init__(self, optimizer):
        self.__dict__ = dict(vars(optimizer))


@pytest.mark.parametrize("wrap", [Wrapper, Twin])
def test_a_wrapper_steps_as_the_optimizer_in_it(wrap):
    """One step is one `store`, whichever of the two is followed or given."""
    for first in (Wrapper, lambda inner: inner):
        model = build()
        inner = torch.optim.SGD(model.parameters(), lr=0.5)
        q = quantize_model(model, STORED, optimizer=first(inner))
        for step in (1, 2):
            model(torch.randn(4, 8)).square().sum().backward()
            inner.step()
            q.store(wrap(inner))
            assert q.context.clock.step == step
            assert q.counters.stored_moves[:, 0].sum() > 0
            assert is_on_grid(model[0].weight)


@pytest.mark.parametrize("given", ["adam", [torch.optim.SGD([torch.zeros(1)])], Wrapper(None)])
def test_what_is_no_optimizer_is_refused_and_nothing_is_quantized(given):
    model = build()
    with pytest.raises(BadInput, match=r"optimizer: one of torch\.optim's is needed"):
        quantize_model(model, STORED, optimizer=given)
    with quantize_model(model, STORED) as q:
        for bad in ("adam", [1], model):
            with pytest.raises(BadInput, match="what stepped is needed"):
                q.store(bad)


def test_a_state_comes_back_at_its_own_scale():
    """Weights are loaded before anybody could ask at which scale a table's values were stored."""
    steep = altcore.table_format("STEEP", [-1.0, -0.3, -0.03, 0.0, 0.03, 0.3, 1.0])
    model = build()
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
