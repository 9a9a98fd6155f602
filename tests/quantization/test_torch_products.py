"""Every product of torch is the canonical one, and the mode sees what functions call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from altcore.quantization.torch_functions import unguarded
from altcore.quantization.torch_products import CONTRACTIONS

has_grouped = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped_mm")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Products(TorchFunctionMode):
    """Makes the products by weights with `multiply`, and records them."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.weights = weights
        self.calls: list[tuple[Tensor, Tensor, Tensor | None, Tensor]] = []
        self.seen: list[Any] = []

    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
        assert any(weight is t for t in self.weights)
        if w.dim() == 3:
            assert x.dim() == 3
            assert x.shape[::2] == w.shape[::2]
            assert bias is None
        else:
            assert w.dim() == 2
            assert x.shape[-1] == w.shape[-1]
            assert bias is None or bias.shape == (len(w),)
        self.calls.append((x, w, bias, weight))
        y = x @ w.mT
        return y if bias is None else y + bias

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        if func in CONTRACTIONS:
            y = CONTRACTIONS[func](self.multiply, self.is_weight, *args, **(kwargs or {}))
            if y is not NotImplemented:
                return y
        if func is F.multi_head_attention_forward:
            with self:
                return unguarded(func)(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def is_weight(self, t: Tensor) -> bool:
        return any(t is w for w in self.weights)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def check(
    run: Callable[..., Tensor], *operands: Tensor, weight: int, products: int = 1
) -> Products:
    """Hold value, strides' contiguity and every gradient against torch's own."""
    expected = run(*operands)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, operands, direction)
    mode = Products(operands[weight])
    with mode:
        y = run(*operands)
    assert len(mode.calls) == products
    assert y.shape == expected.shape
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, operands, direction), gradients)
    return mode


def torch_refuses(run: Callable[..., Any], *operands: Tensor) -> None:
    """Hold that the message is torch's own."""
    with pytest.raises((RuntimeError, IndexError, TypeError)) as plain:
        run(*operands)
    with pytest.raises(type(plain.value)) as ours, Products(operands[-1]):
        run(*operands)
    assert str(ours.value) == str(plain.value)


LEFT_OR_RIGHT = pytest.mark.parametrize("weight", [0, 1], ids=["left", "right"])


@LEFT_OR_RIGHT
@pytest.mark.parametrize(
    "run",
    [
        torch.matmul,
        torch.linalg.matmul,
        torch.mm,
        Tensor.matmul,
        Tensor.mm,
        lambda a, b: a @ b,
        lambda a, b: b.__rmatmul__(a),
        lambda a, b: torch.matmul(input=a, other=b),
        lambda a, b: torch.matmul(a, b, out=None),
        lambda a, b: a.mm(mat2=b),
        lambda a, b: torch.tensordot(a, b, 1),
        lambda a, b: torch.tensordot(a, b, dims=([-1], [0])),
        lambda a, b: torch.tensordot(a, b, dims=torch.tensor([[1], [0]])),
        lambda a, b: torch.tensordot(a, b, dims=torch.tensor(1)),
        lambda a, b: torch.einsum("ij, jk -> ik", a, b),
        lambda a, b: torch.einsum("ij,jk", [a, b]),
        lambda a, b: torch.einsum(a, [0, 1], b, [1, 2], [0, 2]),
    ],
)
def test_matrix_by_matrix(run: Callable[..., Tensor], weight: int) -> None:
    check(run, leaf(3, 4), leaf(4, 5), weight=weight)


@LEFT_OR_RIGHT
@pytest.mark.parametrize(
    ("run", "shapes"),
    [
        (torch.mv, [(3, 4), (4,)]),
        (Tensor.mv, [(3, 4), (4,)]),
        (torch.dot, [(4,), (4,)]),
        (Tensor.dot, [(4,), (4,)]),
        (torch.inner, [(3, 4), (5, 4)]),
        (Tensor.inner, [(2, 3, 4), (4,)]),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
        (Tensor.bmm, [(2, 3, 4), (2, 4, 1)]),
        (torch.tensordot, [(3, 4, 5), (4, 5, 6)]),
        (lambda a, b: torch.tensordot(a, b, ([1, 0], [-1, 1])), [(3, 4, 5), (2, 3, 4)]),
        (lambda a, b: torch.tensordot(a, b, 2), [(3, 4, 1), (4, 5, 6)]),  # 1 broadcasts
        (F.linear, [(2, 3, 4), (5, 4)]),
        (F.linear, [(4,), (5, 4)]),
        (F.linear, [(3, 4), (4,)]),
    ],
)
def test_vectors_batches_and_more(
    run: Callable[..., Tensor], shapes: list[tuple[int, ...]], weight: int
) -> None:
    check(run, *(leaf(*shape) for shape in shapes), weight=weight)


@LEFT_OR_RIGHT
@pytest.mark.parametrize(
    "shapes",
    [
        [(4,), (4,)],
        [(4,), (4, 5)],
        [(3, 4), (4,)],
        [(2, 3, 4), (4,)],
        [(4,), (2, 4, 5)],
        [(2, 3, 4), (4, 5)],
        [(3, 4), (2, 4, 5)],
        [(2, 3, 4), (2, 4, 5)],
        [(2, 1, 3, 4), (6, 4, 5)],
        [(7, 2, 3, 4), (2, 4, 5)],
        [(2, 3, 4), (1, 4, 5)],
        [(1, 3, 4), (2, 4, 5)],
        [(2, 1, 3, 4), (1, 6, 4, 5)],
        [(2, 3, 1), (1, 5)],
        [(0, 4), (4, 5)],
        [(0, 3, 4), (1, 4, 5)],
    ],
)
def test_matmul_broadcasts(shapes: list[tuple[int, ...]], weight: int) -> None:
    check(torch.matmul, *(leaf(*shape) for shape in shapes), weight=weight)


@LEFT_OR_RIGHT
@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("bthd,hde->bthe", [(2, 3, 4, 5), (4, 5, 6)]),  # heads are a batch
        ("btd,dhe->bhte", [(2, 3, 4), (4, 5, 6)]),  # two free dimensions
        ("bthe,dhe->btd", [(2, 3, 4, 5), (6, 4, 5)]),  # two contracted ones
        ("ij,jk->", [(3, 4), (4, 5)]),  # summed on one side alone
        ("ijz,jk->ik", [(3, 4, 2), (4, 5)]),
        ("...i,oi->...o", [(2, 3, 4), (5, 4)]),
        ("...i,oi->o", [(2, 3, 4), (5, 4)]),
        ("...i,...i", [(2, 3, 4), (3, 4)]),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (6, 4, 5)]),
        ("i...,io->o...", [(4, 2, 3), (4, 5)]),
        ("iij,jk->ik", [(3, 3, 4), (4, 5)]),  # a diagonal
        ("ij,jj->i", [(3, 4), (4, 4)]),
        ("bij,bjk->bik", [(1, 3, 4), (2, 4, 5)]),  # 1 broadcasts
        ("Ba,aC", [(2, 3), (3, 4)]),  # capitals first
        ("ba,cb", [(2, 3), (4, 2)]),
        ("ij,j->i", [(3, 4), (4,)]),
        ("ij,ij->", [(3, 4), (3, 4)]),
        ("bi,bo->io", [(7, 3), (7, 4)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]], weight: int) -> None:
    check(
        lambda a, b: torch.einsum(equation, a, b).contiguous(),
        *(leaf(*shape) for shape in shapes),
        weight=weight,
    )


def test_einsum_of_three_goes_from_left_to_right() -> None:
    operands = leaf(7, 3), leaf(7, 4), leaf(5, 3, 4)
    mode = check(lambda a, b, w: torch.einsum("bi,bj,oij->bo", a, b, w), *operands, weight=2)
    assert mode.calls[0][1].shape == (5, 12)
    low_rank = leaf(7, 3), leaf(3, 2), leaf(2, 4)
    check(lambda a, b, w: torch.einsum("bi,ir,ro->bo", a, b, w), *low_rank, weight=1)
    with Products(*low_rank[1:]) as mode:
        torch.einsum("...i,ir,ro", *low_rank)
    assert len(mode.calls) == 2


def test_contiguous_though_the_product_is_not() -> None:
    """A model may call ``view`` on what torch gives it contiguous."""
    w, x = leaf(2, 5, 4), leaf(2, 4, 3)
    with Products(w):
        assert torch.bmm(w, x).view(2, 15).shape == (2, 15)


@LEFT_OR_RIGHT
@pytest.mark.parametrize("scales", [{}, {"beta": 0.5}, {"alpha": -2}, {"beta": 2, "alpha": 0.5}])
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("addmm", [(5,), (3, 4), (4, 5)]),
        ("addmm", [(3, 5), (3, 4), (4, 5)]),
        ("addmm", [(3, 1), (3, 4), (4, 5)]),
        ("addmv", [(3,), (3, 4), (4,)]),
        ("addbmm", [(3, 5), (2, 3, 4), (2, 4, 5)]),
        ("baddbmm", [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
        ("baddbmm", [(2, 1, 5), (2, 3, 4), (2, 4, 5)]),
    ],
)
def test_sums_with_a_product(
    name: str, shapes: list[tuple[int, ...]], scales: dict[str, float], weight: int
) -> None:
    operands = [leaf(*shape) for shape in shapes]
    check(
        lambda added, a, b: getattr(torch, name)(added, a, b, **scales),
        *operands,
        weight=weight + 1,
    )
    check(lambda added, a, b: getattr(added, name)(a, b, **scales), *operands, weight=weight + 1)


def test_beta_0_ignores_what_is_added() -> None:
    nan, x, w = torch.full((5,), torch.nan), torch.ones(3, 4), torch.ones(4, 5)
    with Products(w) as mode:
        y = torch.addmm(nan, x, w, beta=0)
    assert len(mode.calls) == 1
    torch.testing.assert_close(y, torch.full((3, 5), 4.0))


def test_biases_reach_the_product_where_they_belong_to_its_columns() -> None:
    x, w, bias = leaf(3, 4), leaf(5, 4), leaf(5)
    linear = check(F.linear, x, w, bias, weight=1)
    assert linear.calls[0][1] is w
    assert linear.calls[0][2] is bias
    assert check(torch.addmm, bias, x, leaf(4, 5), weight=2).calls[0][2] is bias
    # With the weight as the left operand the bias belongs to the rows.
    assert check(F.linear, x, w, bias, weight=0).calls[0][2] is None
    square = leaf(4), leaf(4, 4), leaf(4, 4)
    assert check(torch.addmm, *square, weight=1).calls[0][2] is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_bilinear_multiplies_the_outer_product(bias: bool, lead: tuple[int, ...]) -> None:
    operands = [leaf(*lead, 4), leaf(*lead, 5), leaf(6, 4, 5)] + [leaf(6)] * bias
    mode = check(F.bilinear, *operands, weight=2)
    assert mode.calls[0][0].shape == (*lead, 20)
    assert mode.calls[0][1].shape == (6, 20)


OFFSETS = [[1, 4, 7], [0, 0, 7], [3, 3, 5]]


@has_grouped
@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize(("space", "name"), [(F, "grouped_mm"), (torch, "_grouped_mm")])
def test_grouped_rows(space: Any, name: str, offsets: list[int]) -> None:
    """As experts do: rows sorted by expert, weights (experts, in, out) or transposed."""
    run, offs = getattr(space, name), torch.tensor(offsets, dtype=torch.int32)
    x, w = torch.randn(7, 8, requires_grad=True), torch.randn(3, 8, 16, requires_grad=True)
    used = offsets[-1]  # torch leaves the rows after the groups undefined
    products = sum(a < b for a, b in zip([0, *offsets], offsets, strict=False))

    def rows(x: Tensor, w: Tensor) -> Tensor:
        inside = torch.arange(7)[:, None] < used
        return run(torch.where(inside, x, 0), w, offs=offs)[:used]

    check(rows, x, w, weight=1, products=products)
    with Products(w):
        assert not run(x, w, offs=offs)[used:].any()


@has_grouped
def test_grouped_columns_and_whole_groups() -> None:
    offs = torch.tensor([3, 8], dtype=torch.int32)
    operands = torch.randn(2, 16, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    check(lambda w, x: F.grouped_mm(w, x, offs=offs), *operands, weight=0, products=2)
    operands = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 8, 16, requires_grad=True)
    check(F.grouped_mm, *operands, weight=1)


def test_only_products_by_exactly_one_weight() -> None:
    a, b = leaf(4, 4), leaf(4, 4)
    with Products() as mode:
        F.linear(a, b) + torch.einsum("ij,jk", a, b) + torch.tensordot(a, b, 1) + a @ b
        torch.bilinear(a, a, leaf(2, 4, 4))
    with Products(a, b) as both:
        F.linear(a, b) + torch.einsum("ij,jk", a, b) + torch.tensordot(a, b, 1) + a @ b
    assert not mode.calls
    assert not both.calls


def test_what_is_no_contraction_runs_as_it_is() -> None:
    a, w = leaf(4, 4), leaf(4, 4)
    out = torch.empty(4, 4, dtype=torch.float64)
    with Products(w) as mode:
        torch.einsum("ij,ij->ij", a, w)
        torch.einsum("ij,kl->ijkl", a, w)
        torch.einsum("ij->ji", w)
        torch.tensordot(a, w, 0)
        with torch.no_grad():
            torch.mm(a, w, out=out)
    assert not mode.calls
    torch.testing.assert_close(out, a @ w)


@pytest.mark.parametrize(
    ("run", "shapes"),
    [
        (torch.mm, [(3, 1), (4, 5)]),
        (torch.mm, [(2, 3, 4), (2, 4, 5)]),
        (torch.bmm, [(1, 3, 4), (2, 4, 5)]),
        (torch.matmul, [(3, 1), (4, 5)]),
        (torch.matmul, [(3, 4), ()]),
        (torch.matmul, [(2, 3, 4), (3, 4, 5)]),
        (F.linear, [(3, 4), (2, 5, 4)]),
        (lambda a, b: torch.einsum("ij,jk->iz", a, b), [(3, 4), (4, 5)]),
        (lambda a, b: torch.einsum("ij,jk->ii", a, b), [(3, 4), (4, 5)]),
        (lambda a, b: torch.einsum("ij,jk->ik", a, b), [(3, 4), (3, 5)]),
        (lambda a, b: torch.einsum("ij,jkl->ik", a, b), [(3, 4), (4, 5)]),
        (lambda a, b: torch.einsum("ij,j->i", a, b), [(3, 4), (4, 5)]),
        (lambda a, b: torch.einsum("ij,jk,kl->il", a, b), [(3, 4), (4, 5)]),
        (lambda a, b: torch.einsum("iij,jk->ik", a, b), [(3, 2, 4), (4, 5)]),
        (lambda a, b: torch.tensordot(a, b, 3), [(3, 4), (4, 5)]),
        (lambda a, b: torch.tensordot(a, b, ([1], [2])), [(3, 4), (4, 5)]),
        (lambda a, b: torch.tensordot(a, b, ([1, 1], [0, 1])), [(3, 4), (4, 4)]),
        (lambda a, b: torch.mm(a, b, wrong=1), [(3, 4), (4, 5)]),
        (lambda a, b: torch.addmm(torch.ones(2, 3, 5), a, b), [(3, 4), (4, 5)]),
        (lambda a, b: torch.bilinear(a, a, b), [(3, 4), (5, 4, 3)]),
    ],
)
def test_torch_refuses_what_it_refuses(
    run: Callable[..., Any], shapes: list[tuple[int, ...]]
) -> None:
    torch_refuses(run, *(torch.ones(shape) for shape in shapes))


# ------------------------------------------------------------------------ unguarded


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"kdim": 6, "vdim": 10},  # separate weights
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True, "kdim": 6, "vdim": 10},
    ],
    ids=str,
)
def test_attention_called_unguarded_is_the_same_and_seen(
    options: dict[str, Any], masked: bool, batch_first: bool, need_weights: bool
) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options).double()
    query, key, value = leaf(3, 3, 8), leaf(3, 3, attention.kdim), leaf(3, 3, attention.vdim)
    given: dict[str, Any] = {"need_weights": need_weights}
    if masked:
        given["attn_mask"] = torch.ones(3, 3, dtype=torch.bool).triu(1)
        given["key_padding_mask"] = torch.tensor([[False, False, True]] * 3)
    expected, weights = attention(query, key, value, **given)
    with Products() as mode:
        y, seen_weights = attention(query, key, value, **given)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    if need_weights:
        torch.testing.assert_close(seen_weights, weights, rtol=0, atol=0)
    assert F.multi_head_attention_forward in mode.seen
    assert mode.seen.count(F.linear) == 4
    products = {torch.bmm, torch.baddbmm} if need_weights else {F.scaled_dot_product_attention}
    assert products & set(mode.seen)


def test_self_attention_called_unguarded_shares_its_products() -> None:
    attention, x = nn.MultiheadAttention(8, 2).double(), leaf(3, 3, 8)
    with Products() as mode:
        y, _ = attention(x, x, x)
    torch.testing.assert_close(y, attention(x, x, x)[0], rtol=0, atol=0)
    assert mode.seen.count(F.linear) == 2  # query, key and value in one, and the output


# --------------------------------------------------------------------- which functions arrive


@pytest.mark.parametrize(
    "run",
    [
        lambda a, b: a @ b,
        lambda a, b: a.__matmul__(b),
        lambda a, b: torch.functional.einsum("ij,jk", a, b),
        lambda a, b: torch.functional.tensordot(a, b),
        lambda a, b: torch._C._nn.linear(a, b),
        lambda a, b: F.bilinear(a, a, b[None]),
    ],
)
def test_aliases_arrive_as_a_function_of_the_table(run: Callable[..., Tensor]) -> None:
    a, b = torch.ones(4, 4), torch.ones(4, 4)
    with Products() as mode:
        run(a, b)
    assert set(CONTRACTIONS) & set(mode.seen)
