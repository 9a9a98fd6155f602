"""The norms of a model's gradients."""

import pytest
import torch
from torch import nn

from altcore import AltcoreError
from altcore.engine.gradients import GradientNorms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_parameter_without_a_gradient_is_dead_in_any_dtype(dtype):
    model = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(2)]).to(dtype)
    model[1].weight.grad = torch.tensor([[3.0, 4.0]], dtype=dtype)
    norms = GradientNorms(model, 1e-8)
    assert norms.measure() == 5
    assert norms.dead_by_name() == {"0.weight": 1, "1.weight": 0}


@pytest.mark.parametrize("dtypes", [(torch.float16,), (torch.bfloat16, torch.float32)])
def test_norms_of_16_bits_are_float32(dtypes):
    """A finite gradient's may be above the largest float16."""
    model = nn.ModuleList([nn.Linear(256, 256, bias=False).to(dtype) for dtype in dtypes])
    for module in model:
        module.weight.grad = torch.full_like(module.weight, 30000.0)
    norms = GradientNorms(model, 1e-8)
    squares = sum(m.weight.grad.double().square().sum() for m in model)
    for norm in (norms.norm(), norms.measure()):
        assert norm.dtype == torch.float32
        assert float(norm) == pytest.approx(float(squares.sqrt()), rel=1e-4)


def test_a_sparse_gradient_is_named():
    model = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Linear(2, 1))
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(AltcoreError, match=r"the gradient of 0.weight is sparse, .* sparse=False"):
        GradientNorms(model, 1e-8).measure()
