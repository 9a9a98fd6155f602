"""Whether a tensor's elements are finite, in any layout and type that torch can hold them in."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(x: Tensor) -> bool:
    """Whether all elements are finite; a host read."""
    return bool(torch.isfinite(_elements(x)).all())


def first_nonfinite(x: Tensor) -> float | None:
    """Return the first element, or part of a complex one, that is not finite; None if all are."""
    x = _elements(x)
    x = torch.view_as_real(x) if x.is_complex() else x
    bad = x[~torch.isfinite(x)]
    return float(bad[0]) if bad.numel() else None


def has_nan(x: Tensor) -> bool:
    """Whether an element is NaN; a host read."""
    return bool(_elements(x).isnan().any())


def _elements(x: Tensor) -> Tensor:
    """Return what is stored, in a type that torch can compare: not one of 8 bits."""
    if x.is_nested:
        x = torch.cat([part.reshape(-1) for part in x.unbind()])
    elif x.layout == torch.sparse_coo:
        x = x.coalesce().values()
    elif x.layout != torch.strided:
        x = x.to_dense()
    return x.float() if x.is_floating_point() and x.element_size() == 1 else x
