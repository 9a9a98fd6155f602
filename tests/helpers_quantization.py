"""Models and recipes that several tests of quantization share."""

import functools
from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional

import altcore
from altcore import get_format

STORED = {"stored_weight": "E3M4"}


def build_net():
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 2))


def is_on_grid(w, fmt="E3M4"):
    """Whether a power-of-two scale brings every element to a value of the format."""
    w, values = w.detach().double(), torch.tensor(get_format(fmt).values).double()
    return any(bool(torch.isin(w / 2.0**k, values).all()) for k in range(-40, 20))


quantize_in_float32 = functools.partial(altcore.quantize_model, compute="float32")


E3M4_OPERANDS = {"weight": "E3M4", "activation": "E3M4", "gradient": "E3M4"}


def rounded(x):
    """A tensor as a product sees it, with a gradient that passes through."""
    return altcore.fake_quantize(x, "E3M4", scale="amax")


class Lora(nn.Linear):
    """A Linear with an adapter in it, as loralib has it."""

    def __init__(self, width):
        super().__init__(width, width, bias=False)
        self.lora_a = nn.Parameter(torch.randn(2, width))
        self.lora_b = nn.Parameter(torch.randn(width, 2))

    def forward(self, x):
        return functional.linear(x, self.weight) + (x @ self.lora_a.T @ self.lora_b.T) * 0.5


class Looped(nn.Module):
    """Experts in one parameter, a matrix of which multiplies at a time."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 6, 4))

    def forward(self, x):
        return sum(functional.linear(x, self.experts[i]) for i in range(3))


class Weird(nn.Linear):
    """Multiplies by what it computes of its weight alone."""

    def forward(self, x):
        w = self.weight - self.weight.mean(1, keepdim=True)
        return functional.linear(x, w / w.norm())


E2M1_OPERANDS = {"weight": "E2M1", "activation": "E2M1", "gradient": "E2M1"}


E2M1_EVERYWHERE = {"layers": {"*": E2M1_OPERANDS}}


class HeadedAttention(nn.Module):
    """Calls torch's function."""

    def forward(self, q, k, v, mask=None):
        return functional.scaled_dot_product_attention(q, k, v, mask)


def embedder():
    """An embedding, a Linear, attention and a head."""
    return nn.Sequential(
        nn.Embedding(8, 32), nn.Linear(32, 32), HeadedAttention(), nn.Linear(32, 8)
    )


def only(casts):
    """A recipe for layer 0 alone."""
    return {"layers": {"0": casts}}


def model_of(draw, inner=7, outer=5, bias=True):
    """Two Linears with weights of some spread."""
    model = nn.Sequential(nn.Linear(inner, outer, bias=bias), nn.Linear(outer, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(*p.shape) * 0.3)
    return model


class Tied(nn.Module):
    """An embedding whose weight is the head's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.inner = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.inner(self.embed(ids))))


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


class TiedHead(nn.Module):
    """An embedding whose weight is the head's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.inner = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.inner(self.embed(ids)))
