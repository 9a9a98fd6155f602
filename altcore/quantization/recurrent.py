"""Express torch's recurrent networks by the canonical product.

torch computes an RNN, LSTM or GRU in one fused call. `RECURRENT` maps each such function to a
handler, as `altcore.quantization.torch_products.CONTRACTIONS` does for products. It makes the same
network of these products, with ``multiply`` as `altcore.quantization.contraction` describes it:

- the input product, one for each layer and direction, of all time steps' rows;
- the recurrent product, one for each time step, of the sequences that reach it;
- the projection of an LSTM with ``proj_size``, one for each time step.

The gates and states between them are computed as usual, in the dtype of products and states.
The weight gradient of a recurrent product is the sum of one for each step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from altcore.quantization.contraction import IsWeight, Multiply

State = tuple[Tensor, ...]
"""The hidden state, and an LSTM's cell state."""
Step = Callable[[Tensor, Tensor, State], State]
"""Makes the next state of the input product, the recurrent product and the state."""
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Multiplies rows by a layer's weight, and adds its bias."""


@dataclass(frozen=True)
class Parameters:
    """One layer's in one direction."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    projection: Tensor | None = None

    @property
    def weights(self) -> list[Tensor]:
        """The weights of products."""
        return [w for w in (self.input, self.hidden, self.projection) if w is not None]


@dataclass(frozen=True)
class Network:
    """A call of a fused function: rows of all time steps, and how many each step has."""

    rows: Tensor
    steps: list[int]
    state: State
    layers: list[tuple[Parameters, ...]]
    dropout: float


# ----------------------------------------------------------------------------------- steps


def _lstm(x: Tensor, recurrent: Tensor, state: State) -> State:
    i, f, g, o = (x + recurrent).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(x: Tensor, recurrent: Tensor, state: State) -> State:
    (x_reset, x_update, x_new), (reset, update, new) = x.chunk(3, -1), recurrent.chunk(3, -1)
    new = (x_new + (x_reset + reset).sigmoid() * new).tanh()
    return (new + (x_update + update).sigmoid() * (state[0] - new),)


def _rnn_tanh(x: Tensor, recurrent: Tensor, state: State) -> State:
    return ((x + recurrent).tanh(),)


def _rnn_relu(x: Tensor, recurrent: Tensor, state: State) -> State:
    return ((x + recurrent).relu(),)


# --------------------------------------------------------------------------------- network


def _product(multiply: Multiply, is_weight: IsWeight) -> Product:
    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_weight(weight):
            return multiply(x, weight, bias, weight)
        return torch.nn.functional.linear(x, weight, bias)

    return product


def _next(product: Product, step: Step, own: Parameters, x: Tensor, state: State) -> State:
    """Return the state after one step; ``x`` is the input product of its rows."""
    hidden, *cell = step(x, product(state[0], own.hidden, own.hidden_bias), state)
    if own.projection is not None:
        hidden = product(hidden, own.projection, None)
    return hidden, *cell


def _run(product: Product, step: Step, network: Network) -> tuple[Tensor, State]:
    """Return the last layer's rows, and the final states of all layers and directions."""
    rows, finals = network.rows, []
    initial = zip(*network.state, strict=True)
    for i, directions in enumerate(network.layers):
        if i:
            rows = torch.dropout(rows, network.dropout, train=network.dropout > 0)
        outputs = []
        for own, order in zip(directions, (1, -1), strict=False):
            x = product(rows, own.input, own.input_bias).split(network.steps)
            advance = functools.partial(_next, product, step, own)
            output, final = _unroll(advance, x, next(initial), order)
            outputs.append(output)
            finals.append(final)
        rows = torch.cat(outputs, -1)
    return rows, tuple(torch.stack(states) for states in zip(*finals, strict=True))


def _unroll(
    advance: Callable[[Tensor, State], State], x: Sequence[Tensor], state: State, order: int
) -> tuple[Tensor, State]:
    """Return all steps' rows, and the final state.

    A step has the first of the sequences. The states of the others have ended, or, backwards,
    have not begun.
    """
    outputs = []
    for rows in x[::order]:
        n = len(rows)
        made = advance(rows, tuple(s[:n] for s in state))
        outputs.append(made[0])
        if n < len(state[0]):
            made = tuple(torch.cat((new, old[n:])) for new, old in zip(made, state, strict=True))
        state = made
    return torch.cat(outputs[::order]), state


# ----------------------------------------------------------------------- torch's signatures


def _padded(
    input: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Network:
    rows = input.transpose(0, 1) if batch_first else input
    layers = _layers(params, has_biases, num_layers, bidirectional)
    steps = [rows.shape[1]] * len(rows)
    return Network(rows.flatten(0, 1), steps, _state(hx), layers, dropout if train else 0.0)


def _packed(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> Network:
    layers = _layers(params, has_biases, num_layers, bidirectional)
    return Network(data, batch_sizes.tolist(), _state(hx), layers, dropout if train else 0.0)


def _state(hx: Tensor | Sequence[Tensor]) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _layers(
    params: Sequence[Tensor], has_biases: bool, num_layers: int, bidirectional: bool
) -> list[tuple[Parameters, ...]]:
    """Take torch's flat list apart: for each layer, forwards and then backwards."""
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    each = []
    for start in range(0, len(params), size):
        weights, rest = params[start : start + 2], params[start + 2 : start + size]
        biases = rest[:2] if has_biases else (None, None)
        projection = rest[-1] if size % 2 else None
        each.append(Parameters(weights[0], weights[1], biases[0], biases[1], projection))
    return [tuple(each[i : i + directions]) for i in range(0, len(each), directions)]


def _sequences(step: Step) -> Callable[..., Any]:
    """Return the handler of a function for whole sequences, padded or packed."""

    def handle(multiply: Multiply, is_weight: IsWeight, *args: Any, **kwargs: Any) -> Any:
        is_packed = _is_packed(args, kwargs)
        read = _packed if is_packed else _padded
        try:
            named = inspect.signature(read).bind(*args, **kwargs).arguments
        except TypeError:
            return NotImplemented
        network = read(**named)
        weights = (w for layer in network.layers for own in layer for w in own.weights)
        if network.rows.numel() == 0 or not any(map(is_weight, weights)):
            return NotImplemented
        rows, final = _run(_product(multiply, is_weight), step, network)
        if is_packed:
            return rows, *final
        rows = rows.unflatten(0, (len(network.steps), -1))
        return rows.transpose(0, 1) if named["batch_first"] else rows, *final

    return handle


def _is_packed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell the overloads apart: the padded one's fourth argument is not a list of parameters."""
    named = dict(zip(inspect.signature(_packed).parameters, args, strict=False)) | {**kwargs}
    return "batch_first" not in kwargs and isinstance(named.get("params"), list | tuple)


def _cell(step: Step) -> Callable[..., Any]:
    """Return the handler of a function for one time step."""

    def handle(
        multiply: Multiply,
        is_weight: IsWeight,
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        if not (is_weight(w_ih) or is_weight(w_hh)):
            return NotImplemented
        product = _product(multiply, is_weight)
        x = product(input, w_ih, b_ih)
        state = _next(product, step, Parameters(w_ih, w_hh, b_ih, b_hh), x, _state(hx))
        return state[0] if isinstance(hx, Tensor) else state

    return handle


RECURRENT: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {
        torch.lstm: _sequences(_lstm),
        torch.gru: _sequences(_gru),
        torch.rnn_tanh: _sequences(_rnn_tanh),
        torch.rnn_relu: _sequences(_rnn_relu),
        torch.lstm_cell: _cell(_lstm),
        torch.gru_cell: _cell(_gru),
        torch.rnn_tanh_cell: _cell(_rnn_tanh),
        torch.rnn_relu_cell: _cell(_rnn_relu),
    }
)
