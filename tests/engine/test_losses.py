"""Means of losses over a step's micro-batches."""

import pytest
import torch

from altcore.engine.losses import means


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_unequal_micro_batches_are_weighed_in_float32_at_least(dtype):
    """Shares of 16 bits do not sum to 1."""
    losses, items = [2.296875, 2.3125, 2.328125], [64, 16, 40]
    found = [{"loss": torch.tensor(loss, dtype=dtype)} for loss in losses]
    exact = sum(loss * n for loss, n in zip(losses, items, strict=True)) / sum(items)
    assert float(means(found, items)["loss"]) == pytest.approx(exact, rel=1e-7)
    assert float(means(found, [1, 1, 1])["loss"]) == pytest.approx(sum(losses) / 3, rel=1e-7)
