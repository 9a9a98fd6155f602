"""Products inside a module's own forward are quantized where they happen.

The references round each operand with `altcore.fake_quantize` and multiply by plain torch.
"""

import sys
import threading
import warnings

import pytest
import torch
from helpers_quantization import (
    E2M1_EVERYWHERE,
    E2M1_OPERANDS,
    E3M4_OPERANDS,
    Looped,
    Lora,
    Weird,
    is_on_grid,
    quantize_in_float32,
    rounded,
)
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import altcore
from altcore import quantize_model


class RoundGradient(torch.autograd.Function):
    """Rounds the gradient of an output, as the backward products see it."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return altcore.fake_quantize(g, "E3M4", scale="amax")


def product(x, w):
    """``x @ w.mT`` with all six operands rounded."""
    return RoundGradient.apply(rounded(x) @ rounded(w).mT)


def lora_reference(m, x):
    return product(x, m.weight) + product(product(x, m.lora_a), m.lora_b) * 0.5


class Router(nn.Linear):
    """A Linear that returns two things."""

    def forward(self, x):
        scores = super().forward(x)
        return scores, scores.softmax(-1)


class Batched(Looped):
    """The same in one batched product, transposed."""

    def forward(self, x):
        return torch.bmm(x.expand(3, *x.shape), self.experts.transpose(1, 2)).sum(0)


class Gathered(Looped):
    """Experts that are looked up and multiplied, the weight first."""

    def forward(self, x):
        chosen = self.experts[torch.arange(len(x)) % 3]
        return torch.bmm(chosen, x.unsqueeze(-1)).squeeze(-1)


class Einsum(Looped):
    def forward(self, x):
        return torch.einsum("ti,eoi->to", x, self.experts[1:2])


class Masked(nn.Linear):
    """Multiplies by its weight under a mask, as autoregressive networks do."""

    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.register_buffer("mask", torch.ones(width, width).tril())

    def forward(self, x):
        return functional.linear(x, self.weight * self.mask)


def weird_reference(m, x):
    w = m.weight - m.weight.mean(1, keepdim=True)
    return product(x, w / w.norm())


CASES = {
    "lora": (lambda: Lora(4), lora_reference),
    "router": (lambda: Router(4, 5, bias=False), lambda m, x: product(x, m.weight)),
    "looped": (Looped, lambda m, x: sum(product(x, w) for w in m.experts)),
    "batched": (Batched, lambda m, x: product(x.expand(3, *x.shape), m.experts).sum(0)),
    "gathered": (
        Gathered,
        lambda m, x: product(x[:, None], m.experts[torch.arange(len(x)) % 3]).squeeze(1),
    ),
    "einsum": (Einsum, lambda m, x: product(x, m.experts[1])),
    "computed": (lambda: Weird(4, 4, bias=False), weird_reference),
    "masked": (lambda: Masked(4), lambda m, x: product(x, m.weight * m.mask)),
    "bilinear": (
        lambda: Both(4),
        lambda m, x: product((x[:, :, None] * x[:, None, :]).flatten(1), m.b.weight.flatten(1)),
    ),
}


class Both(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.b = nn.Bilinear(width, width, 3, bias=False)

    def forward(self, x):
        return self.b(x, x)


class Counting(nn.Linear):
    """Replaces a buffer, where in memory an activation may come to lie."""

    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count = self.count + 1
        inputs = [x * 1 for _ in range(20)]
        return torch.stack([functional.linear(x, self.weight) for x in inputs])


class Written(nn.Linear):
    """Writes to its weight between two products."""

    def forward(self, x):
        first = functional.linear(x, self.weight)
        with torch.no_grad():
            self.weight.view(-1).mul_(-1)
        return first + functional.linear(x, self.weight)


class Position(nn.Embedding):
    """Hands out its weight, and calls nothing."""

    def forward(self, x):
        return self.weight[: x.shape[1]]


FACTORS = torch.linspace(1.1, 2.0, 8)


class Growing(nn.Linear):
    """Multiplies by its weight, and by what that is after a change."""

    def __init__(self, how):
        super().__init__(8, 8, bias=False)
        self.how = how

    def forward(self, x):
        w = self.weight.clone() if self.how == "copy" else self.weight
        y = functional.linear(x, w)
        if self.how == "data":
            self.weight.data = self.weight.data * FACTORS
        else:
            (w.data if self.how == "in data" else w).mul_(FACTORS)
        return y + functional.linear(x, w)


class OwnFunction(torch.autograd.Function):
    """A product with a backward pass of its own, as fused kernels have it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


class Fused(nn.Linear):
    def forward(self, x):
        return OwnFunction.apply(x, self.weight)


class Gather(Looped):
    """Experts that are gathered, a matrix for each sample."""

    def forward(self, x):
        index = (torch.arange(len(x)) % 3)[:, None, None].expand(-1, 6, 4)
        return torch.bmm(torch.gather(self.experts, 0, index), x.unsqueeze(-1)).squeeze(-1)


class OwnForward(nn.Module):
    """A product that no layer of torch's makes, beside one that a layer makes."""

    def __init__(self):
        super().__init__()
        self.table, self.inner = nn.Parameter(torch.randn(6, 8)), nn.Linear(6, 6)

    def forward(self, x):
        return self.inner(torch.einsum("bi,oi->bo", x, self.table))


def build_for_threads():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(50, 8), nn.Linear(8, 8), nn.Tanh(), OwnForward(), nn.GRU(6, 3)
    )


RECIPES = {
    "master": dict.fromkeys(("weight", "activation", "gradient"), "E4M3"),
    "stored": dict.fromkeys(("weight", "activation", "gradient", "stored_weight"), "E4M3"),
    "blocks": {"weight": "MXFP8-E4M3", "activation": "MXFP8-E4M3", "weight_gradient": "E5M2"},
}


class Waiting(nn.Embedding):
    """Waits, before and after it looks up, until another thread is there too."""

    def forward(self, ids):
        self.barrier.wait(30)
        assert self.weight is self._parameters["weight"] is self.first
        y = super().forward(ids)
        self.barrier.wait(30)
        return y


def in_threads(count, call, jobs):
    """Call with 0 to ``jobs`` - 1, in threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(target=lambda k=k: [call(i) for i in range(k, jobs, count)])
            for k in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)


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


IDS = torch.tensor([[0, 1, 2], [3, 1, 1]])
LOOKUPS = {
    "embedding": lambda w, norm: functional.embedding(IDS, w, 1, norm, 1.0, True),
    "named": lambda w, norm: functional.embedding(weight=w, max_norm=norm, input=IDS),
    "bag": lambda w, norm: functional.embedding_bag(IDS, w, None, norm, padding_idx=1),
    "flat bag": lambda w, norm: functional.embedding_bag(
        IDS.flatten(), w, torch.tensor([0, 2]), max_norm=norm, padding_idx=0
    ),
    "bag by position": lambda w, norm: functional.embedding_bag(
        IDS.flatten(), w, torch.tensor([0, 2, 6]), norm, 1.0, False, "max", False, None, True, 1
    ),
    "weighted bag": lambda w, norm: functional.embedding_bag(
        IDS, w, per_sample_weights=IDS + 0.5, mode="sum", max_norm=norm
    ),
}


class LooksUp(nn.Module):
    """By a function of torch's, called in a way of its own."""

    def __init__(self, look_up):
        super().__init__()
        self.weight, self.look_up = nn.Parameter(torch.randn(6, 4)), look_up

    def forward(self, norm):
        return self.look_up(self.weight, norm)


@pytest.mark.parametrize("norm", [None, 1.0])
@pytest.mark.parametrize("way", LOOKUPS)
def test_a_lookup_takes_all_of_torchs_arguments(way, norm):
    """In any order: the rows are shrunk in the weight itself, then rounded, then looked up."""
    model = nn.Sequential(LooksUp(LOOKUPS[way]))
    weight = model[0].weight.detach().clone()
    LOOKUPS[way](weight, norm)
    seen = rounded(weight).requires_grad_()
    expected = LOOKUPS[way](seen, None)
    expected.sum().backward()
    with quantize_in_float32(model, {"weight@lookup": "E3M4"}, head=None):
        y = model(norm)
        y.sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(model[0].weight, weight)
    assert torch.equal(model[0].weight.grad, seen.grad)


@pytest.mark.parametrize("name", CASES)
def test_products_are_quantized_where_they_happen(name):
    """All operands are on the grid, in both directions, and every parameter learns."""
    build, reference = CASES[name]
    model = nn.Sequential(build())
    module, x = model[0], torch.randn(7, 4, requires_grad=True)
    expected = reference(module, x)
    wanted = [x, *module.parameters()]
    grads = torch.autograd.grad(expected.square().sum(), wanted)
    with quantize_in_float32(model, E3M4_OPERANDS, head=None) as q:
        y = model(x)
        y = y[0] if isinstance(y, tuple) else y
        found = torch.autograd.grad(y.square().sum(), wanted)
        rows = q.coverage().rows
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert {"weight@fwd", "activation@fwd", "gradient@wgrad"} <= set(rows[-1].operands)


def test_no_activation_is_taken_for_a_buffer_that_is_gone():
    model, x = nn.Sequential(Counting(4)), torch.randn(7, 4)
    expected = product(x, model[0].weight).expand(20, 7, 4)
    with quantize_in_float32(model, E3M4_OPERANDS, head=None):
        for _ in range(40):  # whether it comes to lie there is a matter of luck
            torch.testing.assert_close(model(x), expected)


def test_a_weight_that_the_forward_writes_to_is_quantized_again():
    model = nn.Sequential(Written(4, 4, bias=False))
    with quantize_in_float32(model, E3M4_OPERANDS, head=None), torch.no_grad():
        assert torch.equal(model(torch.randn(7, 4)), torch.zeros(7, 4))


def test_an_embedding_keeps_its_norm_limit():
    """The rows that are looked up are shrunk in the parameter itself, then rounded."""
    module, plain = (nn.Embedding(8, 4, max_norm=1.0) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    ids = torch.tensor([1, 3, 3])
    plain(ids)
    expected = rounded(plain.weight.detach())[ids]
    with quantize_in_float32(nn.Sequential(module), {"layers": {"0": {"weight": "E3M4"}}}):
        assert torch.equal(module(ids), expected)
    assert torch.equal(module.weight, plain.weight)


def test_a_weight_that_is_handed_out_is_rounded():
    module = Position(6, 4)
    with quantize_in_float32(nn.Sequential(module), {"layers": {"0": {"weight": "E3M4"}}}):
        y = module(torch.zeros(2, 3))
        y.sum().backward()
    assert torch.equal(y, rounded(module.weight[:3]))
    assert module.weight.grad.sum() == 12


def test_threads_do_not_meet():
    """Each sees its own layers, and the parameters stay what they were."""
    model = nn.Sequential(nn.Embedding(16, 8), Lora(8), nn.Linear(8, 8))
    recipe = E3M4_OPERANDS | {"layers": {"0": {"weight": "E3M4"}}}
    ids = [torch.randint(16, (32,)) for _ in range(8)]
    with quantize_in_float32(model, recipe, head=None):
        model.eval()
        before = {n: p.clone() for n, p in model.named_parameters()}
        expected, found = [model(i) for i in ids], {}

        def run(k):
            found[k] = [torch.equal(model(ids[k]), expected[k]) for _ in range(30)]

        threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert all(all(found[k]) for k in range(8))
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("how", ["copy", "in place", "data"])
def test_a_weight_that_the_forward_changes_is_quantized_again(how):
    model, x = nn.Sequential(Growing(how)), torch.randn(4, 8)
    w = model[0].weight.detach().clone()
    with torch.inference_mode(how == "copy"), torch.no_grad():
        with quantize_in_float32(model, E3M4_OPERANDS, head=None):
            y = model(x)
        expected = product(x, w) + product(x, w * FACTORS)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("how", ["copy", "in place", "data", "in data"])
def test_a_stored_weight_that_the_forward_changes_is_rounded_before_it_is_used(how):
    """Layers that hold the norm of their weight down do so in their forward."""
    model = nn.Sequential(Growing(how))
    recipe = {"stored_weight": "E2M1", "weight": "E2M1"}
    with torch.no_grad(), quantize_in_float32(model, recipe, head=None):
        w = model[0].weight.detach().clone()
        seen = model(torch.eye(8)).T - w  # what the second product saw
    assert len(seen.unique()) <= 15  # those of E2M1
    assert not torch.equal(seen, w)


def test_a_backward_pass_of_its_own_is_told_of():
    model, x = nn.Sequential(Fused(8, 8, bias=False)), torch.randn(4, 8)
    with quantize_in_float32(model, E3M4_OPERANDS, head=None):
        with pytest.warns(RuntimeWarning, match=r"autograd\.Function of its own, the"):
            y = model(x)
        torch.testing.assert_close(y, product(x, model[0].weight))


def test_gathered_experts_are_weights():
    """As those that are indexed."""
    twins, x, found = (Gathered(), Gather()), torch.randn(7, 4), []
    twins[1].load_state_dict(twins[0].state_dict())
    for module in twins:
        with quantize_in_float32(nn.Sequential(module), E3M4_OPERANDS):
            y = module(x)
            found.append((y, *torch.autograd.grad(y.square().sum(), module.experts)))
    assert all(map(torch.equal, *found))


def test_projections_of_torchs_attention_are_products():
    """Its weights are read by MultiheadAttention, whatever module they belong to."""
    model, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
    casts = E2M1_OPERANDS | {"stored_weight": "E4M3"}
    with quantize_model(model, casts, head=None) as q:
        model(x, x, x)[0].sum().backward()
        rows = {row.layer: row for row in q.coverage().rows}
        assert "activation@fwd" in rows["out_proj"].operands
        assert {"weight@fwd", "gradient@wgrad"} <= set(rows[""].operands)
        assert not any(row.is_missed for row in rows.values())


@pytest.mark.parametrize(("normed", "stored"), [("weight_norm", "E2M1"), ("spectral_norm", "E4M3")])
def test_a_linear_whose_weight_is_computed(normed, stored):
    """It is a Linear like another, and what its product sees is rounded, stored or not."""
    build = getattr(parametrizations, normed)
    model = nn.Sequential(build(nn.Linear(8, 8, bias=False)), nn.Linear(8, 2))
    casts = {"weight": "E2M1", "stored_weight": stored}
    with quantize_model(model, casts) as q:
        q.begin_step(1, tracking=True)
        model.eval()
        seen = model[0](torch.eye(8)).T
        expected = altcore.fake_quantize(model[0].weight, "E2M1", "amax")
        model.train()
        model(torch.randn(3, 8)).sum().backward()
        q.measure_views()
    torch.testing.assert_close(seen, expected)
    assert all(p.grad is not None for p in model.parameters())


def test_a_recorded_step_with_the_old_weight_norm():
    """Its weight is no parameter: there is no master whose view could be kept."""
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(8, 8))
    with quantize_model(nn.Sequential(layer), E2M1_EVERYWHERE) as q:
        q.begin_step(1, tracking=True)
        layer(torch.randn(2, 8)).sum().backward()
        q.measure_views()
        assert q.counters.view_moves is None


@pytest.mark.parametrize("name", RECIPES)
def test_threads_get_what_one_thread_gets(name):
    """Outputs and gradients; no weight is another one meanwhile, or afterwards."""
    model = build_for_threads()
    recipe = RECIPES[name] | {"layers": {"0": {"weight@lookup": "E3M4"}}}
    with quantize_model(model, recipe, head=None):
        weights = {n: (p, p.detach().clone()) for n, p in model.named_parameters()}
        batches = [torch.randint(50, (16,)) for _ in range(24)]

        def run(ids):
            y = model(ids)[0]
            return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]

        expected = [run(ids) for ids in batches]
        found = {}
        for repeat in range(2):
            in_threads(4, lambda i: found.update({i: run(batches[i])}), len(batches))
            for i, (one, other) in enumerate(zip(expected, map(found.pop, range(24)), strict=True)):
                for a, b in zip(one, other, strict=True):
                    assert torch.equal(a, b), (repeat, i)
        for n, p in model.named_parameters():
            assert p is weights[n][0]
            assert torch.equal(p, weights[n][1])


def test_two_threads_in_one_module():
    """Both see its parameter, and look up rounded values."""
    module, found = Waiting(9, 4), {}
    vars(module).update(barrier=threading.Barrier(2), first=module.weight)
    ids = torch.arange(9)
    with quantize_model(module, {"layers": {"": {"weight": "E3M4"}}}):
        in_threads(2, lambda i: found.update({i: module(ids)}), 2)
    expected = altcore.fake_quantize(module.weight, "E3M4", scale="amax")
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
