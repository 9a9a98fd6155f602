"""Several threads that run one quantized model at once."""

import sys
import threading

import pytest
import torch
from torch import nn

import altcore
from altcore import quantize_model


class Own(nn.Module):
    """A product that no layer of torch's makes, beside one that a layer makes."""

    def __init__(self):
        super().__init__()
        self.table, self.inner = nn.Parameter(torch.randn(6, 8)), nn.Linear(6, 6)

    def forward(self, x):
        return self.inner(torch.einsum("bi,oi->bo", x, self.table))


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Tanh(), Own(), nn.GRU(6, 3))


RECIPES = {
    "master": dict.fromkeys(("weight", "activation", "gradient"), "E4M3"),
    "stored": dict.fromkeys(("weight", "activation", "gradient", "stored_weight"), "E4M3"),
    "blocks": {"weight": "MXFP8-E4M3", "activation": "MXFP8-E4M3", "weight_gradient": "E5M2"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_threads_get_what_one_thread_gets(name):
    """Outputs and gradients; no weight is another one meanwhile, or afterwards."""
    model = build()
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


class Waiting(nn.Embedding):
    """Waits, before and after it looks up, until another thread is there too."""

    def forward(self, ids):
        self.barrier.wait(30)
        assert self.weight is self._parameters["weight"] is self.first
        y = super().forward(ids)
        self.barrier.wait(30)
        return y


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
