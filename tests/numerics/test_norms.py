"""L2 norms: of 16-bit tensors they are float32, whatever the largest float16 is."""

import pytest
import torch

from altcore.numerics import norm_of, norms_of

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_agree_with_float64(dtype):
    """Of a tensor, and along dimensions, which are kept."""
    x = torch.linspace(1, 3e4, 6000).view(4, 50, 30).to(dtype)
    exact, wide = x.double(), torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(norm_of(x), exact.norm().to(wide))
    torch.testing.assert_close(norms_of([x, x[0]]), torch.stack([norm_of(x), norm_of(x[0])]))
    for dim in (0, (1, 2)):
        expected = torch.linalg.vector_norm(exact, dim=dim, keepdim=True).to(wide)
        torch.testing.assert_close(norm_of(x, dim), expected)


def test_norms_of_several_types_are_of_the_widest():
    ones = [torch.ones(4, dtype=dtype) for dtype in DTYPES]
    assert torch.equal(norms_of(ones), torch.full((4,), 2.0, dtype=torch.float64))
    assert norms_of([torch.ones(4, dtype=torch.complex64)]) == 2
