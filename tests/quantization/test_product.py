"""What a backward pass keeps, and what a checkpoint within a module makes of it."""

import math

import pytest
import torch
from helpers_quantization import E2M1_EVERYWHERE, E3M4_OPERANDS, Lora, quantize_in_float32
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointError, checkpoint

from altcore import quantize_model

UNSCALED = {"format": "E3M4", "scaling": "none"}


class Checkpointed(nn.Module):
    """Checkpoints a part of its own forward."""

    def __init__(self, reentrant):
        super().__init__()
        self.w, self.reentrant = nn.Parameter(torch.randn(4, 4)), reentrant

    def forward(self, x):
        return checkpoint(lambda x: functional.linear(x, self.w), x, use_reentrant=self.reentrant)


class CheckpointedAttention(nn.Module):
    """Attention that checkpoints its products."""

    def forward(self, x):
        return checkpoint(lambda x: (x @ x.mT).softmax(-1) @ x, x, use_reentrant=False)


CHECKPOINTED = {
    "products": (lambda: Checkpointed(False), {"weight": UNSCALED, "activation": UNSCALED}),
    "one operand": (lambda: Checkpointed(False), {"activation": UNSCALED}),
    "attention": (CheckpointedAttention, {"attention": UNSCALED}),
}


def test_a_module_that_checkpoints_a_part_of_itself_is_told():
    """That part is computed again when the forward is over, and nobody quantizes it."""
    x = torch.randn(3, 4, requires_grad=True)
    told = pytest.warns(RuntimeWarning, match=r"layer 0 \(Checkpointed\) multiplies without")
    with quantize_in_float32(nn.Sequential(Checkpointed(True)), E3M4_OPERANDS) as q, told:
        q.model(x)
    refused = pytest.raises(CheckpointError)
    with quantize_in_float32(nn.Sequential(Checkpointed(False)), E3M4_OPERANDS) as q, refused:
        q.model(x).sum().backward()
    outside = nn.Sequential(Lora(4))
    with quantize_in_float32(outside, E3M4_OPERANDS):
        expected = torch.autograd.grad(outside(x).sum(), x)
        for reentrant in (True, False):
            x.grad = None
            checkpoint(outside, x, use_reentrant=reentrant).sum().backward()
            assert torch.equal(x.grad, expected[0])


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_plain_products_are_not_taken_for_quantized_ones(name):
    """Where they save as many tensors, of the same shapes and types."""
    build, recipe = CHECKPOINTED[name]
    x = torch.randn(4, 4, 4)[slice(None) if name == "attention" else 0].requires_grad_()
    with quantize_in_float32(nn.Sequential(build()), recipe) as q, pytest.raises(CheckpointError):
        q.model(x).sum().backward()


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    """As in plain torch: the gradient would be that of another weight."""
    layer, x = nn.Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    with quantize_model(nn.Sequential(layer), {"layers": {"0": {"activation": "E4M3"}}}):
        y = layer(x)
        with torch.no_grad():
            layer.weight.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("frozen", ["", "weight", "input"])
@pytest.mark.parametrize("layer", [lambda: nn.Linear(6, 5), lambda: nn.Conv1d(6, 5, 1)])
def test_only_what_the_backward_pass_needs_is_kept(layer, frozen):
    """By way of autograd, so that it is freed there, and can be offloaded."""
    layer = layer()
    x = torch.randn(6, 6, requires_grad=frozen != "input")
    layer.weight.requires_grad_(frozen != "weight")
    shapes = []
    with quantize_model(nn.Sequential(layer), E2M1_EVERYWHERE):
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t
        )
        with hooks:
            y = layer(x)
        y.sum().backward()
    # A lone sample of a convolution has gained an axis.
    kept = [s for s in shapes if math.prod(s) > 1]
    assert (math.prod(x.shape) in map(math.prod, kept)) == (frozen != "weight")
    assert (tuple(layer.weight.shape) in kept) == (frozen != "input")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(reentrant):
    """The forward pass is computed again: with nothing random in it, it comes out the same."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x = torch.randn(3, 8, requires_grad=True)
    with quantize_model(model, E2M1_EVERYWHERE):
        model(x).sum().backward()
        expected = [p.grad for p in model.parameters()] + [x.grad]
        model.zero_grad()
        x.grad = None
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        found = [p.grad for p in model.parameters()] + [x.grad]
    assert all(map(torch.equal, found, expected))
