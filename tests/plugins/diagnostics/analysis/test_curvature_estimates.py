"""Hessian products, trace and largest eigenvalue, against exact Hessians and PyHessian."""

import math

import numpy as np
import pyhessian
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from altcore_diagnostics.analysis.hessian import hessian_product
from altcore_diagnostics.analysis.hutchinson import hutchinson
from altcore_diagnostics.analysis.lambda_max import lambda_max


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def symmetric(size, seed):
    a = torch.randn(size, size, generator=generator(seed), dtype=torch.float64)
    return (a + a.T) / 2


def of(matrix):
    """The product with a matrix, in its own precision."""
    return lambda v: matrix @ v.to(matrix.dtype)


def network(*, norm=False):
    torch.manual_seed(0)
    made = nn.BatchNorm1d(6, track_running_stats=False) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 6), made, nn.Tanh(), nn.Linear(6, 3))


def batch(size=20):
    g = generator(1)
    return torch.randn(size, 4, generator=g), torch.randint(0, 3, (size,), generator=g)


def loss_of(model, dtype=torch.float32):
    """The loss as a function of all parameters in one vector, and that vector."""
    x, y = batch()
    named = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss_at(flat):
        parts = zip(named.items(), flat.split(sizes), strict=True)
        given = {name: part.view_as(p) for (name, p), part in parts}
        return functional.cross_entropy(functional_call(model, given, x.to(dtype)), y)

    return loss_at, torch.cat([p.reshape(-1) for p in named.values()]).requires_grad_()


@pytest.fixture(scope="module")
def small():
    """A model's loss, its parameters, and its exact Hessian of torch.func."""
    loss_at, flat = loss_of(network())
    return loss_at, flat, jacrev(jacrev(loss_at))(flat.detach())


def test_products_against_the_exact_hessian(small):
    """Each column, and so the whole matrix."""
    loss_at, flat, exact = small
    product = hessian_product(loss_at(flat), [flat])
    found = torch.stack([product(e) for e in torch.eye(len(flat))])
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-4)


def test_products_through_batch_norm():
    """Against differences of the gradient: in those of torch.func the norm's own weights are wrong.

    It is 0.15 off them (torch 2.13), where differences and products agree to eight digits.
    """
    loss_at, flat = loss_of(network(norm=True), torch.float64)
    product = hessian_product(loss_at(flat), [flat])
    (gradient,) = torch.autograd.grad(loss_at(flat), [flat])

    def moved(e):
        at = (flat + 1e-5 * e).detach().requires_grad_()
        return torch.autograd.grad(loss_at(at), [at])[0]

    assert torch.equal(moved(0.0), gradient)
    for e in torch.eye(len(flat), dtype=torch.float64):
        difference = (moved(e) - moved(-e)) / 2e-5
        torch.testing.assert_close(product(e), difference, atol=1e-7, rtol=1e-6)


def test_of_several_parameters():
    """In their order, each flattened; ``.grad`` stays as it is; what is not reached is zero."""
    a, b, c = (torch.randn(2, 3, generator=generator(s), requires_grad=True) for s in range(3))
    a.grad = torch.ones(2, 3)
    product = hessian_product((a**2 * b).sum(), [a, b, c])
    v = torch.randn(18, generator=generator(3))
    va, vb, _ = (part.view(2, 3) for part in v.split(6))
    expected = [2 * b * va + 2 * a * vb, 2 * a * va, torch.zeros(2, 3)]
    torch.testing.assert_close(product(v), torch.cat([e.detach().reshape(-1) for e in expected]))
    assert torch.equal(a.grad, torch.ones(2, 3))
    assert b.grad is None


def test_a_loss_without_curvature():
    a = torch.ones(3, requires_grad=True)
    product = hessian_product(a.sum(), [a])
    assert torch.equal(product(torch.ones(3)), torch.zeros(3))
    assert lambda_max(product, 3, generator()) == 0
    assert hutchinson(product, 3, generator()) == (0, 0)


def test_the_largest_eigenvalue_of_a_model(small):
    loss_at, flat, exact = small
    product = hessian_product(loss_at(flat), [flat])
    found = lambda_max(product, len(flat), generator(), tolerance=1e-4)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-3)


def test_the_trace_of_a_model(small):
    """Within four standard errors, as tell 1 case in 16,000."""
    loss_at, flat, exact = small
    found = hutchinson(hessian_product(loss_at(flat), [flat]), len(flat), generator())
    assert abs(found.trace - float(exact.trace())) < 4 * found.error
    assert found.error < 0.2 * found.trace


def test_against_another_library():
    model, (x, y) = network(), batch()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
        (largest,), _ = other.eigenvalues(maxIter=500, tol=1e-7)
        trace = np.mean(
            other.trace(maxIter=500, tol=-math.inf)
        )  # a negative mean ends it otherwise
    parameters = list(model.parameters())
    product = hessian_product(functional.cross_entropy(model(x), y), parameters)
    size = sum(p.numel() for p in parameters)
    largest_found = lambda_max(product, size, generator(), tolerance=1e-4)
    assert largest_found == pytest.approx(largest, rel=1e-3)
    found = hutchinson(product, size, generator(), samples=500)
    assert found.trace == pytest.approx(trace, abs=6 * found.error)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 99))
def test_the_largest_eigenvalue(size, seed):
    """The largest, where others have larger magnitudes as well."""
    matrix = symmetric(size, seed)
    values = torch.linalg.eigvalsh(matrix)
    found = lambda_max(of(matrix), size, generator(seed), tolerance=1e-6)
    assert found == pytest.approx(float(values[-1]), abs=1e-4 * float(values.abs().max()) + 1e-7)


def test_the_trace_of_a_known_quadratic():
    """½xᵀAx with eigenvalues from 1 to 50: within 10 % with the 50 samples of the default."""
    q, _ = torch.linalg.qr(torch.randn(50, 50, generator=generator(), dtype=torch.float64))
    matrix = (q @ torch.diag(torch.arange(1.0, 51.0).double()) @ q.T).float()
    x = torch.randn(50, generator=generator(1), requires_grad=True)
    product = hessian_product(0.5 * x @ matrix @ x, [x])
    found = hutchinson(product, 50, generator(2))
    assert found.trace == pytest.approx(1275, rel=0.1)
    assert abs(found.trace - 1275) < 4 * found.error
    assert lambda_max(product, 50, generator(3)) == pytest.approx(50, rel=1e-2)


@settings(max_examples=20)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20), st.integers(2, 5))
def test_a_diagonal_is_found_exactly(diagonal, samples):
    d = torch.tensor(diagonal)
    found = hutchinson(lambda v: d * v, len(d), generator(), samples)
    assert found.trace == pytest.approx(float(d.double().sum()), abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_the_standard_error_is_that_of_the_estimates():
    """Over many estimates of one matrix their spread is the error that each of them gives."""
    matrix = symmetric(20, 0)
    found = [hutchinson(of(matrix), 20, generator(seed), 30) for seed in range(200)]
    spread = np.std([f.trace for f in found], ddof=1)
    assert spread == pytest.approx(np.mean([f.error for f in found]), rel=0.2)


def test_the_error_of_two_samples():
    """Of 2 and −2: a deviation of √8 over √2; of two that are the same, 0."""
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = {hutchinson(of(swap), 2, generator(seed), samples=2) for seed in range(10)}
    assert {(round(trace, 6), round(error, 6)) for trace, error in found} == {
        (0, 2),
        (2, 0),
        (-2, 0),
    }


def test_one_sample_has_no_error():
    assert math.isnan(hutchinson(of(symmetric(3, 0)), 3, generator(), samples=1).error)


def test_what_is_not_finite_shows():
    """Neither raises, nor waits for ever."""
    assert math.isnan(lambda_max(lambda v: v * math.nan, 5, generator()))
    assert math.isnan(hutchinson(lambda v: v * math.nan, 5, generator()).trace)


def test_no_convergence_is_no_number():
    """A spectrum without a gap, to more digits than it can have."""
    d = torch.linspace(0, 1, 20_000, dtype=torch.float64)
    assert math.isnan(lambda_max(lambda v: d * v, len(d), generator(), tolerance=1e-15))


def test_the_random_states_of_others_stay():
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    lambda_max(of(symmetric(30, 0)), 30, generator())
    hutchinson(of(symmetric(3, 0)), 3, generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()


def test_the_same_generator_gives_the_same():
    matrix = symmetric(30, 0)
    found = [
        (lambda_max(of(matrix), 30, g), hutchinson(of(matrix), 30, g))
        for g in map(generator, (7, 7))
    ]
    assert found[0] == found[1]
