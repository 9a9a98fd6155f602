"""What is no tensor of numbers, no rule, no key and no scale, each alone."""

import numpy as np
import pytest
import torch
from format_checks import assert_same
from grid_formats import E3M4, E4M3, normal
from torch.masked import masked_tensor

import altcore
from altcore import fake_quantize, get_format
from altcore.errors import BadInput
from altcore.formats import BlockFormat, float_format
from altcore.numerics.codes import decode, encode
from altcore.numerics.functional import grid_error, neighbours, quantize, stiffness, ulp_distance
from altcore.numerics.packing import pack, unpack

X = normal(4, 4)
TAKES_TENSOR = {
    "quantize": (lambda t: quantize(t, E4M3), "x"),
    "quantize, channel": (lambda t: quantize(t, E4M3, "channel"), "x"),
    "quantize, blocks": (lambda t: quantize(t, "MXFP4"), "x"),
    "fake_quantize": (lambda t: fake_quantize(t, E4M3), "x"),
    "fake_quantize, amax": (lambda t: fake_quantize(t, E4M3, "amax"), "x"),
    "fake_quantize, blocks": (lambda t: fake_quantize(t, "MXFP4"), "x"),
    "fake_quantize, scale": (lambda t: fake_quantize(X, E4M3, t), "scale"),
    "encode": (lambda t: encode(t, E4M3), "x"),
    "encode, scale": (lambda t: encode(X, E4M3, t), "scale"),
    "decode, scale": (lambda t: decode(torch.ones(4, 4).long(), E4M3, t), "scale"),
    "ulp_distance, first": (lambda t: ulp_distance(t, X, E4M3), "a"),
    "ulp_distance, second": (lambda t: ulp_distance(X, t, E4M3), "b"),
    "ulp_distance, scale": (lambda t: ulp_distance(X, X, E4M3, t), "scale"),
    "stiffness": (lambda t: stiffness(t, E4M3), "x"),
    "neighbours": (lambda t: neighbours(t, E4M3), "x"),
    "grid_error": (lambda t: grid_error(t, E4M3), "x"),
    "grid_error, scale": (lambda t: grid_error(X, E4M3, t), "scale"),
    "pack": (lambda t: altcore.pack(t, E4M3), "x"),
    "pack, scale": (lambda t: altcore.pack(X, E4M3, t), "scale"),
}
NO_NUMBERS = {
    "sparse": (lambda: X.to_sparse(), r"dense.*sparse_coo.* {0}\.to_dense\(\)"),
    "mkldnn": (lambda: X.to_mkldnn(), r"dense.* {0}\.to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([X, X]), "dense.*nested.* parts"),
    "quantized": (
        lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
        r"qint8.* {0}\.dequantize\(\)",
    ),
    "integer": (lambda: X.int(), r"float32.*not torch\.int32: give {0}\.float\(\)"),
    "boolean": (lambda: X > 0, r"float32.*not torch\.bool"),
    "float8": (lambda: X.to(torch.float8_e4m3fn), r"float32.*not torch\.float8_e4m3fn"),
    "complex": (lambda: X.to(torch.complex64), r"complex64: give torch\.view_as_real\({0}\)"),
    "meta": (lambda: X.to("meta"), "no values.*CPU or GPU"),
    "jagged": (
        lambda: torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged),
        "dense.*nested.* parts",
    ),
    "masked": (lambda: masked_tensor(X, X > 0), r"ordinary.*masked.* {0}\.to_tensor\(0\.0\)"),
    "lazy": (lambda: torch.nn.UninitializedParameter(), "ordinary.*lazy.*run its module once"),
}


@pytest.mark.filterwarnings("ignore:.*(deprecated|prototype)")
@pytest.mark.parametrize("function", TAKES_TENSOR)
@pytest.mark.parametrize("tensor", NO_NUMBERS)
def test_what_cannot_be_rounded_is_named(function, tensor):
    """With the argument, and what would be right, in place of an error of torch's."""
    call, name = TAKES_TENSOR[function]
    make, says = NO_NUMBERS[tensor]
    with pytest.raises(BadInput, match=f"^{name}: .*{says.format(name)}"):
        call(make())


@pytest.fixture
def distributed():
    """A tensor of torch.distributed, in a group of one."""
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distribute_tensor(X.clone(), init_device_mesh("cpu", (1,)), [Shard(0)])
    distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.parametrize("function", TAKES_TENSOR)
def test_a_distributed_tensor_is_named(function, distributed):
    """Of which each process has a part: reinterpreted bit by bit it gave zeros, or an error."""
    call, name = TAKES_TENSOR[function]
    with pytest.raises(BadInput, match=rf"^{name}: .*distributed.*{name}\.to_local\(\) or "):
        call(distributed)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("function", [f for f in TAKES_TENSOR if not f.endswith("scale")])
def test_recording_by_jit_is_refused(function):
    """It would record the memory that a kernel writes to, and not what is written."""
    with pytest.raises(BadInput, match=r"^[xab]: torch\.jit\.trace cannot record"):
        torch.jit.trace(TAKES_TENSOR[function][0], X)


@pytest.mark.slow
@pytest.mark.parametrize("given", [("E4M3", "amax"), ("NF4", 0.3), ("MXFP4",)])
def test_torch_export_records_the_rounding(given):
    class Rounds(torch.nn.Module):
        def forward(self, x):
            return fake_quantize(x, get_format(given[0]), *given[1:])

    program = torch.export.export(Rounds(), (torch.zeros(4, 4),), strict=False)
    assert_same(program.module()(X), fake_quantize(X, *given))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_codes_that_are_none_are_named():
    for given, says in (
        (torch.eye(3).int().to_sparse(), "dense"),
        (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), "dequantize"),
        (X > 0, "integer codes"),
        (torch.ones(3, dtype=torch.uint8, device="meta"), "no values"),
        ([1], "a tensor is needed, not list"),
    ):
        with pytest.raises(BadInput, match=f"^codes: .*{says}"):
            decode(given, E4M3)


@pytest.mark.parametrize("function", [f for f in TAKES_TENSOR if f.endswith("scale")])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 4), (0,)])
def test_a_scale_that_does_not_broadcast_is_named(function, shape):
    """To the tensor as it is: a result of another shape is no result."""
    says = "one scale, not" if function.startswith("pack") else r"^scale: shape.* \[4, 4\]"
    with pytest.raises(BadInput, match=says):
        TAKES_TENSOR[function][0](torch.ones(shape))


def test_a_scale_may_have_what_both_of_a_distance_come_to():
    """One for each pair, as the shapes of what is compared broadcast."""
    column, row = normal(4, 1), normal(1, 4)
    scale = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    found = ulp_distance(column, row, E4M3, scale)
    whole = ulp_distance(column.expand(4, 4), row.expand(4, 4), E4M3, scale)
    assert_same(found, whole)
    with pytest.raises(BadInput, match=r"^a and b: shapes \[4, 2\] and \[3\] do not broadcast"):
        ulp_distance(normal(4, 2), normal(3), E4M3)


@pytest.mark.parametrize("key", ["a", 1.5, True, [1], torch.ones(2).long(), torch.tensor(1.0)])
def test_a_key_is_a_whole_number(key):
    with pytest.raises(BadInput, match=r"^key: an int or an int64 tensor"):
        fake_quantize(X, E4M3, rounding="stochastic", key=key)


@pytest.mark.parametrize("name", [None, 3, ["nearest-even"], X])
def test_rules_are_names(name):
    for call in (
        lambda: fake_quantize(X, E4M3, rounding=name),
        lambda: fake_quantize(X, E4M3, overflow=name),
        lambda: fake_quantize(X, E4M3, gradient=name),
    ):
        with pytest.raises(BadInput, match="unknown"):
            call()


def test_numpy_s_numbers_are_python_s():
    """A scale, an axis, a block's length and a format's widths may be numpy's."""
    x, eight = torch.randn(4, 16), np.int64(8)
    assert torch.equal(fake_quantize(x, E3M4, np.float32(0.5)), fake_quantize(x, E3M4, 0.5))
    assert torch.equal(fake_quantize(x, E3M4, np.int64(2)), fake_quantize(x, E3M4, 2))
    assert torch.equal(unpack(pack(x, E3M4, np.float32(0.5))), unpack(pack(x, E3M4, 0.5)))
    for scaling, blocks in (("channel", ({}, {})), ("block", ({"block": eight}, {"block": 8}))):
        found = quantize(x, E3M4, scaling=scaling, axis=np.int64(0), **blocks[0])
        wanted = quantize(x, E3M4, scaling=scaling, axis=0, **blocks[1])
        assert all(map(torch.equal, found, wanted))
    assert float_format("E3M4", np.int64(3), np.int64(4), bias=np.int8(3)) == E3M4
    mine = BlockFormat("MINE", E3M4, block=eight)
    assert mine == BlockFormat("MINE", E3M4, block=8)
    assert torch.equal(fake_quantize(x, mine, axis=np.int64(0)), fake_quantize(x, mine, axis=0))


def test_what_is_no_number_is_refused_by_name():
    x = torch.randn(4, 32)
    with pytest.raises(BadInput, match=r"axis: .* has no axis 'rows'"):
        pack(x, "MXFP4", axis="rows")
    with pytest.raises(BadInput, match=r"MINE: the bias is a whole number, not 7\.5"):
        float_format("MINE", 4, 3, bias=7.5)
    with pytest.raises(BadInput, match="what pack returns is needed, not Tensor"):
        unpack(x)


@pytest.mark.parametrize("fmt", [E3M4, float_format("WIDE", 9, 0)], ids=str)
def test_scales_beyond_float64(fmt):
    """A whole number of any length is refused as an infinity is."""
    x = torch.randn(4)
    for scale in (10**400, -(10**400)):
        for call in (
            lambda scale: fake_quantize(x, fmt, scale),
            lambda scale: encode(x, fmt, scale),
            lambda scale: decode(torch.tensor([1]), fmt, scale),
            lambda scale: neighbours(x, fmt, scale),
        ):
            with pytest.raises(BadInput, match=r"^scale: a scale is a positive number in .*inf$"):
                call(scale)


def test_arguments_that_nothing_uses():
    """An axis without blocks or channels along it, and a block's length without blocks."""
    x = normal(3, 32)
    cases = [
        (lambda: fake_quantize(x, E4M3, axis=-1), "axis: format E4M3 has no blocks"),
        (lambda: fake_quantize(x.requires_grad_(), E4M3, axis=9), "axis: format E4M3 has no"),
        (lambda: pack(x, E4M3, axis=0), "axis: format E4M3 has no blocks"),
        (lambda: quantize(x, E4M3, axis=0), "axis: the tensor has one scale"),
        (lambda: quantize(x, E4M3, "tensor", block=8), "block: the tensor has one scale"),
        (lambda: quantize(x, E4M3, "none", axis=0), "axis: the scale is 1"),
        (lambda: quantize(x, E4M3, "channel", block=8), "block: each channel has one scale"),
        (lambda: quantize(x, "MXFP4", block=8), "block: format MXFP4 brings its own blocks"),
    ]
    for call, said in cases:
        with pytest.raises(BadInput, match=said):
            call()
