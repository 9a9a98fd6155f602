"""The largest eigenvalue of a matrix from products with vectors."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from altcore_diagnostics.analysis.hessian import Product

TOLERANCE = 1e-3
RESTARTS = 10
"""Of the method, each with up to twenty products."""


def lambda_max(
    product: Product, size: int, generator: torch.Generator, tolerance: float = TOLERANCE
) -> float:
    """Return the largest eigenvalue of a symmetric matrix of ``size`` rows; not of its magnitudes.

    By the implicitly restarted Lanczos method, scipy's ``eigsh``, from a random vector, to the
    relative ``tolerance``. NaN if a product is not finite, or it does not converge.
    """
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    def on_device(v: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(v.reshape(-1)).to(generator.device, torch.float32)

    def multiply(v: NDArray[np.float64]) -> NDArray[np.float64]:
        found = product(on_device(v)).double().cpu().numpy()
        if not np.isfinite(found).all():
            raise FloatingPointError("a product is not finite")
        return found

    start = torch.randn(size, generator=generator, device=generator.device)
    try:
        if size == 1:
            return float(multiply(np.ones(1))[0])
        first = multiply(start.double().cpu().numpy())
        if not first.any():
            return 0.0  # the method needs a vector to go on with
        operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
        (found,) = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start.double().cpu().numpy(),
            tol=tolerance,
            maxiter=RESTARTS,
            return_eigenvectors=False,
        )
    except (ArpackError, FloatingPointError):
        return math.nan
    return float(found)
