"""Fixtures of the tests of quantization."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Weights and inputs are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def draw():
    """Return a function that draws normal tensors, always the same ones."""
    generator = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture
def draw_uneven():
    """Return a function that draws normal tensors of very unlike rows and columns."""
    generator = torch.Generator().manual_seed(3)

    def tensor(rows, columns):
        x = torch.randn(rows, columns, generator=generator)
        spread = (
            torch.randn(rows, 1, generator=generator).exp()
            * torch.randn(1, columns, generator=generator).exp()
        )
        return x * spread

    return tensor
