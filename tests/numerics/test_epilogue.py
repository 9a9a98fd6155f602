"""From a product to an output: scales, bias, and one rounding to the dtype."""

import itertools

import pytest
import torch
from format_checks import PATHS, assert_same, path, random_floats
from hypothesis import given, settings
from hypothesis import strategies as st

from altcore.numerics import kernels, scale_output
from altcore.numerics.kernels import build

SCALES = {
    "none": lambda m, n: None,
    "number": lambda m, n: torch.tensor(0.3),
    "single": lambda m, n: torch.full((1, 1), 3e-20),
    "rows": lambda m, n: torch.linspace(0.1, 7, m).reshape(m, 1),
    "columns": lambda m, n: torch.linspace(1e-5, 2, n).reshape(1, n),
}


def by_definition(y, scales, bias, dtype):
    """One operation after another, in float32."""
    y = y.float()
    for scale in scales:
        y = y if scale is None else y * scale
    return (y if bias is None else y + bias).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 70), st.integers(1, 90)),
    scales=st.tuples(st.sampled_from(list(SCALES)), st.sampled_from(list(SCALES))),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_as_defined(shape, scales, dtypes, biased, seed):
    """On both paths, whatever the numbers are, to the last bit."""
    m, n = shape
    given = [SCALES[name](m, n) for name in scales]
    bias = torch.linspace(-1, 1, n) if biased else None
    y = random_floats(m * n, seed).reshape(m, n).to(dtypes[0])
    wanted = by_definition(y, given, bias, dtypes[1])
    for way in PATHS:
        with path(way):
            assert_same(scale_output(y.clone(), tuple(given), bias, dtypes[1]), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes(dtype):
    """float64 stays float64 unless told; float16 goes by way of float32."""
    y = torch.arange(6.0).reshape(2, 3).to(dtype)
    made = scale_output(y.clone(), (torch.tensor(0.5), None), None)
    assert made.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(made, (y * 0.5).to(made.dtype))
    assert scale_output(y, (None, None), None, torch.float32).dtype == torch.float32


def test_other_layouts():
    """Images, and what is not contiguous, with a bias for each channel."""
    y = torch.randn(2, 3, 4, 5)
    for other in (y, y.to(memory_format=torch.channels_last), y.transpose(1, 2)):
        bias = torch.linspace(1, 2, other.shape[1]).reshape(-1, 1, 1)
        made = scale_output(other.clone(), (torch.tensor(2.0), None), bias, torch.bfloat16)
        assert torch.equal(made, (other * 2 + bias).bfloat16())


@pytest.mark.skipif(build.library() is None, reason="no C compiler")
def test_the_kernel_is_used(monkeypatch):
    """For the two dtypes, with numbers or rows as scales, in the memory of the product."""
    calls = []
    own = kernels.can_scale
    monkeypatch.setattr(kernels, "can_scale", lambda *a: calls.append(own(*a)) or calls[-1])
    for name, dtype in itertools.product(("number", "rows"), (torch.float32, torch.bfloat16)):
        y = torch.ones(64, 48, dtype=dtype)
        made = scale_output(y, (SCALES[name](64, 48), None), torch.ones(48), dtype)
        assert made.data_ptr() == y.data_ptr()
    assert calls == [True] * 4
