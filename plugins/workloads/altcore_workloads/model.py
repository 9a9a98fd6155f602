"""The network of the workload ``gpt``: a decoder-only transformer with nanoGPT's architecture.

Layers are normalised before attention and MLP, positions are learned, the output head shares the
token embedding's weights. Every product of a weight is its own ``nn.Linear``, under nanoGPT's
names (``transformer.h.0.attn.c_attn``), so that recipes can address it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

INIT_STD = 0.02


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and the earlier ones."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, n_embd) to the same shape."""
        batch, time, width = x.shape
        heads = self.c_attn(x).view(batch, time, 3, self.n_head, width // self.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        mixed = mixed.transpose(1, 2).reshape(batch, time, width)
        return self.resid_dropout(self.c_proj(mixed))


class MLP(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, n_embd: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_embd) to the same shape."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention, then MLP, each on a normalised input and added to the residual stream."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd, bias=bias)
        self.attn = CausalSelfAttention(n_embd, n_head, dropout, bias)
        self.ln_2 = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = MLP(n_embd, dropout, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, n_embd) to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Everything below the output head: embeddings, blocks and the last norm."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList([Block(n_embd, n_head, dropout, bias) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd, bias=bias)

    def forward(self, idx: Tensor) -> Tensor:
        """Map token ids (batch, time) to features (batch, time, n_embd)."""
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GptModel(nn.Module):
    """The language model: token ids in, a logit for each possible next token out."""

    def __init__(
        self,
        *,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.transformer = Transformer(
            vocab_size, block_size, n_layer, n_head, n_embd, dropout, bias
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        """Map token ids (batch, time) to logits (batch, time, vocab).

        Raises ValueError if time is more than block_size.
        """
        if idx.shape[1] > self.block_size:
            raise ValueError(
                f"{idx.shape[1]} tokens in a sequence, but block_size is {self.block_size}"
            )
        return self.lm_head(self.transformer(idx))

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output head, as Hugging Face models do."""
        return self.lm_head

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight anew from ``generator`` (a CPU generator for a model on the CPU).

        Weights are normal with standard deviation 0.02, biases zero. The layers that write to the
        residual stream are smaller by sqrt(2 * n_layer), so that its variance does not grow with
        depth.
        """
        residual_std = INIT_STD / math.sqrt(2 * len(self.transformer.h))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif module is not self.lm_head and isinstance(module, nn.Linear | nn.Embedding):
                std = residual_std if name.endswith("c_proj") else INIT_STD
                module.weight.normal_(0.0, std, generator=generator)
