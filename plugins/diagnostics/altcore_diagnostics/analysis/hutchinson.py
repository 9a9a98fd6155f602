"""The trace of a matrix from products with random vectors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from altcore_diagnostics.analysis.hessian import Product

SAMPLES = 50


class Trace(NamedTuple):
    """An estimate, and its standard error."""

    trace: float
    error: float


def hutchinson(
    product: Product, size: int, generator: torch.Generator, samples: int = SAMPLES
) -> Trace:
    """Estimate the trace of a symmetric matrix of ``size`` rows (Hutchinson, 1990).

    The estimate is the mean of zᵀAz over Rademacher vectors z, whose entries are 1 or −1 with equal
    odds, drawn on the device of ``generator``. Its standard error is that over the samples; NaN of
    a single one. A diagonal matrix is found exactly.
    """
    values = []
    for _ in range(samples):
        signs = torch.randint(0, 2, (size,), generator=generator, device=generator.device)
        z = signs.float().mul_(2).sub_(1)
        values.append(float(z.double() @ product(z).double()))
    error = float(np.std(values, ddof=1)) / math.sqrt(samples) if samples > 1 else math.nan
    return Trace(float(np.mean(values)), error)
