"""Functions that torch.compile makes machine code of for a CPU: the same bits as uncompiled."""

import shutil

import pytest
import torch
from format_checks import all_bfloat16, assert_same

from altcore import fake_quantize, float_format
from altcore.numerics import grid_error, round_to_grid

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++"),
]
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
TF32 = float_format("TF32", 8, 10, specials="ieee")
MX = ("MXFP8-E4M3", "MXFP8-E5M2", "MXFP6-E2M3", "MXFP6-E3M2", "MXFP4", "MXINT8", "NVFP4")


def check(function, x):
    torch._dynamo.reset()
    assert_same(torch.compile(function, fullgraph=True)(x), function(x))


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("names", [MX[:1], MX], ids=["one", "all"])
def test_a_shorter_block(names):
    """A quotient as an index would have the loop end before the last block, unwritten."""
    check(lambda x: torch.stack([fake_quantize(x, name) for name in names]), numbers(40))


@pytest.mark.parametrize("key", [5, 6])
def test_random_bits(key):
    """A product of an index would overflow, which C++ leaves undefined."""
    check(lambda x: fake_quantize(x, "E4M3", rounding="stochastic", key=key), numbers(32))


@HALVES
@pytest.mark.parametrize(
    "call",
    [
        lambda x: grid_error(x, "E4M3", 0.3),
        lambda x: fake_quantize(x, "E4M3", "amax").float() * 3,
        lambda x: fake_quantize(x, "NVFP4").float() * 3,
        lambda x: round_to_grid(x.float() * 1.001, TF32, dtype=x.dtype).float(),
    ],
    ids=["error", "amax", "blocks", "grid"],
)
def test_a_result_of_16_bits_is_rounded(call, dtype):
    """Where computing goes on in float32: torch.compile leaves casts to and fro out."""
    check(call, numbers(5000).to(dtype))


@HALVES
def test_every_number_of_16_bits(dtype):
    """Infinities, NaN, zeros and subnormal numbers, too, and those past the dtype's range."""
    check(lambda x: fake_quantize(x, TF32, 1.7).float(), all_bfloat16().float().to(dtype))
    check(lambda x: round_to_grid(x, TF32, dtype=dtype).float(), all_bfloat16().float() * 1.003)
