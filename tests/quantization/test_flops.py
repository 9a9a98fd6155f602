"""FLOPs against counts by hand: 2 M N K for each product, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from altcore.quantization.flops import count_flops, uncounted


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def first(y: Tensor | tuple[Tensor, ...]) -> Tensor:
    return y if isinstance(y, Tensor) else y[0]


def training(run: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> int:
    """Return the FLOPs of a forward and a backward pass."""
    gradient = torch.randn_like(first(run(*inputs)))
    return count_flops(lambda: first(run(*inputs)).backward(gradient))


def forward(run: Callable[..., object], *inputs: Tensor) -> int:
    with torch.no_grad():
        return count_flops(lambda: run(*inputs))


OFFSETS = torch.tensor([2, 5, 8], dtype=torch.int32)
CASES = {
    "linear": (F.linear, [(2, 3, 4), (5, 4), (5,)], 6 * 4 * 5),
    "mm": (torch.mm, [(3, 4), (4, 5)], 3 * 4 * 5),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    "einsum": (lambda a, b: torch.einsum("bi,hio->bho", a, b), [(7, 3), (2, 3, 5)], 7 * 2 * 3 * 5),
    "baddbmm": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    "addbmm": (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    "grouped rows": (
        lambda x, w: torch._grouped_mm(x, w, offs=OFFSETS),
        [(8, 8), (3, 8, 16)],
        8 * 8 * 16,
    ),
    "grouped columns": (
        lambda w, x: torch._grouped_mm(w, x, offs=OFFSETS),
        [(3, 16, 8), (8, 8)],
        8 * 8 * 16,
    ),
    "whole groups": (lambda x, w: torch._grouped_mm(x, w), [(3, 4, 8), (3, 8, 16)], 3 * 4 * 8 * 16),
    "attention": (
        F.scaled_dot_product_attention,
        [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
        2 * 3 * 5 * 7 * (8 + 8),
    ),
    "attention of fewer keys' heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        [(2, 6, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
        2 * 6 * 5 * 7 * (8 + 8),
    ),
    "attention written out": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5),
        [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
        2 * 3 * 5 * 7 * (8 + 8),
    ),
    "convolution": (F.conv2d, [(2, 3, 6, 6), (5, 3, 3, 3)], 2 * 4 * 4 * 5 * 3 * 9),
    "1-D convolution": (F.conv1d, [(2, 3, 6), (5, 3, 3), (5,)], 2 * 4 * 5 * 3 * 3),
    "grouped convolution": (
        lambda x, w: F.conv2d(x, w, groups=2),
        [(2, 4, 6, 6), (6, 2, 3, 3)],
        2 * 4 * 4 * 6 * 2 * 9,
    ),
    "depthwise convolution": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=4),
        [(2, 4, 6, 6), (4, 1, 3, 3)],
        2 * 3 * 3 * 4 * 9,
    ),
    "transposed convolution": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2),
        [(2, 4, 6, 6), (4, 3, 3, 3)],
        2 * 6 * 6 * 4 * 3 * 9,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_training_has_three_times_the_products_of_the_forward_pass(case: str) -> None:
    run, shapes, products = CASES[case]
    inputs = [leaf(*shape) for shape in shapes]
    try:
        assert forward(run, *inputs) == 2 * products
    except NotImplementedError:
        assert "_grouped_mm" in run.__code__.co_names
        pytest.skip("this torch has grouped products on a GPU only")
    assert training(run, *inputs) == 3 * 2 * products


@pytest.mark.parametrize("case", ["linear", "depthwise convolution", "transposed convolution"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_only_gradients_that_are_made_count(case: str, frozen: int) -> None:
    run, shapes, products = CASES[case]
    inputs = [leaf(*shape) for shape in shapes]
    inputs[frozen].requires_grad_(False)
    assert training(run, *inputs) == 2 * 2 * products


def test_a_depthwise_layer_has_three_times_its_forward_pass() -> None:
    layer, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), leaf(2, 8, 5, 5)
    assert forward(layer, x) == 2 * (2 * 5 * 5) * (8 * 9)
    assert training(layer, x) == 3 * forward(layer, x)


def test_products_by_vectors() -> None:
    """Gradients of a matrix are outer products then, which sum over nothing."""
    assert forward(torch.mv, leaf(3, 4), leaf(4)) == 2 * 12
    assert training(torch.mv, leaf(3, 4), leaf(4)) == 2 * 2 * 12
    assert forward(torch.matmul, leaf(2, 3, 4), leaf(4)) == 2 * 24
    assert forward(torch.addmv, leaf(3), leaf(3, 4), leaf(4)) == 2 * 12
    assert forward(torch.dot, leaf(4), leaf(4)) == 2 * 4
    assert forward(torch.vdot, leaf(4), leaf(4)) == 2 * 4


def test_bilinear_has_three_gradients() -> None:
    inputs = leaf(2, 6, 3), leaf(2, 6, 4), leaf(5, 3, 4), leaf(5)
    products = 12 * 5 * (3 * 4)
    assert forward(F.bilinear, *inputs) == 2 * products
    assert training(F.bilinear, *inputs) == 4 * 2 * products


# ----------------------------------------------------------------- recurrent networks


T, B, I, H = 5, 2, 3, 4  # noqa: E741 # steps, sequences, features in and out: torch's letters


@pytest.mark.parametrize(("cls", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_networks(cls: type[nn.RNNBase], gates: int, dtype: torch.dtype) -> None:
    """In float32 torch runs an LSTM as one fused operation, everything else as products."""
    module, x = cls(I, H).to(dtype), leaf(T, B, I).to(dtype)
    hidden = torch.randn(1, B, H, dtype=dtype, requires_grad=True)
    states = (hidden, torch.randn_like(hidden)) if cls is nn.LSTM else hidden
    products = T * B * (I + H) * gates * H
    assert forward(module, x, states) == 2 * products
    assert training(module, x, states) == 3 * 2 * products
    with torch.inference_mode():
        assert count_flops(lambda: module(x, states)) == 2 * products


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_layers_directions_and_projections() -> None:
    deep = nn.LSTM(I, H, num_layers=2, bidirectional=True)
    products = T * B * 2 * 4 * H * ((I + H) + (2 * H + H))
    assert forward(deep, leaf(T, B, I)) == 2 * products
    assert training(deep, leaf(T, B, I)) == 3 * 2 * products
    projected = nn.LSTM(I, H, proj_size=2)
    assert forward(projected, leaf(T, B, I)) == 2 * T * B * ((I + 2) * 4 * H + H * 2)


def test_packed_sequences_count_live_rows() -> None:
    packed = pack_sequence([leaf(n, I) for n in (3, 1, 5)], enforce_sorted=False)
    assert forward(nn.GRU(I, H), packed) == 2 * (3 + 1 + 5) * (I + H) * 3 * H


def test_cells() -> None:
    """The state is a constant here: its product has one gradient."""
    cell, x = nn.LSTMCell(I, H), leaf(B, I)
    assert forward(cell, x) == 2 * B * (I + H) * 4 * H
    assert training(cell, x) == 2 * B * (3 * I + 2 * H) * 4 * H


@pytest.mark.parametrize(
    ("mask", "gradients"),
    [((True, True, True, True), 2), ((False, True, False, False), 1), ((False,) * 3 + (True,), 1)],
)
def test_fused_networks_of_gpus(mask: tuple[bool, ...], gradients: int) -> None:
    """On the meta device, where a call has shapes only, and its backward pass no results."""
    aten = torch.ops.aten
    x, hidden = torch.empty(T, B, I, device="meta"), torch.empty(1, B, H, device="meta")
    weights = [p.detach() for p in nn.LSTM(I, H, device="meta").parameters()]
    buffer = torch.empty(sum(w.numel() for w in weights), device="meta")
    options = (2, H, 0, 1, False, 0.0, True, False, [], None)
    products = T * B * (I + H) * 4 * H
    ahead = x, weights, 4, buffer, hidden, hidden
    assert count_flops(lambda: aten._cudnn_rnn(*ahead, *options)) == 2 * products
    grads = [torch.empty(T, B, H, device="meta"), *[torch.empty(1, B, H, device="meta")] * 2]
    back = *ahead, grads[0], *grads, *options, buffer, mask
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_cudnn_rnn_backward", lambda *args: (x, hidden, hidden, []), "Meta")
        assert count_flops(lambda: aten._cudnn_rnn_backward(*back)) == gradients * 2 * products


@pytest.mark.cuda
def test_gpus_count_as_cpus() -> None:
    module, x = nn.LSTM(I, H, num_layers=2).cuda(), torch.randn(T, B, I, device="cuda")
    products = T * B * 4 * H * ((I + H) + (H + H))
    assert training(module, x.requires_grad_()) == 3 * 2 * products
    heads = [torch.randn(2, 3, 64, 32, device="cuda", requires_grad=True) for _ in range(3)]
    products = 2 * 3 * 64 * 64 * (32 + 32)
    assert training(F.scaled_dot_product_attention, *heads) == 3 * 2 * products


def test_fused_attention_of_gpus_counts_no_scores_twice() -> None:
    """On the meta device: the backward pass is twice the forward pass, as written out."""
    q, k, v = (torch.empty(2, 3, n, 8, device="meta", requires_grad=True) for n in (5, 7, 7))
    aten, scores = torch.ops.aten, torch.empty(2, 3, 5, device="meta")
    products = 2 * 3 * 5 * 7 * (8 + 8)
    out, seed = torch.empty_like(q), torch.empty((), device="meta")
    back = out, q, k, v, out, scores, None, None, 5, 7, 0.0, False, seed, seed
    run = aten._scaled_dot_product_flash_attention_backward
    assert count_flops(lambda: run(*back)) == 2 * 2 * products


# ------------------------------------------------------------------------- uncounted


def test_uncounted_products_are_left_out() -> None:
    x, w = leaf(3, 4), leaf(4, 4)

    def run() -> None:
        with uncounted():
            turned = x @ w
            with uncounted():
                w @ w
            F.conv1d(x[None], leaf(3, 3, 1))
        turned @ w

    assert count_flops(run) == 2 * 3 * 4 * 4


def test_counting_goes_on_after_an_error() -> None:
    with pytest.raises(KeyError), uncounted():
        raise KeyError
    assert forward(torch.mm, leaf(3, 4), leaf(4, 5)) == 2 * 3 * 4 * 5
