"""The torch operations compiled by torch.compile: the same bits, or else the operations stay."""

import contextlib
import shutil
import warnings

import pytest
import torch
from format_checks import all_bfloat16, assert_same, edges, path, random_floats
from grid_formats import BF16, E0M7, E4M3, E5M2, E7M0, FLAT, NF, WIDE
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from altcore.formats import BlockFormat, FloatFormat, Stochastic, TableFormat, get_format
from altcore.numerics import (
    NEAREST,
    UNMETERED,
    Meters,
    Rule,
    backends,
    compiled_rounder,
    fake_blocks,
    fake_round,
    round_to_grid,
)
from altcore.numerics.compiled_rounder import CompiledRounder
from altcore.numerics.torch_arithmetic import PART, TorchBlockRounder, TorchRounder
from altcore.numerics.torch_rounding import _first_bits
from altcore.numerics.tracing import tell_compiler

FORMATS = [get_format("E2M1"), E4M3, E5M2, E0M7, E7M0, BF16, FLAT, NF, WIDE]
RULES = [
    *(NEAREST, Rule("nearest-away"), Rule("to-zero"), Rule("up"), Rule("down")),
    *(Rule("log-nearest"), Rule("stochastic"), Rule(overflow="nan"), Rule(overflow="inf")),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
has_cpp = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing was compiled, and nothing has failed; later tests find torch's compiler as it was."""
    monkeypatch.setattr(compiled_rounder, "_compiles", True)
    torch._dynamo.reset()
    yield
    tell_compiler.__wrapped__.cache_clear()
    for kind in (FloatFormat, TableFormat):
        if _pytree.SUPPORTED_NODES.pop(kind, None):
            _pytree.CONSTANT_NODES.discard(kind)


def numbers(fmt, dtype, device="cpu"):
    """Edges of the format, every number of 16 bits, and random bits."""
    parts = (edges(fmt, most=200), all_bfloat16().float(), random_floats(5000))
    x = torch.cat(parts)
    return x[: len(x) // 8 * 8].view(8, -1).to(device, dtype)


def can_do(fmt, rule):
    codes = {"inf": fmt.inf_codes, "nan": fmt.nan_codes}
    return bool(codes.get(rule.overflow, True))


def alike(compiled, eager, x, device="cpu"):
    """Both ways round ``x`` to the same bits: to the grid and back, counted, and scaled by rows."""
    one = torch.tensor(0.37, device=device)
    rows = torch.linspace(0.1, 3, len(x), device=device).unsqueeze(1)
    for r, s in ((None, None), (one, 1 / one), (rows, 1 / rows)):
        counts = torch.zeros(2, 4, dtype=torch.int64, device=device)
        errors = torch.zeros(2, 2, dtype=torch.float64, device=device)
        found = [
            (
                rounder.round(x, r, Meters(counts[i], errors[i]), 7),
                rounder.fake(x, r, s, UNMETERED, 7),
            )
            for i, rounder in enumerate((compiled, eager))
        ]
        for got, wanted in zip(*found, strict=True):
            assert got.dtype == wanted.dtype
            assert got.shape == wanted.shape
            assert_same(got.cpu().float(), wanted.cpu().float())
        assert counts[0].tolist() == counts[1].tolist()
        torch.testing.assert_close(errors[0], errors[1], rtol=1e-5, atol=0, equal_nan=True)
    assert compiled.codes
    assert all(compiled.codes.values())


@has_cpp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fmt", "rule"),
    [
        (E4M3, NEAREST),
        (E7M0, NEAREST),
        (E4M3, Rule("stochastic")),
        (NF, NEAREST),
        (E5M2, RULES[-1]),
    ],
    ids=str,
)
def test_same_bits_on_a_cpu(fmt, rule):
    """By the compiler for CPUs: what GPUs go through but for the code that is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        alike(CompiledRounder(fmt, rule), TorchRounder(fmt, rule), numbers(fmt, torch.float32))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_same_bits_on_a_gpu(fmt, rule, dtype):
    """Compiled code rounds as torch operations do there, and as they do on the CPU."""
    if not can_do(fmt, rule):
        pytest.skip("no such code")
    x = numbers(fmt, dtype, "cuda")
    rounder = backends.rounder_for(x, fmt, rule)
    assert isinstance(rounder, CompiledRounder) != compiled_rounder.has_long_table(fmt, rule)
    if isinstance(rounder, CompiledRounder):
        alike(rounder, TorchRounder(fmt, rule), x, "cuda")
    with path("torch"):
        wanted = round_to_grid(x.cpu(), fmt, rule, key=7)
    assert_same(round_to_grid(x, fmt, rule, key=7).cpu(), wanted)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["MXFP8-E4M3", "MXFP4", "NVFP4"])
def test_blocks_on_a_gpu(name):
    fmt = get_format(name)
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    with path("torch"):
        wanted = fake_blocks(x, fmt)
    assert_same(fake_blocks(x.cuda(), fmt).cpu(), wanted)


def broken(*arguments):
    raise RuntimeError("no compiler here")


def test_operations_stay_where_compiling_fails(monkeypatch):
    """Told once, for everything that comes after."""
    monkeypatch.setattr(torch, "compile", lambda *a, **k: broken)
    x = torch.randn(50)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for fmt in (E4M3, E4M3, E5M2):
            rounder = CompiledRounder(fmt, NEAREST)
            assert_same(rounder.round(x, None, UNMETERED, None), round_to_grid(x, fmt))
    (told,) = [str(w.message) for w in seen if w.category is RuntimeWarning]
    assert told.startswith("torch.compile failed (RuntimeError: no compiler here): rounding on")
    assert not compiled_rounder._compiles


def test_operations_stay_for_one_kind_that_fails(monkeypatch):
    """Other formats go on being compiled: told of each that is not."""

    def compiles_all_but_tables(function, **options):
        captured = [c.cell_contents for c in function.__closure__ or ()]
        fails = any(getattr(c, "fmt", None) is NF for c in captured)
        return broken if fails else function

    monkeypatch.setattr(torch, "compile", compiles_all_but_tables)
    x, rule = torch.randn(50), Rule("stochastic")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for fmt in (NF, E4M3):
            rounder = CompiledRounder(fmt, rule)
            for _ in range(2):
                assert_same(
                    rounder.round(x, None, UNMETERED, 7), round_to_grid(x, fmt, rule, key=7)
                )
            assert [code is None for code in rounder.codes.values()] == [fmt is NF]
    (told,) = [str(w.message) for w in seen if w.category is RuntimeWarning]
    assert told.startswith("torch.compile failed for nf (stochastic) (RuntimeError: no compiler")
    assert compiled_rounder._compiles


def test_operations_stay_where_bits_differ(monkeypatch):
    """As with compilers that fuse, flush or keep more bits; each format is told of."""

    def compiles_wrongly(function, **options):
        def compiled(x, *given):
            q, *others = function(x, *given)
            return torch.where(q == 448, 447.0, q), *others

        return compiled

    monkeypatch.setattr(torch, "compile", compiles_wrongly)
    x = torch.randn(50) * 400
    rounder = CompiledRounder(E4M3, NEAREST)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            assert_same(rounder.round(x, None, UNMETERED, None), round_to_grid(x, E4M3))
    (told,) = [str(w.message) for w in seen if w.category is RuntimeWarning]
    assert told.startswith("torch.compile rounds otherwise to E4M3 (nearest-even)")
    assert compiled_rounder._compiles


def test_a_sign_of_zero_is_a_difference(monkeypatch):
    def compiles_wrongly(function, **options):
        return lambda x, *given: (function(x, *given)[0] + 0.0, None, None, None)

    monkeypatch.setattr(torch, "compile", compiles_wrongly)
    rounder = CompiledRounder(E4M3, NEAREST)
    with pytest.warns(RuntimeWarning, match="rounds otherwise"):
        q = rounder.round(torch.tensor([-0.0]), None, UNMETERED, None)
    assert torch.signbit(q).all()


def test_compiled_code_is_used_once_it_agrees(monkeypatch):
    """In one kind for all shapes; a call of another kind is compared anew."""
    sizes = []

    def compiles(function, **options):
        return lambda x, *given: sizes.append(x.numel()) or function(x, *given)

    monkeypatch.setattr(torch, "compile", compiles)
    rounder = CompiledRounder(E4M3, Rule("stochastic"))
    for shape in ((3,), (4, 5)):
        x = torch.randn(shape)
        found = rounder.fake(x, None, None, UNMETERED, 3)
        assert_same(found, fake_round(x, E4M3, Rule("stochastic"), r=None, s=None, key=3))
    assert sizes == [2**17, 3, 20]
    rounder.round(torch.randn(3), None, Meters(torch.zeros(4, dtype=torch.int64)), 3)
    assert sizes[3:] == [2**17, 3]
    assert len(rounder.codes) == 2


def by_operations(monkeypatch):
    """torch.compile counts how often it compiles, but makes no machine code."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **given: real(f, backend="eager", **given))


def test_a_format_is_compiled_for_any_number_of_kinds(monkeypatch):
    """Of dtypes, scales, counters and layouts: torch gives up on a function after eight."""
    by_operations(monkeypatch)
    rounder = CompiledRounder(E4M3, NEAREST)
    one, rows = torch.tensor(0.5), torch.full((6, 1), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(6, 8).to(dtype)
            for r in (None, one):
                for counts in (None, torch.zeros(4, dtype=torch.int64)):
                    rounder.round(x, r, Meters(counts), None)
            for y, r in ((x, rows), (x.T, rows.T), (x, rows.expand(6, 8)), (x[:, ::2], rows)):
                rounder.fake(y, r, r, UNMETERED, None)
    assert len(rounder.codes) == 16
    assert all(rounder.codes.values())


def count_compiled(monkeypatch, mode=contextlib.nullcontext):
    """Return a list that gets a graph for each compilation; what they do runs inside ``mode()``."""
    graphs, real = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)

        def run(*args):
            with mode():
                return graph(*args)

        return run

    monkeypatch.setattr(torch, "compile", lambda f, **given: real(f, backend=backend, **given))
    return graphs


def test_blocks_are_one_kind_along_every_axis(monkeypatch):
    """Of any shape: nothing is compiled again in a later step, or for another layer."""
    graphs = count_compiled(monkeypatch)
    fmt = get_format("MXFP8-E4M3")
    rounder = TorchBlockRounder(fmt, CompiledRounder(fmt.element, NEAREST))
    counts, own = torch.zeros(2, 4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for shape in ((64, 96), (256, 32), (32, 32), (2, 64, 64), (96,)):
            x = torch.randn(shape) * 500
            for axis in range(x.ndim):
                found = rounder.fake(x, axis, Meters(counts), None)
                assert_same(found, fake_blocks(x, fmt, axis=axis, meters=Meters(own)))
    assert counts.tolist() == own.tolist()
    assert len(graphs) == len(rounder.element.codes) == 1


def test_sums_are_of_parts_of_one_size(monkeypatch):
    """Whatever the first tensor was: after a small one a GPU would leave all to one processor."""
    longest = []

    class Sums(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **kwargs or {})
            if func.overloadpacket == torch.ops.aten.sum and args[0].numel():
                longest.append(args[0].numel() // result.numel())
            return result

    count_compiled(monkeypatch, Sums)
    rounder, own = CompiledRounder(E4M3, NEAREST), TorchRounder(E4M3, NEAREST)
    for rows in (3, 3 * PART + 1):
        x, r = torch.randn(rows, 2) * 400, torch.rand(rows, 1) + 0.5
        for scale in (None, r):
            counts = torch.zeros(2, 4, dtype=torch.int64)
            errors = torch.zeros(2, 2, dtype=torch.float64)
            for i, each in enumerate((rounder, own)):
                each.round(x, scale, Meters(counts[i], errors[i]), None)
            assert counts[0].tolist() == counts[1].tolist()
            torch.testing.assert_close(errors[0], errors[1])
    assert max(longest) == PART


@pytest.mark.parametrize("fmt", [E4M3, FLAT, NF, WIDE], ids=str)
def test_random_bits_of_any_number_are_compiled(fmt, monkeypatch):
    """Some versions of torch take the number for a symbol, and cannot shift by all of them."""
    by_operations(monkeypatch)
    x = torch.randn(50)
    for settings in (Stochastic(), Stochastic(3)):
        rounder = CompiledRounder(fmt, Rule("stochastic", stochastic=settings))
        found = rounder.round(x, None, UNMETERED, 7)
        assert_same(found, round_to_grid(x, fmt, rounder.rule, key=7))
        assert all(rounder.codes.values())


def test_operations_take_over_where_compiling_again_fails(monkeypatch):
    """Autocast has torch compile the same kind again; a step goes on if it cannot."""
    by_operations(monkeypatch)
    rounder, x = CompiledRounder(E4M3, NEAREST), torch.randn(50)
    # Monkeypatch would delete this setting at its end, and nothing could compile from then on.
    with torch._dynamo.config.patch(recompile_limit=1):
        assert_same(rounder.round(x, None, UNMETERED, None), round_to_grid(x, E4M3))
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.warns(RuntimeWarning, match="torch.compile failed for E4M3"),
        ):
            assert_same(rounder.round(x, None, UNMETERED, None), round_to_grid(x, E4M3))
    assert compiled_rounder._compiles
    assert list(rounder.codes.values()) == [None]


def test_a_search_in_a_long_table_is_not_compiled():
    """It would be traced for minutes, and not be faster."""
    assert compiled_rounder.has_long_table(BF16, Rule("log-nearest"))
    assert not compiled_rounder.has_long_table(BF16, NEAREST)
    assert not compiled_rounder.has_long_table(NF, NEAREST)


@pytest.mark.parametrize("count", [1, 7, 23, 31, 32])
def test_the_first_random_bits(count):
    drawn = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31), 0x12345678], dtype=torch.int32)
    wanted = [(int(n) & 0xFFFFFFFF) >> (32 - count) for n in drawn]
    assert _first_bits(drawn, count).tolist() == wanted


def test_a_cpu_is_not_compiled_for():
    x = torch.randn(5)
    assert not compiled_rounder.can_compile(x, E4M3, NEAREST)
    with path("torch"):
        assert type(backends.rounder_for(x, E4M3, NEAREST)) is TorchRounder
        blocks = BlockFormat("MINE", E4M3, 32, "amax")
        assert type(backends.block_rounder_for(x, blocks, NEAREST).element) is TorchRounder
