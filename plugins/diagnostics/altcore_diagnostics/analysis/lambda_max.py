"""The largest eigenvalue of a matrix from products with vectors."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from altcore_diagnostics.analysis.hessian import Product

TOLERANCE = 1e-2
VECTORS = 20
"""That the method keeps, as large as the matrix's rows: it takes as many products at first."""
RESTARTS = 10
"""Of the method, each with less than as many products."""


def lambda_max(
    product: Product, size: int, generator: torch.Generator, tolerance: float = TOLERANCE
) -> float:
    """Return the largest eigenvalue of a symmetric matrix of ``size`` rows; not of its magnitudes.

    By the implicitly restarted Lanczos method in float32, scipy's ``eigsh``, from a random vector
    to the relative ``tolerance``. NaN if a product is not finite, or it does not converge.
    """
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    def multiply(v: NDArray[np.float32]) -> NDArray[np.float32]:
        found = product(torch.from_numpy(v.reshape(-1)).to(generator.device))
        found = found.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise FloatingPointError("a product is not finite")
        return found

    start = torch.randn(size, generator=generator, device=generator.device).cpu().numpy()
    try:
        if size == 1:
            return float(multiply(np.ones(1, np.float32))[0])
        if not multiply(start).any():
            return 0.0  # the method needs a vector to go on with
        (found,) = eigsh(
            LinearOperator((size, size), matvec=multiply, dtype=np.float32),
            k=1,
            which="LA",
            v0=start,
            ncv=min(size, VECTORS),
            tol=tolerance,
            maxiter=RESTARTS,
            return_eigenvectors=False,
        )
    except (ArpackError, FloatingPointError):
        return math.nan
    return float(found)
