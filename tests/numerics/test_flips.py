"""Following flips: the compiled kernel, the torch path and a reference of plain Python."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from altcore.numerics import follow_flips, kernels
from altcore.numerics.kernels import build

VALUES = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 2.0, math.nan, math.inf])


def reference(walk, window):
    """Yield for each step of the walk (flips, those that go back), element by element."""
    earlier, at = [math.nan] * len(walk[0]), [0] * len(walk[0])
    for step, (before, after) in enumerate(pairwise(walk), 1):
        found = [0, 0]
        for i, (b, a) in enumerate(zip(before, after, strict=True)):
            if a != b:
                found[0] += 1
                found[1] += a == earlier[i] and at[i] >= step - window
                earlier[i], at[i] = b, step
        yield found, list(earlier), list(at)


def kept(values, dtype=torch.float32):
    return torch.full((len(values),), torch.nan, dtype=dtype), torch.zeros(
        len(values), dtype=torch.int32
    )


@given(
    walk=st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=2, max_size=9),
    window=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    kernels=st.booleans(),
)
def test_it_is_the_reference(walk, window, dtype, kernels):
    with pytest.MonkeyPatch.context() as patch:
        if not kernels:
            patch.setenv(build.SWITCH, "off")
        past = kept(walk[0], dtype)
        tensors = [torch.tensor(w, dtype=dtype) for w in walk]
        for step, (found, earlier, at) in enumerate(reference(walk, window), 1):
            before, after = tensors[step - 1 : step + 1]
            own = follow_flips(before, after, *past, step, since=step - window)
            assert own.tolist() == found
            assert past[1].tolist() == at
            torch.testing.assert_close(
                past[0], torch.tensor(earlier, dtype=dtype), rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 70_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_the_torch_path(monkeypatch, size, dtype):
    """At sizes that are no multiple of its blocks, and that several threads share."""
    if build.library() is None:
        pytest.skip("no C compiler")
    draw = torch.Generator().manual_seed(0)
    walk = [torch.randint(0, 3, (size,), generator=draw).to(dtype) for _ in range(5)]
    results, calls = {}, []
    own = kernels.can_follow
    monkeypatch.setattr(kernels, "can_follow", lambda *a: calls.append(own(*a)) or calls[-1])
    for switch in ("on", "off"):
        monkeypatch.setenv(build.SWITCH, switch)
        past = kept(walk[0], dtype)
        counts = [
            follow_flips(*walk[s - 1 : s + 1], *past, s, since=s - 2).tolist() for s in range(1, 5)
        ]
        results[switch] = counts, past[0].nan_to_num(-1).tolist(), past[1].tolist()
    assert results["on"] == results["off"]
    assert calls == [True] * 4 + [False] * 4


@pytest.mark.parametrize("other", [1.0, 2.0])
def test_on_another_grid_nothing_flips(other):
    before, after, past = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]), kept([0, 0])
    scales = torch.tensor(1.0), torch.tensor(other)
    found = follow_flips(before, after, *past, 3, since=0, scales=scales)
    assert found.tolist() == ([1, 0] if other == 1.0 else [0, 0])
    assert past[1].tolist() == ([3, 0] if other == 1.0 else [0, 0])


def test_a_transposed_weight():
    """What is not contiguous takes the torch path, with the same result."""
    before, after = torch.zeros(2, 3), torch.eye(3, 2).t()
    past = torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.int32)
    assert follow_flips(before, after, *past, 1, since=0).tolist() == [2, 0]
