"""The canonical product, and any contraction of two tensors as a call of it.

    multiply(x, w, bias, weight) -> Tensor

- ``x``: the operand that is not a weight, (..., K), or (B, M, K) if ``w`` is batched;
- ``w``: the weight as the right operand, (N, K) or (B, N, K);
- ``bias``: (N), or None;
- ``weight``: the tensor that ``w`` was made from, as the model passed it to torch.

``multiply`` returns ``x @ w.mT + bias``: (..., N) or (B, M, N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Multiply = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
IsWeight = Callable[[Tensor], bool]
Labels = Sequence[str]
"""A name for each dimension of a tensor; as in einsum, equal names are equal dimensions."""


@dataclass(frozen=True)
class Contraction:
    """A product of two operands: ``alpha * product + beta * added``."""

    a: Tensor
    b: Tensor
    labels: tuple[Labels, Labels, Labels]
    """The dimensions of ``a``, of ``b`` and of the product, which sums over those it lacks."""
    broadcast: bool = False
    """Whether a dimension of size 1 takes the other operand's size."""
    added: Tensor | None = None
    beta: float = 1
    alpha: float = 1


def contract(multiply: Multiply, is_weight: IsWeight, call: Contraction) -> Any:
    """Make a product by the canonical one.

    Returns:
        A contiguous tensor. NotImplemented unless exactly one operand is a weight, the sizes
        agree, and the operands share a dimension that is summed over.
    """
    (x, w), (of_x, of_w, out) = (call.a, call.b), call.labels
    sizes = label_sizes(((x, of_x), (w, of_w)), call.broadcast)
    if is_weight(x) == is_weight(w) or sizes is None:
        return NotImplemented
    if is_weight(x):
        x, w, of_x, of_w = w, x, of_w, of_x
    weight = w
    x, of_x = _narrowed(x, of_x, sizes)
    w, of_w = _narrowed(w, of_w, sizes)
    x, of_x = _summed(x, of_x, {*of_w, *out})
    w, of_w = _summed(w, of_w, {*of_x, *out})
    inner = [name for name in of_w if name in of_x and name not in out]
    batch = [name for name in of_w if name in of_x and name in out]
    rows = [name for name in of_x if name not in of_w]
    columns = [name for name in of_w if name not in of_x]
    if not inner:
        return NotImplemented
    b, m, n, k = (math.prod(sizes[name] for name in g) for g in (batch, rows, columns, inner))
    lead = [b, m] if batch else [sizes[name] for name in rows]
    x = _arranged(x, of_x, batch + rows + inner, [*lead, k])
    w = _arranged(w, of_w, batch + columns + inner, [b, n, k] if batch else [n, k])
    bias = call.added if not batch and columns == [*out][-1:] and _is_bias(call, n) else None
    y = multiply(x, w, bias, weight)
    made = batch + rows + columns
    y = y.reshape([sizes[name] for name in made])
    y = y.permute([made.index(name) for name in out]).contiguous()
    return y if bias is not None else _added(y, call)


def label_sizes(
    operands: Sequence[tuple[Tensor, Labels]], broadcast: bool
) -> dict[str, int] | None:
    """Return the size of each label, or None if sizes or numbers of dimensions disagree."""
    sizes: dict[str, int] = {}
    for t, labels in operands:
        own = dict(zip(labels, t.shape, strict=False))
        if len(labels) != t.dim() or any(own[n] != t.shape[i] for i, n in enumerate(labels)):
            return None
        for name, size in own.items():
            known = sizes.setdefault(name, size)
            if known != size and not (broadcast and 1 in (known, size)):
                return None
            sizes[name] = size if known == 1 else known
    return sizes


def _narrowed(t: Tensor, labels: Labels, sizes: Mapping[str, int]) -> tuple[Tensor, list[str]]:
    """Take the diagonal of repeated labels, and drop the dimensions that broadcast."""
    labels = list(labels)
    while repeated := next((name for name in labels if labels.count(name) > 1), None):
        first = labels.index(repeated)
        second = labels.index(repeated, first + 1)
        t = t.diagonal(dim1=first, dim2=second)
        labels = [n for i, n in enumerate(labels) if i not in (first, second)] + [repeated]
    kept = [i for i, name in enumerate(labels) if t.shape[i] == sizes[name]]
    if len(kept) < len(labels):
        t = t.reshape([t.shape[i] for i in kept])
    return t, [labels[i] for i in kept]


def _summed(t: Tensor, labels: list[str], needed: set[str]) -> tuple[Tensor, list[str]]:
    """Sum over the dimensions that neither the other operand nor the product has."""
    alone = [i for i, name in enumerate(labels) if name not in needed]
    return (t.sum(alone) if alone else t), [name for name in labels if name in needed]


def _arranged(t: Tensor, labels: list[str], order: list[str], shape: list[int]) -> Tensor:
    """Bring the dimensions in order; ``t`` itself if they are."""
    if labels != order:
        t = t.permute([labels.index(name) for name in order])
    return t if [*t.shape] == shape else t.reshape(shape)


def _is_bias(call: Contraction, n: int) -> bool:
    added = call.added
    return added is not None and [*added.shape] == [n] and call.beta == call.alpha == 1


def _added(product: Tensor, call: Contraction) -> Tensor:
    if call.alpha != 1:
        product = product * call.alpha
    if call.added is None or call.beta == 0:  # torch ignores even NaN then
        return product
    added = call.added.expand_as(product).to(product.dtype)
    return product + (added if call.beta == 1 else added * call.beta)
