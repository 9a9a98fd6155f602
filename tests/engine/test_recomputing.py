"""Activation checkpointing: less is kept, and nothing else is different."""

import pytest
import torch
from helpers import metrics_bytes, weights_sha256
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from altcore import BadInput, quantize_model
from altcore.engine.recomputing import blocks_of, checkpoint_blocks
from altcore_workloads.resnet_model import ResNet18

# Everything that a repetition could get wrong: random bits, a history of scales, counts, and a
# forward format in which a second draw would be another number.
RECIPE = {
    "weight": {"format": "E4M3", "scaling": {"kind": "delayed", "history": 4}},
    "activation": {
        "format": "E3M4",
        "rounding": "stochastic",
        "scaling": {"kind": "delayed", "history": 3},
    },
    "gradient": {"format": "E5M2", "rounding": "stochastic"},
    "attention": {"format": "E4M3", "rounding": "stochastic"},
}
WATCHING = ["overflow", "ulp-stats", "shadow", "attention-logits", "value-histogram"]


class Noisy(nn.Module):
    """A block with all that changes in a forward pass: random numbers, and buffers."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x):
        with torch.no_grad():
            self.calls += 1
        return x + self.second(self.dropout(self.norm(self.first(x)).relu() / self.calls))


def learned(is_checkpointed, *, is_off=False):
    """Return what two steps of such blocks came to: numbers, counts, buffers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Noisy(8), Noisy(8)), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, target = torch.randn(16, 8), torch.randint(3, (16,))
    q = quantize_model(model, {**RECIPE, "attention": "none"})
    if is_checkpointed:
        checkpoint_blocks(model, q)
    for step in range(2):
        q.begin_step(step + 1, tracking=True, errors=True)
        optimizer.zero_grad()
        if is_off:
            with q.off():  # the backward pass, and the repetition in it, come later
                loss = functional.cross_entropy(model(x), target)
        else:
            loss = functional.cross_entropy(model(x), target)
        loss.backward()
        q.measure_views()
        stats = q.stats()
        optimizer.step()
        q.store()
    return q, stats, dict(model.state_dict())


@pytest.mark.parametrize("is_off", [False, True])
def test_a_repetition_has_the_bits_of_its_forward_pass(is_off):
    q, stats, state = learned(True, is_off=is_off)
    plain, expected_stats, expected = learned(False, is_off=is_off)
    assert stats == expected_stats
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert [x.calls for x in q.layers.values()] == [x.calls for x in plain.layers.values()]
    for mine, its in zip(q.quantizers, plain.quantizers, strict=True):
        assert (mine.calls, mine.last_key) == (its.calls, its.last_key)
        assert (mine.history is None) == (its.history is None)
        assert mine.history is None or torch.equal(mine.history, its.history)


@pytest.mark.filterwarnings("error")
def test_the_first_repetition_says_nothing_of_layers_that_have_yet_to_learn():
    learned(True)


def test_without_its_context_a_repetition_is_another_draw():
    """What `Quantization.recomputation` is for."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x, found = torch.randn(3, 8), {}
    for context in ({}, {"context_fn": "recomputation"}, None):
        with quantize_model(model, {"activation": RECIPE["activation"]}, head=None) as q:
            model.zero_grad()
            given = {key: getattr(q, name) for key, name in (context or {}).items()}
            run = (
                model(x) if context is None else checkpoint(model, x, use_reentrant=False, **given)
            )
            run.sum().backward()
            found[str(context)] = model[0].weight.grad
    again, exact, plain = found.values()
    assert torch.equal(exact, plain)
    assert not torch.equal(again, plain)


def test_a_graph_that_is_kept_is_repeated_as_often_as_it_is_run():
    """As products of the Hessian with vectors do; with dropout and batch norm, to the same bits."""
    found = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Noisy(8), Noisy(8)))
        q = quantize_model(model, {**RECIPE, "attention": "none"}, head=None)
        if is_checkpointed:
            checkpoint_blocks(model, q)
        with q.off():
            loss = model(torch.randn(16, 8)).square().mean()
            weights = list(model.parameters())
            first = torch.autograd.grad(loss, weights, create_graph=True)
            dot = sum((g * g.detach()).sum() for g in first)
            products = [torch.autograd.grad(dot, weights, retain_graph=True) for _ in range(2)]
        found.append([*first, *products[0], *products[1]])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def kept(model):
    """Return how many numbers wait for the backward pass of a model."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(64, 8, requires_grad=True))
    return sum(sizes)


def test_less_is_kept():
    """Of each block its input alone waits for the backward pass."""
    plain, checkpointed = (nn.Sequential(*(Noisy(8) for _ in range(4))) for _ in range(2))
    checkpoint_blocks(checkpointed, quantize_model(checkpointed, {"weight": "E4M3"}, head=None))
    assert kept(checkpointed) < kept(plain) / 4


def test_blocks_are_the_outermost_repeated_modules_with_layers():
    inner = nn.Sequential(Noisy(4), Noisy(4))
    model = nn.ModuleDict(
        {
            "blocks": nn.ModuleList(
                [nn.Sequential(inner, nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))]
            ),
            "lone": nn.Sequential(Noisy(4), nn.Linear(4, 4)),
            "flat": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        }
    )
    assert list(blocks_of(model)) == ["blocks.0", "blocks.1"]
    flat = model["flat"]
    with pytest.raises(BadInput, match="Sequential has no blocks"):
        checkpoint_blocks(flat, quantize_model(flat, {"weight": "E4M3"}))


def test_a_run_is_the_same_with_it(start):
    keys = {"recipe": RECIPE, "plugins": WATCHING, "max_steps": 2}
    plain, checkpointed = (
        start(**keys, activation_checkpointing=wanted, name=f"run-{wanted}").run_directory
        for wanted in (False, True)
    )
    assert weights_sha256(plain) == weights_sha256(checkpointed)
    assert metrics_bytes(plain) == metrics_bytes(checkpointed)


def test_the_blocks_of_resnet_are_its_residual_blocks():
    resnet = ResNet18(in_channels=1, num_classes=2, width_mult=0.1, norm_type="batch")
    assert {type(block).__name__ for block in blocks_of(resnet).values()} == {"BasicBlock"}
    assert len(blocks_of(resnet)) == 8


def test_with_compile_it_is_refused(start):
    with pytest.raises(BadInput, match="does not go with compile"):
        start.config(compile=True, activation_checkpointing=True)
