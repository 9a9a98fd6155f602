"""What is kept of a format is not of the moment in which it was met.

Whatever dtype and device torch gives new tensors by default then, and whoever traces.
"""

from __future__ import annotations

import os
import subprocess
import sys

import attrs
import pytest
import torch
from format_checks import assert_same, path
from torch._subclasses.fake_tensor import FakeTensorMode

import altcore
from altcore.formats import BlockFormat, float_format, table_format
from altcore.numerics import (
    Rule,
    count_small,
    fake_blocks,
    follow_flips,
    hadamard,
    inner_products,
    moments,
    ordinal,
    round_scaled,
    round_to_grid,
    scale_output,
)
from altcore.numerics.kernels import build

EVERYTHING = """
import torch
from altcore import encode, decode, fake_quantize, get_format, neighbours, pack, quantize, stiffness
from altcore import ulp_distance, unpack, quantize_model
from altcore import numerics
from altcore.numerics import epilogue, hadamard
from altcore.numerics.blocks import fake_blocks, round_blocks

def everything():
    draw = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(40, 64, generator=draw, dtype=torch.float32, device="cpu") * 100
    for name in ("INT8", "E4M3", "E3M4", "NF4", "posit8_1", "E5M2IEEE", "LOG4_3-by-log"):
        fmt = get_format(name)
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
            y = x.to(dtype)
            yield fake_quantize(y, name)
            yield fake_quantize(y, name, "amax")
            yield fake_quantize(y, name, 0.3, "stochastic", key=3)
            yield fake_quantize(y, name, rounding="log-nearest")
            for scaling in ("tensor", "power-of-two", "channel", "block", "none"):
                yield from quantize(y, name, scaling)
            yield numerics.quantile(y, 0.9)
            yield numerics.root_mean_square(y, 0)
            yield stiffness(y, name)
            yield numerics.grid_error(y, fmt)
            yield from neighbours(y, name, 0.3)
            yield ulp_distance(y, y * 1.1, name)
        yield encode(x, name)
        yield decode(encode(x, name), name, 0.5)
        if fmt.bits <= 8:
            yield unpack(pack(x, name, 0.5))
        sums = torch.zeros(4, dtype=torch.int64, device="cpu")
        numerics.round_to_grid(x, fmt, meters=numerics.Meters(sums, None))
        yield sums
    for name in ("MXFP4", "NVFP4", "MXFP8-E4M3"):
        for y in (x, x.bfloat16(), x.double()):
            yield from quantize(y, name)
            yield fake_quantize(y, name)
            yield round_blocks(y, get_format(name), axis=0).scales
        yield unpack(pack(x, name))
    yield hadamard.transform(x, 16, 0, 1)
    for y in (x, x.double()):
        yield numerics.moments(y)
        yield numerics.inner_products(y, y + 1)
        yield numerics.count_small(y, 1.0)
        earlier = torch.full_like(y, torch.nan)
        at = torch.zeros_like(y, dtype=torch.int32)
        yield numerics.follow_flips(y, y.round(), earlier, at, 3, since=1)
        one = torch.ones((), dtype=torch.float32, device="cpu")
        yield numerics.follow_flips(y, y, earlier, at, 3, since=1, scales=(one, one * 2))
        yield epilogue.scale_output(y.clone(), (one, None), None, torch.bfloat16)
    for recipe in ("mxfp8", "pure", "all"):
        layer = torch.nn.Linear(64, 32, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            layer.weight.copy_(x[:32] / 1000), layer.bias.fill_(0.5)
        model = torch.nn.Sequential(layer)
        q = quantize_model(model, {"weight": "E4M3", "activation": "NF4", "gradient": "E5M2"}
                           if recipe == "all" else {"stored_weight": "E4M3", "activation": "INT8"}
                           if recipe == "pure" else {"weight": "MXFP4", "activation": "NVFP4"})
        y = x.clone().requires_grad_()
        made = model(y)
        made.sum().backward()
        yield made.detach()
        yield y.grad
        yield layer.weight.grad
"""
DEFAULTS = """
torch.set_default_dtype({dtype})
with torch.device("{device}"):
    found = [t.clone() for t in everything()]
torch.save(found, "{file}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernels", "others"),
    [
        ("on", [("torch.float16", "cpu"), ("torch.bfloat16", "meta")]),
        ("off", [("torch.float64", "meta")]),
    ],
)
def test_defaults_of_torch_do_not_matter(tmp_path, kernels, others):
    """Whatever dtype and device new tensors have, when formats are first used: the same bits."""
    found = []
    for dtype, device in (("torch.float32", "cpu"), *others):
        file = tmp_path / f"{dtype}-{device}.pt"
        code = EVERYTHING + DEFAULTS.format(dtype=dtype, device=device, file=file)
        environment = {**os.environ, build.SWITCH: kernels}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        found.append(torch.load(file))
    for got in found[1:]:
        for x, wanted in zip(got, found[0], strict=True):
            assert_same(x, wanted)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_formats_met_under_other_defaults(default):
    """What is kept of them is right, then and later; and no buffer is on the default device."""
    formats = [
        table_format(f"integers-{default}", range(-127, 128)),  # kept by names and values
        table_format(f"few-{default}", [-3, -0.7, 0, 0.1, 0.5, 4]),
        float_format(f"E4M3-{default}", 4, 3, specials="fn"),
    ]
    x = torch.tensor([1.3, 2.5, 3.7, 100, 300, -0.4])
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            met = [_of_many_kinds(x, fmt) for fmt in formats]
    finally:
        torch.set_default_dtype(torch.float32)
    assert met[0][0].tolist() == [1, 2, 4, 100, 127, -0.0]
    for fmt, found in zip(formats, met, strict=True):
        other = attrs.evolve(fmt, name="another")
        for each in (found, _of_many_kinds(x, fmt)):
            for got, wanted in zip(each, _of_many_kinds(x, other), strict=True):
                assert_same(got, wanted)


def _of_many_kinds(x, fmt):
    codes = altcore.encode(x, fmt)
    return [
        round_to_grid(x, fmt),
        round_to_grid(x, fmt, Rule("stochastic"), key=1),
        round_to_grid(x.double(), fmt, Rule("log-nearest")),
        *round_scaled(x.bfloat16(), fmt, fake=True),
        ordinal(round_to_grid(x, fmt), fmt),
        codes,
        altcore.decode(codes, fmt),
        altcore.unpack(altcore.pack(x, fmt, 0.5)),
        moments(x),
        inner_products(x, x),
        count_small(x, 1.0),
        follow_flips(x, x + 1, x.clone(), torch.zeros_like(x, dtype=torch.int32), 3, since=1),
        scale_output(x.clone(), (None, None), None, torch.bfloat16),
        fake_blocks(x, BlockFormat("MINE", fmt, 4, "amax")),
    ]


def test_formats_met_among_fake_tensors():
    """Nothing fake is kept: codes, thresholds, a Hadamard matrix."""
    table = table_format("met among fake tensors", [-1, -0.5, 0, 0.25, 1])
    floats = float_format("met among fake tensors", 4, 3, specials="fn")
    with FakeTensorMode():
        fake = torch.empty(4)
        assert altcore.encode(fake, floats).shape == (4,)
        assert round_to_grid(fake, table).shape == (4,)
        assert hadamard.transform(fake, 4, 0, 123_456).shape == (4,)
    x = torch.tensor([0.3, 0.8, -0.2, 500.0])
    assert altcore.encode(x, floats).tolist() == [0x2A, 0x35, 0xA5, 0x7E]
    with path("torch"):
        assert round_to_grid(x, table).tolist() == [0.25, 1, 0, 1]
    assert type(hadamard.transform(x, 4, 0, 123_456)) is torch.Tensor


def test_first_used_in_a_mode():
    """What the modules keep for themselves is ordinary, wherever they were imported first."""
    code = (
        "import os, torch\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "with FakeTensorMode() if os.fork() else torch.inference_mode():\n"
        "    import altcore\n"
        "    altcore.fake_quantize(torch.empty(3), 'NF4', 'amax')\n"
        "x = torch.ones(3, requires_grad=True)\n"
        "altcore.fake_quantize(x, 'NF4', 'amax').sum().backward()\n"
        "print(altcore.fake_quantize(x * 3, 'E4M3', 'amax').tolist(), x.grad.tolist())\n"
        "print(altcore.quantize(x, 'MXFP4')[0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # or the lines of both would mingle
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[3.0, 3.0, 3.0] [1.0, 1.0, 1.0]\n[1.0, 1.0, 1.0]\n" * 2
