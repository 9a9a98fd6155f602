"""The largest magnitude of a tensor."""

import math

import pytest
import torch
from format_checks import PATHS, path

from altcore.numerics import amax


@pytest.mark.parametrize("way", PATHS)
def test_amax(way):
    with path(way):
        assert amax(torch.tensor([1.0, -3.0])) == 3
        assert torch.isnan(amax(torch.tensor([1.0, math.nan, math.inf])))
        assert amax(torch.tensor([1.0, -math.inf])) == math.inf
        assert amax(torch.zeros(0)) == 0
        assert not torch.signbit(amax(torch.tensor([-0.0])))
        assert amax(torch.tensor(-2.5, dtype=torch.bfloat16)).dtype == torch.float32
        assert amax(torch.tensor([-1e300], dtype=torch.float64)) == 1e300
        assert amax(torch.randn(50, 30).t()).ndim == 0
