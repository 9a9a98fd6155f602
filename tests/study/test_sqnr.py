"""SQNR: integrals over named distributions against scipy, tensors against rounding itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from altcore import BadInput, fake_quantize, get_format, quantize, table_format
from altcore.formats import BlockFormat
from altcore.numerics import round_blocks
from altcore.study import read_data, sqnr_of
from altcore.study.distributions import NAMES, NUMBERS, named, of_elements
from altcore.study.expected_noise import best_scale, expected, expected_in_blocks
from altcore.study.sqnr import measure

THEIRS = {
    "normal": stats.norm(),
    "uniform": stats.uniform(-1, 2),
    "laplace": stats.laplace(),
    "t5": stats.t(5),
}
UNEVEN = table_format("uneven", [-1, -0.25, 0, 0.5, 3])


def sample(name, count=20_000):
    """Independent numbers, float32."""
    drawn = THEIRS[name].rvs(count, random_state=np.random.default_rng(0))
    return torch.tensor(drawn, dtype=torch.float32)


# ------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("name", NAMES)
def test_tails_are_those_of_scipy(name):
    """Share, mean and mean square beyond a point, with all their digits however far it lies."""
    theirs, found = THEIRS[name], named(name)
    points = [0.0, 1e-9, 0.3, 0.9, 0.999, 1.0, 2.2, 4.09, 4.1, 7, 20, 100]
    ours = found.positive(torch.tensor(points, dtype=torch.float64))
    assert found.positive is found.negative
    for i, point in enumerate(points):
        assert float(ours[0, i]) == pytest.approx(theirs.sf(point), rel=1e-11, abs=1e-300)
        for k in (1, 2):
            end = 1 if name == "uniform" else np.inf
            moment, _ = integrate.quad(
                lambda x, k=k: x**k * theirs.pdf(x), min(point, end), end, epsabs=0, epsrel=1e-11
            )
            assert float(ours[k, i]) == pytest.approx(moment, rel=1e-9, abs=1e-300)
    assert found.signal == pytest.approx(theirs.var())
    assert (1 - 2 * theirs.sf(found.amax)) ** NUMBERS == pytest.approx(0.5)


def test_far_shares_of_student_have_all_their_digits():
    """Beyond t they go as t to the power of -5; terms that cancel would leave nothing."""
    t = torch.tensor([1e4, 1e8, 1e12], dtype=torch.float64)
    limit = 8 / (3 * math.pi) * 5**2.5 / 5
    assert torch.allclose(named("t5").positive(t)[0] * t**5, torch.full_like(t, limit), rtol=1e-6)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.floats(0, 120))
def test_tails_of_elements_are_sums(values, point):
    x = torch.tensor(values)
    at = torch.tensor([point], dtype=torch.float64)
    found = of_elements(x)
    for tails, side in ((found.positive, x[x >= 0]), (found.negative, -x[x < 0])):
        beyond = side.double()[side.double() >= point]
        wanted = [float((beyond**k).sum()) / len(x) for k in range(3)]
        assert tails(at).flatten().tolist() == pytest.approx(wanted)
    assert found.amax == float(x.abs().max())


# ------------------------------------------------------------------------------------- scales


def by_scipy(fmt, theirs, scale):
    """The mean square error, one integral for each rounding interval."""
    edges = [-np.inf, *(float(b) * scale for b in fmt.boundaries), np.inf]
    low, high = theirs.support()
    total = 0.0
    for value, *ends in zip(fmt.values, edges[:-1], edges[1:], strict=True):
        a, b = (min(max(e, low), high) for e in ends)
        for start, end in ((a, min(b, 0)), (max(a, 0), b)):  # a kink of the density lies at 0
            if start < end:
                square = lambda x, v=value: (x - v * scale) ** 2 * theirs.pdf(x)  # noqa: E731
                total += integrate.quad(square, start, end, epsabs=1e-14, epsrel=1e-10)[0]
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fmt", ["E2M1", "E3M2", "posit6_1", "LOG3_1-by-log", "INT4", UNEVEN])
def test_noise_is_that_of_scipy(name, fmt):
    """At scales that clip much, and that flush much."""
    fmt = get_format(fmt) if isinstance(fmt, str) else fmt
    for share in (0.3, 1.0, 4.0):
        scale = share / fmt.max
        lost = expected(fmt, named(name), scale)
        assert lost.noise == pytest.approx(by_scipy(fmt, THEIRS[name], scale), rel=1e-7)
        low, high = (float(limit) * scale for limit in fmt.limits)
        wanted = THEIRS[name].sf(high) + THEIRS[name].cdf(low)
        assert lost.overflow == pytest.approx(wanted, rel=1e-9, abs=1e-15)
        if 0 in fmt.values:
            i = fmt.values.index(0)
            ends = (float(b) * scale for b in fmt.boundaries[i - 1 : i + 1])
            assert lost.underflow == pytest.approx(np.diff(THEIRS[name].cdf([*ends]))[0])


KNOWN = {
    "E2M1": 0.0126849,
    "TERNARY": 0.1901740,
    4: 0.118846,
    16: 0.0115429,
}
"""The least mean square error on the standard normal; a number stands for a uniform grid."""


@pytest.mark.parametrize("grid", KNOWN)
def test_known_errors_of_quantizers(grid):
    """Max 1960, and what is published of formats."""
    if isinstance(grid, int):
        fmt = table_format("u", [i - (grid - 1) / 2 for i in range(grid)])
    else:
        fmt = get_format(grid)
    scale = best_scale(fmt, named("normal"))
    assert expected(fmt, named("normal"), scale).noise == pytest.approx(KNOWN[grid], rel=1e-5)
    if grid == "E2M1":
        assert scale == pytest.approx(0.48708, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [("E0M7", "t5", 29.0465), ("E0M7", "laplace", 35.1812), ("E3M4", "uniform", 38.6559)],
)
def test_exact_figures(name, data, wanted):
    """Of every scale, and of all numbers: by scipy, with a dense grid of scales."""
    assert sqnr_of(get_format(name), named(data))["best"]["sqnr_db"] == pytest.approx(
        wanted, abs=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "fmt", ["E3M4", "E4M3", "E2M1", "E0M7", "E7M0", "INT4", "NF4", "BINARY", "posit8_1", UNEVEN]
)
def test_no_scale_is_better_than_the_best(name, fmt):
    """Of thousands, from where all is clipped to where nothing is left."""
    fmt = get_format(fmt) if isinstance(fmt, str) else fmt
    best = best_scale(fmt, named(name))
    least = expected(fmt, named(name), best).noise
    largest = max(abs(fmt.values[0]), fmt.values[-1])
    for scale in np.geomspace(0.05 / largest, 10 / fmt.smallest, 100):
        assert least <= expected(fmt, named(name), float(scale)).noise * (1 + 1e-6)


def test_the_best_scale_of_a_tensor():
    """For any tensor: no scale of a fine search is better, amax's neither."""
    count = 5000
    tensors = {
        "laplace": sample("laplace", count),
        "sparse": sample("normal", count) * (torch.arange(count) % 10 == 0),
        "positive": sample("t5", count).abs(),
        "tiny": sample("uniform", count).double() * 1e-30,
        "few": torch.tensor([3.0, 1.0, 0.0]),
        "on a grid": fake_quantize(sample("normal", count), "E2M1", scale=0.37),
        "zeros": torch.zeros(5),
    }
    for x in tensors.values():
        for name in ("E4M3", "E2M1", "INT4", "BINARY", "NF4", "posit8_1"):
            fmt = get_format(name)
            both = sqnr_of(fmt, x)
            best = both["best"]["noise"]
            assert best <= both["amax"]["noise"]
            middle = both["best"]["scale"]
            for factor in np.geomspace(0.02, 50, 40):
                other = measure(fmt, x, middle * float(factor))
                assert best <= other["noise"] * (1 + 2e-3) or both["best"]["sqnr_db"] > 80


def test_the_best_scale_has_an_inverse():
    """Though smaller ones would serve numbers that are smaller than float32's normal ones."""
    x = torch.tensor([1e-44, -3e-45])
    for name in ("E4M3", "E0M7", "BF16"):
        both = sqnr_of(get_format(name), x)
        assert both["best"]["noise"] <= both["amax"]["noise"]
        assert best_scale(get_format(name), of_elements(x)) >= 2.0**-127


# --------------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fmt", ["E0M7", "E4M3", "INT4", "NF4"])
def test_figures_of_a_distribution_are_those_of_much_data(name, fmt):
    """At amax: of a tensor of that size whose largest magnitude is the distribution's."""
    x = sample(name, NUMBERS)
    x = x[x.abs() <= named(name).amax]
    x[0] = named(name).amax
    q, s = quantize(x, fmt)
    noise = float((q.double() * s - x).square().mean())
    found = sqnr_of(get_format(fmt), named(name))["amax"]
    wanted = 10 * math.log10(float(x.double().square().mean()) / noise)
    assert found["sqnr_db"] == pytest.approx(wanted, abs=0.05)
    assert found["overflow"] == pytest.approx(0, abs=1e-12)
    assert found["underflow"] == pytest.approx(
        float(((q == 0) & (x != 0)).float().mean()), abs=2e-3
    )


BLOCKS = [
    *("MXFP4", "MXFP4-ceil", "MXFP4-rceil", "MXFP8-E4M3-even", "MXINT8", "NVFP4", "NVFP4-square"),
    BlockFormat("by amax", get_format("E2M1"), 16, "amax"),
    BlockFormat("fine", get_format("E0M7"), 32, "amax"),
    BlockFormat("by power", get_format("INT4"), 8, "power-of-two"),
    BlockFormat("alone", get_format("E2M1"), 1, "floor"),
    BlockFormat("coarse", get_format("E2M1"), 4, "two-level", scale_format=get_format("E2M1")),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fmt", BLOCKS, ids=str)
def test_blocks_of_a_distribution_are_those_of_much_data(name, fmt):
    """Whose scales are of powers of two, of two levels, or any: as rounding a tensor has it."""
    fmt = get_format(fmt) if isinstance(fmt, str) else fmt
    x = sample(name, NUMBERS)
    x[x.abs() > named(name).amax] = 0.0
    x[0] = named(name).amax
    by_rounding = sqnr_of(fmt, x.reshape(-1, 512))["amax"]
    found = sqnr_of(fmt, named(name))
    assert found["best"] is None
    assert found["amax"]["sqnr_db"] == pytest.approx(by_rounding["sqnr_db"], abs=0.12)
    assert found["amax"]["overflow"] == pytest.approx(by_rounding["overflow"], abs=1e-3)
    assert found["amax"]["underflow"] == pytest.approx(by_rounding["underflow"], abs=3e-3)


def test_a_block_of_one_is_its_own_scale():
    """By any rule whose scales are all numbers nothing is lost."""
    fmt = BlockFormat("one", get_format("E2M1"), 1, "amax")
    assert expected_in_blocks(fmt, named("normal")) == (0, 0, 0)


def test_sqnr_of_fixed_point_on_uniform_data():
    """127 steps of uniform error: the signal's 1/3 over a twelfth of the step squared."""
    both = sqnr_of(get_format("E0M7"), named("uniform"))
    assert both["amax"]["sqnr_db"] == pytest.approx(10 * math.log10(4 * 127**2), abs=0.05)
    assert both["amax"]["overflow"] == 0


@pytest.mark.parametrize("name", ["E4M3", "E0M7", "E2M1"])
def test_the_best_scale_is_at_least_as_good_as_any_other(name):
    """No scale on a fine search beats it by more than the search's own step can."""
    x, fmt = sample("laplace"), get_format(name)
    best = sqnr_of(fmt, x)["best"]
    others = [measure(fmt, x, best["scale"] * f)["sqnr_db"] for f in (0.5, 0.8, 0.95, 1.05, 1.3, 2)]
    assert best["sqnr_db"] >= max(others) - 0.05
    assert best["sqnr_db"] >= sqnr_of(fmt, x)["amax"]["sqnr_db"]


@pytest.mark.parametrize("name", ["posit8_0", "posit8_1", "posit8_2"])
def test_the_best_scale_may_lie_far_from_that_of_amax(name):
    """Posits are densest at 1: the root mean square is brought there, not amax to the largest."""
    x, fmt = sample("normal"), get_format(name)
    both = sqnr_of(fmt, x)
    at_one = measure(fmt, x, float(x.square().mean().sqrt()))["sqnr_db"]
    assert both["best"]["sqnr_db"] >= at_one > both["amax"]["sqnr_db"] + 15


def test_a_format_that_needs_no_scale():
    """BF16's amax scale has no finite inverse a few binades on: that is not the best one."""
    both = sqnr_of(get_format("BF16"), sample("normal", 5000))
    assert both["best"]["sqnr_db"] >= both["amax"]["sqnr_db"] > 50


def test_what_is_lost_is_counted_by_hand():
    """Past the largest value overflows, under half the smallest underflows."""
    found = measure(get_format("E2M1"), torch.tensor([8.0, 1.0, 0.1, 0.0]), 1.0)
    assert found["overflow"] == 0.25
    assert found["underflow"] == 0.25


def test_a_block_format_has_its_own_scales():
    """SQNR by hand, no best scale, and the share that the OCP rule clips; rceil clips nothing."""
    x = sample("normal", 1 << 18).reshape(-1, 512)
    found = sqnr_of(get_format("MXFP4"), [x])
    assert found["best"] is None
    q = round_blocks(x, get_format("MXFP4")).values.double()
    noise = (q - x.double()).square().mean() / x.double().square().mean()
    assert found["amax"]["sqnr_db"] == pytest.approx(-10 * math.log10(noise))
    assert 0.005 < found["amax"]["overflow"] < 0.02
    assert sqnr_of(get_format("MXFP4-rceil"), x)["amax"]["overflow"] == 0
    assert sqnr_of(get_format("NVFP4"), x)["amax"]["sqnr_db"] > found["amax"]["sqnr_db"]


def test_the_tensor_s_own_scale_counts():
    """Two-level formats on tensors of any size, each with its own scale; all of one noise."""
    x = sample("laplace", 1 << 18).reshape(-1, 512)
    alone = sqnr_of(get_format("NVFP4"), x)["amax"]
    both = sqnr_of(get_format("NVFP4"), [x, x * 2.0**-30])["amax"]
    assert both["sqnr_db"] == pytest.approx(alone["sqnr_db"], abs=1e-6)
    assert both["underflow"] == pytest.approx(alone["underflow"])


def test_square_blocks_need_a_matrix(tmp_path):
    """A file's own shape is where blocks lie; a vector has no square ones."""
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 1024, dtype=np.float32))
    with pytest.raises(BadInput, match=r"NVFP4-square.*vector"):
        sqnr_of(get_format("NVFP4-square"), read_data(str(tmp_path / "x.npy")))
    np.save(tmp_path / "y.npy", np.linspace(-1, 1, 1024, dtype=np.float32).reshape(32, 32))
    assert sqnr_of(get_format("NVFP4-square"), read_data(str(tmp_path / "y.npy")))["amax"]


def test_blocks_lie_in_the_weights_of_a_run(start):
    """Of each weight along its rows, as the forward product has them."""
    run = start(format="E4M3").run_directory
    weights = read_data(run.name, str(run.parent))
    assert all(w.dim() >= 2 for w in weights)
    assert sqnr_of(get_format("MXFP8-E4M3"), weights)["amax"]["sqnr_db"] > 25


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("norml", "did you mean normal"),
        ("missing.npy", "cannot be read"),
    ],
)
def test_data_that_cannot_be(data, said):
    """The message names what was given."""
    with pytest.raises(BadInput, match=rf"--on {data}.*{said}"):
        read_data(data)


def test_a_file_with_nan_is_refused(tmp_path):
    """Noise over NaN would be no number."""
    np.save(tmp_path / "x.npy", np.array([1.0, np.nan]))
    with pytest.raises(BadInput, match="NaN"):
        read_data(str(tmp_path / "x.npy"))


@pytest.mark.parametrize("largest", [1e160, 1e-160, 5e-324])
def test_data_whose_squares_are_no_numbers_is_refused(tmp_path, largest):
    """By its file. What is just large has a figure."""
    file = str(tmp_path / "x.npy")
    np.save(file, np.array([largest, -largest / 2]))
    told = rf"--on {file}: its largest magnitude is .*, and one is needed "
    with pytest.raises(BadInput, match=told):
        read_data(file)
    np.save(file, np.array([1e30, -5e29]))
    for name in ("E4M3", "INT8", "MXFP4"):
        assert sqnr_of(get_format(name), read_data(file))["amax"]["sqnr_db"] > 10
