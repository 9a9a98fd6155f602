"""Models of torch's own layers for the matrix of models: small, and each with what others lack."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, WORDS, CLASSES = 32, 2, 2, 61, 5


class LanguageModel(nn.Module):
    """An embedding, a body that reads sequences, and a head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.body = body
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.body(self.embedding(ids))
        return self.head(hidden[0] if isinstance(hidden, tuple) else hidden)


class Translation(nn.Module):
    """torch's Transformer: self-attention with a mask, and attention to the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(
            WIDTH, HEADS, LAYERS, LAYERS, 2 * WIDTH, dropout=0.0, batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.body(x, x, tgt_mask=mask, tgt_is_causal=True)


class Attending(nn.Module):
    """torch's MultiheadAttention, with and without its weights among the results."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.told = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=16, vdim=16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fused(x, x, x, need_weights=False)[0]
        found, weights = self.told(x, x[..., :16], x[..., 16:])
        return x + found * (1 + weights.square().sum(-1, keepdim=True))


class LowRank(nn.Linear):
    """A frozen Linear with a low-rank adapter in its own forward, as loralib has it."""

    def __init__(self, inside: int, outside: int, rank: int = 4) -> None:
        super().__init__(inside, outside)
        self.lora_a = nn.Parameter(torch.randn(rank, inside) / inside**0.5)
        self.lora_b = nn.Parameter(torch.randn(outside, rank) / rank**0.5)
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        kept = functional.linear(x, self.weight, self.bias)
        return kept + (x @ self.lora_a.t() @ self.lora_b.t()) * 2.0


class StandardizedConv(nn.Conv2d):
    """A convolution that standardizes its weight before each use, with padding of its own."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        x = functional.pad(x, (0, 1, 0, 1))
        return functional.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, self.stride)


class Paired(nn.Module):
    """nn.Bilinear of a vector with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(WIDTH, 12)
        self.pair = nn.Bilinear(12, 12, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x).tanh()
        return self.head(self.pair(x, x).tanh())


class Excited(nn.Module):
    """A squeeze-and-excite block: convolutions of outputs of 1 by 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 4, 1)
        self.up = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).tanh()).sigmoid()


def recurrent(cls: type[nn.Module], **keys: int | bool) -> nn.Module:
    """Return a language model around LSTM, GRU or RNN."""
    return LanguageModel(cls(WIDTH, WIDTH, batch_first=True, **keys))


def encoder() -> nn.Module:
    """Return a language model around torch's TransformerEncoder."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
    return LanguageModel(nn.TransformerEncoder(layer, LAYERS))


def adapted() -> nn.Module:
    """Return a small classifier of adapted layers."""
    return nn.Sequential(LowRank(WIDTH, 48), nn.GELU(), LowRank(48, WIDTH), nn.Tanh(), _head())


def standardized() -> nn.Module:
    """Return convolutions with a forward of their own."""
    first, second = StandardizedConv(3, 8, 2, 2), StandardizedConv(8, 16, 2, 2)
    return nn.Sequential(first, nn.GELU(), second, *_pooled(16))


def normed(norm: Callable[..., nn.Module]) -> nn.Module:
    """Return layers whose weights are computed from a direction and a length."""
    first, second = norm(nn.Linear(WIDTH, 48)), norm(nn.Linear(48, WIDTH))
    return nn.Sequential(first, nn.GELU(), second, nn.Tanh(), _head())


def normed_by_hooks() -> nn.Module:
    """Return layers whose weights a hook computes before each forward, as torch did it once."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return normed(nn.utils.weight_norm)


normed_by_parametrization = partial(normed, nn.utils.parametrizations.weight_norm)


def transposed() -> nn.Module:
    """Return transposed convolutions of one and two dimensions, and in groups."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.GELU(),
        nn.ConvTranspose2d(8, 16, 4, 2, 1),
        nn.GELU(),
        nn.ConvTranspose2d(16, 16, 2, 2, groups=4, bias=False),
        nn.MaxPool2d(16),
        nn.Flatten(2),
        nn.ConvTranspose1d(16, 8, 3, 2, output_padding=1),
        nn.GELU(),
        nn.MaxPool1d(16),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def depthwise() -> nn.Module:
    """Return depthwise and pointwise convolutions, and a squeeze-and-excite block."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect", groups=8),
        Excited(8),
        nn.Conv2d(8, 16, 1),
        *_pooled(16),
    )


def _pooled(channels: int) -> tuple[nn.Module, ...]:
    return nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


def _head() -> nn.Module:
    return nn.Linear(WIDTH, CLASSES)
