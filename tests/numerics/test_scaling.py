"""Scales: exact quotients, and powers of two."""

import math
from fractions import Fraction

import pytest
import torch
from grid_formats import BF16, E0M7, E3M4, E4M3, E5M2, E7M0, NF, WIDE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from altcore.errors import BadInput
from altcore.numerics import amax, compute_dtype, fake_round, functional, scale_of
from altcore.numerics.resolve import scale_pair


def fl(value, bits, least):
    """A Fraction rounded to nearest even with so many bits, in steps of 2**least at least."""
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if Fraction(2) ** exponent > value:
        exponent -= 1
    unit = Fraction(2) ** max(exponent + 1 - bits, least)
    return round(value / unit) * unit


single = st.floats(min_value=2.0**-147, max_value=2.0**125, width=32)
margins = st.just(1.0) | st.floats(0.5, 4, width=32)


@settings(max_examples=200)
@given(single, margins, st.sampled_from([E4M3, E0M7, E7M0, E5M2, NF, E3M4]))
def test_scale_is_the_exact_quotient_rounded_once(number, margin, fmt):
    """Exactly s = fl(m / max) and r = fl(max / m), m = fl(amax · margin): alone and among many."""
    a = torch.tensor(number, dtype=torch.float32)
    m = fl(Fraction(number) * Fraction(margin), 24, -149)
    top = Fraction(torch.tensor(fmt.max, dtype=torch.float32).item())
    wanted = (fl(m / top, 24, -149), fl(top / m, 24, -149))
    for given_amax in (a, a.view(1)):
        s, r = (Fraction(v.item()) for v in scale_of(given_amax, fmt, margin=margin))
        if wanted[1] > torch.finfo(torch.float32).max:
            assert r == Fraction(torch.finfo(torch.float32).max)
            assert s == Fraction(2) ** -128
        else:
            assert (s, r) == wanted


@settings(max_examples=200)
@given(single, margins, st.sampled_from([E4M3, E0M7, E7M0, NF]))
def test_power_of_two_scale_is_the_smallest(number, margin, fmt):
    """The smallest power of two with max · s >= amax; its inverse is exact."""
    a = torch.tensor(number, dtype=torch.float32)
    m = fl(Fraction(number) * Fraction(margin), 24, -149)
    top = Fraction(torch.tensor(fmt.max, dtype=torch.float32).item())
    for given_amax in (a, a.view(1)):
        s, r = (
            Fraction(v.item()) for v in scale_of(given_amax, fmt, power_of_two=True, margin=margin)
        )
        assert s * r == 1
        assert s.numerator == 1 or s.denominator == 1
        if Fraction(2) ** -126 < s < Fraction(2) ** 126:
            assert top * s >= m > top * s / 2


def test_scales_of_odd_tensors():
    """Zero gives 1; NaN and infinity make everything NaN; nothing overflows on the way."""
    for value in (torch.tensor(0.0), torch.zeros(2)):
        for power_of_two in (False, True):
            s, r = scale_of(value, E4M3, power_of_two=power_of_two)
            assert (s == 1).all()
            assert (r == 1).all()
    for bad in (math.nan, math.inf):
        x = torch.tensor([1.0, bad])
        for power_of_two in (False, True):
            for each in scale_of(amax(x), E4M3, power_of_two=power_of_two):
                assert torch.isnan(each)
    for tiny in (1e-45, 1e-41, 1e-38):
        x = torch.tensor([tiny, -tiny / 2])
        s, r = scale_of(amax(x), E4M3)
        y = fake_round(x, E4M3, r=r, s=s)
        assert (y - x).abs().max() <= max(tiny / 16, 2.0**-128)
    huge = torch.tensor([3.4e38])
    s, r = scale_of(amax(huge), E0M7)
    assert torch.isfinite(fake_round(huge, E0M7, r=r, s=s)).all()
    with pytest.raises(BadInput, match="margin"):
        scale_of(torch.tensor(1.0), E4M3, margin=0.0)


def test_formats_beyond_float32():
    """They compute in float64, and float32 scales keep 24 bits so that q · s stays exact."""
    assert compute_dtype(torch.float32, WIDE) == torch.float64
    assert compute_dtype(torch.float32, BF16) == torch.float32
    assert compute_dtype(torch.float64, E4M3) == torch.float64
    s, r = scale_of(torch.tensor(0.3), WIDE)
    assert s.dtype == r.dtype == torch.float64
    mantissa, _ = math.frexp(s.item())
    assert (mantissa * 2**24).is_integer()
    x = torch.tensor([0.3, -0.2, 1e-30])
    y = fake_round(x, WIDE, r=r, s=s)
    assert y.dtype == torch.float32
    assert ((y - x).abs() <= x.abs() / 2).all()


def test_scales_take_few_operations():
    """Each is a launch on a GPU, where a small tensor's rounding is one, too."""

    class Operations(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += 1
            return func(*args, **kwargs or {})

    a = torch.tensor(3.0)
    for power_of_two, most in ((False, 15), (True, 26)):
        with Operations() as seen:
            scale_of(a, E4M3, power_of_two=power_of_two)
        assert seen.number <= most


def test_a_number_as_scale_is_only_filled_in_elsewhere():
    """The meta device stands for a GPU: nothing is computed there, or copied to it."""
    made = []

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **kwargs or {})
            if isinstance(found, torch.Tensor) and found.is_meta:
                made.append((func, args[1]))
            return found

    x = torch.empty(2, 3, device="meta")
    with Calls():
        s, r = scale_pair(0.3, x, E4M3)
    one = torch.ones(1)
    wanted = [t.item() for t in scale_pair(torch.tensor(0.3), one, E4M3)]
    assert made == [(torch.full, v) for v in wanted]
    assert s.is_meta
    assert r.is_meta


def test_autograd_is_asked_only_by_what_has_a_gradient():
    """Its function would take longer than rounding a small tensor on a GPU."""
    x = torch.empty(2, 3, device="meta")
    assert not functional._is_differentiated(x)
    assert functional._is_differentiated(x.requires_grad_())
