"""Attention's operands: against torch's own function, in every form in which it is called."""

import math

import pytest
import torch
from helpers_quantization import HeadedAttention
from torch import nn
from torch.nn import functional

import altcore
from altcore import quantize_model


class Attention(nn.Module):
    """Calls torch's function with what it is given."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return functional.scaled_dot_product_attention(q, k, v, **self.options)


MASK = torch.rand(6, 9, generator=torch.Generator().manual_seed(5)) > 0.3


MASK[:, 0] = True


BIAS = torch.randn(6, 9, generator=torch.Generator().manual_seed(6))


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.5},
    "boolean mask": {"attn_mask": MASK},
    "additive mask": {"attn_mask": BIAS},
    "boolean mask, causal": {"attn_mask": MASK, "is_causal": True},
    "additive mask, causal": {"attn_mask": BIAS, "is_causal": True},
    "grouped": {"enable_gqa": True},
}


def tensors(kind):
    """Query, key and value."""
    generator = torch.Generator().manual_seed(1)
    heads = 2 if kind == "grouped" else 4
    shapes = ((3, 4, 6, 8), (3, heads, 9, 8), (3, heads, 9, 8))
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def results(module, kind):
    """Output and three gradients."""
    given = tensors(kind)
    y = module(*given)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
    return [y.detach(), *(t.grad for t in given)]


class Pooling(nn.Module):
    """Attends by learned queries, which are weights of the module."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(tensors("plain")[0][0].detach())

    def forward(self, k, v):
        query = self.query.expand(3, -1, -1, -1)
        return functional.scaled_dot_product_attention(query, k, v)


BY_HAND = {
    "matmul": lambda q, k: torch.matmul(q, k.mT),
    "baddbmm by keywords": lambda q, k: q.new_ones(1).baddbmm(batch1=q, batch2=k.mT, beta=0.0),
    "einsum of a list": lambda q, k: torch.einsum("bqd,bkd->bqk", [q, k]),
}


WEIGHED = {
    "matmul": lambda p, v: p @ v,
    "bmm by keywords": lambda p, v: torch.bmm(input=p, mat2=v),
    "einsum": lambda p, v: torch.einsum("b...k,bkd->b...d", p, v),
    "value first": lambda p, v: (v.mT @ p.mT).mT,
    "masked": lambda p, v: torch.matmul(p.masked_fill(p == 2, 0.0) * 1.0, v),
}


class AttentionByHand(nn.Module):
    """Multiplies by functions of its own choice."""

    def __init__(self, score, weigh):
        super().__init__()
        self.score, self.weigh = score, weigh
        self.register_buffer("frequencies", torch.linspace(0.1, 1, 4).expand(3, 6, 4).clone())

    def forward(self, q, k, v):
        angles = self.frequencies @ self.frequencies[0, :1].mT  # these are no scores
        return self.weigh(self.score(q, k).softmax(-1), v), angles


class HeadedAttentionByHand(nn.Module):
    """Keeps the scores, and mixes values by them."""

    def forward(self, q, k, v):
        self.scores = q @ k.mT
        return self.scores.softmax(-1) @ v


@pytest.mark.parametrize("kind", OPTIONS)
def test_it_computes_torchs_function(kind):
    """In a format finer than the comparison, results and gradients are torch's own."""
    model = nn.Sequential(Attention(**OPTIONS[kind]))
    expected = results(model[0], kind)
    with quantize_model(model, {"attention": "TF32"}):
        found = results(model[0], kind)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=4e-3)
    assert not torch.equal(found[0], expected[0])


def test_operands_are_rounded():
    """Each of the four by itself: the product is that of the rounded tensor."""
    model = nn.Sequential(Attention())
    q, k, v = (t.detach() for t in tensors("plain"))

    def plain(q, k, v, probability=lambda p: p):
        return probability((q @ k.mT / math.sqrt(8)).softmax(-1)) @ v

    def rounded(t):
        return altcore.fake_quantize(t, "E2M1", scale="amax")

    expected = {
        "query": plain(rounded(q), k, v),
        "key": plain(q, rounded(k), v),
        "value": plain(q, k, rounded(v)),
        "probability": plain(q, k, v, rounded),
    }
    for name, y in expected.items():
        with quantize_model(model, {f"attention@{name}": "E2M1"}):
            torch.testing.assert_close(model[0](q, k, v), y, rtol=1e-5, atol=1e-5)


def test_learned_queries_are_operands_too(recwarn):
    """They are rounded, and their gradient passes straight through."""
    model, (_, k, v) = nn.Sequential(Pooling()), tensors("plain")
    query = altcore.fake_quantize(model[0].query.expand(3, -1, -1, -1), "E2M1", scale="amax")
    expected = functional.scaled_dot_product_attention(query, k, v)
    expected.sum().backward()
    wanted, model[0].query.grad = model[0].query.grad, None
    with quantize_model(model, {"attention@query": "E2M1"}) as q:
        y = model[0](k, v)
        y.sum().backward()
        assert q.coverage().rows[0].operands == ("attention@query",)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[0].query.grad, wanted, rtol=1e-4, atol=1e-5)
    assert not recwarn


def test_dropout_falls_on_rounded_probabilities():
    """It is asked for in the call, and its random numbers are torch's."""
    model = nn.Sequential(Attention(dropout_p=0.5))
    with quantize_model(model, {"attention": "E3M4"}):
        torch.manual_seed(0)
        a = model[0](*tensors("plain"))
        torch.manual_seed(0)
        b = model[0](*tensors("plain"))
        c = model[0](*tensors("plain"))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("weigh", WEIGHED)
@pytest.mark.parametrize("score", BY_HAND)
def test_operands_by_hand_are_rounded(score, weigh):
    """Whatever function multiplies, and however its arguments are given."""
    model = nn.Sequential(AttentionByHand(BY_HAND[score], WEIGHED[weigh]))
    q, k, v = (t.detach()[:, 0] for t in tensors("plain"))

    def rounded(t):
        return altcore.fake_quantize(t, "E2M1", scale="amax")

    _, angles = model[0](q, k, v)
    expected = rounded((rounded(q) @ rounded(k).mT).softmax(-1)) @ rounded(v)
    with quantize_model(model, {"attention": "E2M1"}):
        found, found_angles = model[0](q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found_angles, angles)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_a_position_that_attends_to_nothing(kind):
    """Padding on the left does that: zeros, as in torch, and no NaN in the scale or a gradient."""
    model = nn.Sequential(HeadedAttention())
    given = [torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3)]
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[0] = False
    if kind == "additive":
        mask = torch.zeros(4, 4).masked_fill(~mask, -math.inf)
    results = []
    for recipe in ({}, {"attention": "TF32"}):
        with quantize_model(model, recipe):
            y = model[0](*given, mask)
            results.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_attention_in_sixteen_bits(kind):
    """Operands are those that their scales make, and large scores no infinity."""
    model = nn.Sequential(HeadedAttention())
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)
    size = 60 if kind == "float16" else 1
    given = [(torch.randn(2, 2, 64, 32) * size).to(dtype) for _ in range(3)]

    def rounded(x):
        q, s = altcore.quantize(x, "E4M3")
        return q.double() * s.double()

    q, k, v = map(rounded, given)
    expected = rounded((q @ k.mT / math.sqrt(32)).softmax(-1).float()) @ v
    with (
        quantize_model(model, {"attention": "E4M3"}),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        y = model[0](*given)
    assert y.dtype == (torch.float16 if kind == "float16" else torch.bfloat16)
    assert (y.double() - expected).norm() < 3e-3 * expected.norm()


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_operands_of_attention_by_hand_are_rounded_once(kind):
    """16 bits round what comes out; they cannot hold q times its scale."""
    model = nn.Sequential(HeadedAttentionByHand())
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)
    given = [torch.randn(2, 16, 32).to(dtype) for _ in range(3)]
    q, k = (q.double() * s.double() for q, s in (altcore.quantize(x, "E4M3") for x in given[:2]))
    with (
        quantize_model(model, {"attention": "E4M3"}),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        y = model[0](*given)
    assert y.dtype == model[0].scores.dtype == (dtype if kind == "float16" else torch.bfloat16)
    ulp = torch.finfo(y.dtype).eps
    assert ((model[0].scores.double() - q @ k.mT).abs() <= ulp * (q @ k.mT).abs() / 2 + 1e-4).all()
