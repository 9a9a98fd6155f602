"""The unfused form of torch's recurrent networks is the network."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_quantization import quantize_in_float32
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.overrides import TorchFunctionMode

import altcore
from altcore.quantization.recurrent import RECURRENT


class Unfused(TorchFunctionMode):
    """Runs recurrent networks unfused, by plain products, and records these."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.weights = [p for p in module.parameters() if p.dim() == 2]
        self.products: list[tuple[tuple[int, ...], Tensor]] = []

    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
        assert w is weight
        self.products.append((tuple(x.shape), weight))
        return F.linear(x, w, bias)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = RECURRENT.get(func, lambda *args, **kwargs: NotImplemented)
        y = handler(self.multiply, self.is_weight, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if y is NotImplemented else y

    def is_weight(self, t: Tensor) -> bool:
        return any(t is w for w in self.weights)


def tensors(value: Any) -> list[Tensor]:
    """Return every tensor of what a recurrent module takes or returns."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value if v is not None for t in tensors(v)]


def check(module: nn.Module, *inputs: Any) -> Unfused:
    """Hold outputs, their strides and all gradients against the fused network."""
    leaves = [t for t in (*tensors(inputs), *module.parameters()) if t.requires_grad]
    results = []
    mode = Unfused(module)
    for context in (torch.enable_grad(), mode):
        torch.manual_seed(1)
        with context:
            outputs = tensors(module(*inputs))
        torch.manual_seed(2)
        loss = sum((y * torch.randn_like(y)).sum() for y in outputs)
        results.append((outputs, torch.autograd.grad(loss, leaves)))
    (expected, gradients), (outputs, made) = results
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made, gradients, rtol=1e-5, atol=1e-5)
    assert [y.stride() for y in outputs] == [y.stride() for y in expected]
    assert mode.products
    return mode


KINDS = {
    "lstm": (nn.LSTM, {}),
    "projected lstm": (nn.LSTM, {"proj_size": 3}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}


OPTIONS = [
    {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": first}
    for layers, bidirectional, bias, first in itertools.product(
        (1, 3), (False, True), (False, True), (False, True)
    )
]


GRID = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))


KIND = pytest.mark.parametrize("kind", KINDS)


def network(kind: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    cls, own = KINDS[kind]
    return cls(4, 5, **own, **options).double()


def initial(module: nn.Module, *batch: int) -> Any:
    """Return initial states that need a gradient."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or module.hidden_size]
    if isinstance(module, nn.LSTM):
        sizes.append(module.hidden_size)
    states = [leaf(count, *batch, size) for size in sizes]
    return tuple(states) if isinstance(module, nn.LSTM) else states[0]


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


class Called(nn.Module):
    """Calls torch's function with names for some arguments."""

    def __init__(self, named: int, packed: bool) -> None:
        super().__init__()
        self.lstm, self.named, self.packed = nn.LSTM(4, 5).double(), named, packed

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        arguments = {
            "input": x,
            "hx": [h, c],
            "params": list(self.lstm.parameters()),
            "has_biases": True,
            "num_layers": 1,
            "dropout": 0.0,
            "train": True,
            "bidirectional": False,
            "batch_first": True,
        }
        if self.packed:
            del arguments["input"], arguments["batch_first"]
            packed = {"data": x.flatten(0, 1), "batch_sizes": torch.tensor([3, 3])}
            arguments = packed | arguments
        values = list(arguments.values())[: self.named]
        return torch.lstm(*values, **dict(list(arguments.items())[self.named :]))


@GRID
@KIND
def test_padded(kind: str, options: dict[str, Any]) -> None:
    module = network(kind, options)
    x = leaf(3, 7, 4) if module.batch_first else leaf(7, 3, 4)
    check(module, x)
    check(module, x, initial(module, 3))


@GRID
@KIND
def test_packed(kind: str, options: dict[str, Any]) -> None:
    module = network(kind, options)
    sequences = [leaf(n, 4) for n in (2, 6, 1, 6)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    check(module, packed)
    check(module, packed, initial(module, 4))
    check(module, pack_padded_sequence(leaf(5, 3, 4), [5, 3, 1]))


@KIND
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_sequence_without_a_batch(kind: str, bidirectional: bool) -> None:
    module = network(kind, {"num_layers": 2, "bidirectional": bidirectional})
    check(module, leaf(7, 4))
    check(module, leaf(7, 4), initial(module))
    check(module, leaf(1, 4))


@KIND
def test_dropout_draws_what_torch_draws(kind: str) -> None:
    module = network(kind, {"num_layers": 3, "dropout": 0.5, "bidirectional": True})
    check(module, leaf(7, 3, 4))
    check(module, pack_sequence([leaf(n, 4) for n in (2, 6, 1)], enforce_sorted=False))
    check(module.eval(), leaf(7, 3, 4))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (nn.LSTMCell, {}),
        (nn.GRUCell, {}),
        (nn.RNNCell, {}),
        (nn.RNNCell, {"nonlinearity": "relu"}),
    ],
)
def test_cells(
    cls: type[nn.Module], options: dict[str, Any], batch: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(0)
    module = cls(4, 5, bias=bias, **options).double()
    states = leaf(*batch, 5), leaf(*batch, 5)
    x = leaf(*batch, 4)
    assert len(check(module, x).products) == 2
    check(module, x, states if cls is nn.LSTMCell else states[0])


def test_one_input_product_a_layer_and_direction_and_one_recurrent_a_step() -> None:
    module = network("lstm", {"num_layers": 2, "bidirectional": True})
    products = check(module, leaf(7, 3, 4)).products
    for i, size in ((0, 4), (1, 10)):
        for suffix in ("", "_reverse"):
            weight = getattr(module, f"weight_ih_l{i}{suffix}")
            assert [x for x, w in products if w is weight] == [(21, size)]
            weight = getattr(module, f"weight_hh_l{i}{suffix}")
            assert [x for x, w in products if w is weight] == [(3, 5)] * 7


def test_packed_steps_multiply_live_rows_only() -> None:
    module = network("gru", {})
    packed = pack_sequence([leaf(n, 4) for n in (3, 1, 4)], enforce_sorted=False)
    products = check(module, packed).products
    assert products[0][0] == (8, 4)
    assert [x[0] for x, w in products if w is module.weight_hh_l0] == [3, 2, 2, 1]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@KIND
def test_float32(kind: str) -> None:
    module = network(kind, {"num_layers": 2, "bidirectional": True}).float()
    check(module, torch.randn(7, 3, 4, requires_grad=True))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("named", range(10))
def test_overloads_are_told_apart(named: int, packed: bool) -> None:
    torch.manual_seed(0)
    x = leaf(2, 3, 4) if packed else leaf(3, 2, 4)
    check(Called(named, packed), x, leaf(1, 3, 5), leaf(1, 3, 5))


def test_without_a_weight_the_fused_network_runs() -> None:
    module, x = nn.LSTM(4, 5), torch.ones(7, 3, 4)
    mode = Unfused(nn.Identity())
    with mode:
        y, _ = module(x)
        nn.GRUCell(4, 5)(x[0])
    torch.testing.assert_close(y, module(x)[0], rtol=0, atol=0)
    assert not mode.products


def test_a_weight_that_is_none_is_multiplied_plainly() -> None:
    module, x = nn.LSTM(4, 5), torch.ones(7, 3, 4)
    mode = Unfused(nn.Identity())
    mode.weights = [module.weight_hh_l0]
    with mode:
        y, _ = module(x)
    torch.testing.assert_close(y, module(x)[0])
    assert len(mode.products) == 7


def test_empty_batches_and_bad_calls_are_torch_s() -> None:
    module = nn.LSTM(4, 5)
    mode = Unfused(module)
    with mode:
        assert module(torch.ones(7, 0, 4))[0].shape == (7, 0, 5)
        with pytest.raises(RuntimeError, match="sequence length"):
            module(torch.ones(0, 3, 4))
        with pytest.raises(TypeError, match="lstm"):
            torch.lstm(torch.ones(7, 3, 4), wrong=1)
    assert not mode.products


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    """Weights and states are on the grid at every step: in a grid of float32 nothing changes."""
    module = kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 6, 4)
    plain, _ = module(x)
    fine = {"format": altcore.float_format("E8M10", 8, 10), "scaling": "none"}
    recipe = dict.fromkeys(("weight", "activation", "gradient"), fine)
    with quantize_in_float32(nn.Sequential(module), recipe) as q:
        y, _ = module(x)
        y.square().sum().backward()
        (row,) = q.coverage().rows
        assert q.coverage().parameter_share > 0.7  # all but the biases
    assert not torch.equal(y, plain)
    torch.testing.assert_close(y, plain, rtol=1e-2, atol=1e-2)
    assert {"weight@dgrad", "activation@wgrad", "gradient@dgrad"} <= set(row.operands)
    assert not row.is_missed


def test_a_recurrent_weight_is_quantized_once_a_forward():
    """However many steps it is multiplied in: its random bits are drawn once, too."""
    module = nn.RNN(4, 5)
    cast = {"format": "E3M4", "rounding": "stochastic"}
    with quantize_in_float32(
        nn.Sequential(module), dict.fromkeys(("weight", "activation"), cast)
    ) as q:
        module(torch.randn(6, 3, 4))
        counts = {r["parameter"]: r["elements"] for r in q.stats() if r["operand"] == "weight@fwd"}
    assert counts == {"weight_ih_l0": 20, "weight_hh_l0": 25}
