"""Express torch's products by the canonical one.

A module's own forward may multiply by its weights with any function of torch: ``x @ w``,
``torch.einsum``, ``torch.bmm``. `CONTRACTIONS` maps each such function, as a
``TorchFunctionMode`` receives it, to a handler that calls ``multiply`` (see
`altcore.quantization.contraction`) instead.

Call a handler as ``handler(multiply, is_weight, *args, **kwargs)``, with the arguments of the
intercepted call. If it returns NotImplemented, run the function as it is: not exactly one operand
is a weight, or torch refuses the call, or the call names a result's tensor (``out``) or dtype.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from altcore.quantization.contraction import Contraction, IsWeight, Multiply, contract, label_sizes

# ------------------------------------------- calls of one contraction, by torch's signatures


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Contraction:
    rows = _numbered("row", input.dim() - 1)
    columns = ["n"] if weight.dim() == 2 else []  # torch takes a vector too
    return Contraction(
        input, weight, ([*rows, "k"], [*columns, "k"], [*rows, *columns]), added=bias
    )


def _mm(input: Tensor, mat2: Tensor) -> Contraction:
    return Contraction(input, mat2, ("mk", "kn", "mn"))


def _bmm(input: Tensor, mat2: Tensor) -> Contraction:
    return Contraction(input, mat2, ("bmk", "bkn", "bmn"))


def _mv(input: Tensor, vec: Tensor) -> Contraction:
    return Contraction(input, vec, ("mk", "k", "m"))


def _dot(input: Tensor, tensor: Tensor) -> Contraction:
    return Contraction(input, tensor, ("k", "k", ""))


def _inner(input: Tensor, other: Tensor) -> Contraction:
    rows, columns = _numbered("row", input.dim() - 1), _numbered("column", other.dim() - 1)
    return Contraction(input, other, ([*rows, "k"], [*columns, "k"], [*rows, *columns]))


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Contraction:
    return Contraction(mat1, mat2, ("mk", "kn", "mn"), False, input, beta, alpha)


def _addmv(
    input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1
) -> Contraction:
    return Contraction(mat, vec, ("mk", "k", "m"), False, input, beta, alpha)


def _baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Contraction:
    return Contraction(batch1, batch2, ("bmk", "bkn", "bmn"), False, input, beta, alpha)


def _addbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Contraction:
    return Contraction(batch1, batch2, ("bmk", "bkn", "mn"), False, input, beta, alpha)


def _matmul(input: Tensor, other: Tensor) -> Contraction | None:
    rows = ["m"] if input.dim() > 1 else []
    columns = ["n"] if other.dim() > 1 else []
    if 0 in (input.dim(), other.dim()) or input.shape[-1] != other.shape[-1 - len(columns)]:
        return None
    of_a, of_b = _batch(input.dim() - 2), _batch(other.dim() - 2)
    longest = max(of_a, of_b, key=len)
    labels = [*of_a, *rows, "k"], [*of_b, "k", *columns], [*longest, *rows, *columns]
    return Contraction(input, other, labels, broadcast=True)


def _rmatmul(self: Tensor, other: Tensor) -> Contraction | None:
    return _matmul(other, self)


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Contraction | None:
    if isinstance(dims, Tensor):
        dims = dims.tolist() if dims.numel() > 1 else int(dims.item())
    if isinstance(dims, int):
        dims = range(a.dim() - dims, a.dim()), range(dims)
    of_a, of_b = _numbered("a", a.dim()), _numbered("b", b.dim())
    if len(dims) != 2 or len(dims[0]) != len(dims[1]):
        return None
    for i, j in zip(*dims, strict=True):
        if not (-a.dim() <= i < a.dim() and -b.dim() <= j < b.dim()):
            return None
        of_b[j] = of_a[i]
    if len(set(of_b)) < len(of_b):  # a dimension twice
        return None
    out = [*(name for name in of_a if name not in of_b), *(n for n in of_b if n not in of_a)]
    return Contraction(a, b, (of_a, of_b, out), broadcast=True)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}{i}" for i in range(count)]


def _batch(count: int) -> list[str]:
    """Label broadcast dimensions by their distance from the right."""
    return [f"...{i}" for i in reversed(range(count))]


# -------------------------------------------------------------------- calls of several products


def _bilinear(
    multiply: Multiply,
    is_weight: IsWeight,
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Any:
    """Multiply the outer product of the two inputs by the weight: (N, K1, K2) as (N, K1 * K2)."""
    if not is_weight(weight) or is_weight(input1) or is_weight(input2):
        return NotImplemented
    if weight.shape[1:] != (*input1.shape[-1:], *input2.shape[-1:]):
        return NotImplemented
    outer = (input1.unsqueeze(-1) * input2.unsqueeze(-2)).flatten(-2)
    with torch.autocast(outer.device.type, enabled=False):  # which leaves this function alone
        return multiply(outer, weight.flatten(1), bias, weight)


def _grouped_mm(
    multiply: Multiply,
    is_weight: IsWeight,
    mat_a: Tensor,
    mat_b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """Make one product for each group of rows that is not empty.

    Rows after the last group are zero; torch leaves them undefined.
    """
    if bias is not None or out_dtype not in (None, mat_a.dtype):
        return NotImplemented
    if offs is None:
        return contract(multiply, is_weight, _bmm(mat_a, mat_b))
    match mat_a.dim(), mat_b.dim():
        case 2, 3:
            return _by_group(multiply, is_weight, mat_a, mat_b, mat_b.mT, offs)
        case 3, 2:
            y = _by_group(multiply, is_weight, mat_b.mT, mat_a, mat_a, offs)
            return y if y is NotImplemented else y.mT.contiguous()
    return NotImplemented


def _by_group(
    multiply: Multiply, is_weight: IsWeight, x: Tensor, weight: Tensor, w: Tensor, offs: Tensor
) -> Any:
    """Multiply the rows of each group, of ``x`` (M, K), by its matrix of ``w`` (groups, N, K)."""
    if not is_weight(weight) or x.shape[1] != w.shape[2] or len(offs) != len(w):
        return NotImplemented
    bounds = [*pairwise([0, *offs.tolist()])]
    # One unbind, not a slice each: the gradient of a slice is as large as the whole.
    pieces = [
        multiply(x[start:end], matrix, None, weight)
        for (start, end), matrix in zip(bounds, w.unbind(), strict=True)
        if start < end
    ]
    if not pieces:
        return NotImplemented
    rest = pieces[0].new_zeros(len(x) - bounds[-1][1], w.shape[1])
    return torch.cat([*pieces, rest])


def _einsum(multiply: Multiply, is_weight: IsWeight, equation: str, *operands: Any) -> Any:
    """Contract the operands from left to right."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    parsed = _terms(equation, operands)
    if parsed is None:
        return NotImplemented
    terms, out = parsed
    if label_sizes([*zip(operands, terms, strict=True)], broadcast=True) is None:
        return NotImplemented
    result, labels, found = operands[0], terms[0], False
    for i, (operand, term) in enumerate(zip(operands[1:], terms[1:], strict=True), start=2):
        needed = {*out, *chain(*terms[i:])}
        kept = [name for name in dict.fromkeys((*labels, *term)) if name in needed]
        call = Contraction(
            result, operand, (labels, term, kept if terms[i:] else out), broadcast=True
        )
        made = contract(multiply, is_weight, call)
        found |= made is not NotImplemented
        result, labels = _plain(call) if made is NotImplemented else made, kept
    return result if found else NotImplemented


def _plain(call: Contraction) -> Tensor:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(chain(*call.labels)))}
    of_a, of_b, out = ([numbers[name] for name in labels] for labels in call.labels)
    return torch.einsum(call.a, of_a, call.b, of_b, out)


def _terms(equation: str, operands: Sequence[Tensor]) -> tuple[list[list[str]], list[str]] | None:
    """Return the labels of each operand and of the result; None if torch would refuse them."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms, dots = [], 0
    for term, t in zip(left.split(","), operands, strict=False):
        count = t.dim() - len(term.replace("...", ""))
        if count < 0 or (count and "..." not in term):
            return None
        dots = max(dots, count)
        terms.append(_expanded(term, count))
    if len(terms) != len(operands) or len(terms) != left.count(",") + 1:
        return None
    letters = left.replace(",", "").replace("...", "")
    if not arrow:
        right = "..." + "".join(sorted(c for c in letters if letters.count(c) == 1))
    out = _expanded(right, dots)
    valid = len(set(out)) == len(out) and set(right.replace("...", "")) <= set(letters)
    return (terms, out) if valid and all(c.isalpha() for c in letters) else None


def _expanded(term: str, count: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(_batch(count) if dots else []), *after]


# ------------------------------------------------------------------------------- the table


def _one(describe: Callable[..., Contraction | None]) -> Callable[..., Any]:
    """Turn a description of a call into a handler."""

    def handle(multiply: Multiply, is_weight: IsWeight, *args: Any, **kwargs: Any) -> Any:
        call = describe(*args, **kwargs)
        return NotImplemented if call is None else contract(multiply, is_weight, call)

    return _checked(handle, inspect.signature(describe))


def _several(handle: Callable[..., Any]) -> Callable[..., Any]:
    return _checked(handle, inspect.signature(functools.partial(handle, None, None)))


def _checked(handle: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """Leave calls to torch that ``signature`` does not cover."""

    def checked(multiply: Multiply, is_weight: IsWeight, *args: Any, **kwargs: Any) -> Any:
        if "out" in kwargs and kwargs["out"] is None:
            del kwargs["out"]
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            return NotImplemented
        return handle(multiply, is_weight, *args, **kwargs)

    return checked


def _table() -> dict[Callable[..., Any], Callable[..., Any]]:
    # nn.functional.bilinear is torch.bilinear, nn.functional.linear a builtin of its own.
    table = {
        torch.nn.functional.linear: _one(_linear),
        torch.linalg.matmul: _one(_matmul),
        torch.Tensor.__rmatmul__: _one(_rmatmul),
        torch.tensordot: _one(_tensordot),
        torch.bilinear: _several(_bilinear),
        torch.einsum: _several(_einsum),
    }
    both: dict[str, Callable[..., Contraction | None]] = {
        "matmul": _matmul,  # what `x @ w` calls
        "mm": _mm,
        "bmm": _bmm,
        "mv": _mv,
        "dot": _dot,
        "inner": _inner,
        "addmm": _addmm,
        "addmv": _addmv,
        "addbmm": _addbmm,
        "baddbmm": _baddbmm,
    }
    for name, describe in both.items():
        table[getattr(torch, name)] = table[getattr(torch.Tensor, name)] = _one(describe)
    # nn.functional.grouped_mm calls this one, whose name is private.
    if grouped := getattr(torch, "_grouped_mm", None):
        table[grouped] = _several(_grouped_mm)
    return table


CONTRACTIONS: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(_table())
