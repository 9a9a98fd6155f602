"""The workload ``gpt``: a small language model on text that every machine has."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from altcore.plugin import BadInput, setting
from altcore_workloads.data import Corpus, check_length, load
from altcore_workloads.model import GptModel
from altcore_workloads.splits import SAME_SPLITS
from altcore_workloads.token_files import BIN_VOCAB, KEY, TYPES, unsigned
from altcore_workloads.tokens import encode


@attrs.frozen
class Shape:
    """The sizes of the model and its batches."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int


SIZES = {
    "tiny": Shape(n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=8),
    "small": Shape(n_layer=4, n_head=4, n_embd=128, block_size=128, batch_size=8),
    "seed": Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=12),
}


def _known_size(_: Gpt, __: attrs.Attribute[str], value: str) -> None:
    if value not in SIZES:
        raise BadInput(f"{value!r} is none of {', '.join(SIZES)}", key="gpt.size")


def _known_type(_: Gpt, __: attrs.Attribute[str], value: str | None) -> None:
    if value is not None and value not in TYPES:
        raise BadInput(f"{value!r} is none of {', '.join(TYPES)}", key="gpt.token_type")


def _positive(_: Gpt, field: attrs.Attribute[Any], value: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and value > 0):
        raise BadInput(f"{value!r} is not a positive whole number", key=f"gpt.{field.name}")


def _share(_: Gpt, field: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value < 1:
        raise BadInput(f"{value!r} is not in [0, 1)", key=f"gpt.{field.name}")


def _from_size(help: str) -> Any:
    return setting(None, help=f"{help}; from size if not given", validator=_positive)


@attrs.define(eq=False)
class Gpt:
    """Settings of the workload; impossible ones raise BadInput that names the key."""

    size: str = setting("small", help=f"one of {', '.join(SIZES)}", validator=_known_size)
    data: str | None = setting(
        None,
        help="a text file, a folder of them, a folder with nanoGPT's train.bin and val.bin, or "
        "eurlex; the source of Python's standard library if not given",
    )
    token_type: str | None = setting(
        None,
        help=f"{' or '.join(TYPES)}, the type of the ids in train.bin and val.bin; told by what "
        "they hold if not given",
        validator=_known_type,
    )
    tokenizer: str | None = setting(
        None,
        help="a tokenizer.json of the tokenizers library that text is encoded with; a token is a "
        "byte if not given",
    )
    n_layer: int | None = _from_size("transformer blocks")
    n_head: int | None = _from_size("attention heads; divides n_embd")
    n_embd: int | None = _from_size("width of the residual stream")
    block_size: int | None = _from_size("tokens in a sequence")
    batch_size: int | None = _from_size("sequences in a micro-batch")
    vocab_size: int | None = setting(
        None,
        help="token ids that the model knows; if not given 256 for bytes, what the ids of "
        ".bin files need, rounded up, the tokenizer's own with a tokenizer",
        validator=_positive,
    )
    dropout: float = setting(0.0, help="share of activations dropped", validator=_share)
    bias: bool = setting(True, help="whether linear layers and norms have a bias")

    def __attrs_post_init__(self) -> None:
        self.shape()

    def shape(self) -> Shape:
        """Return the sizes in force; BadInput if they do not go together."""
        given = {f.name: getattr(self, f.name) for f in attrs.fields(Shape)}
        shape = attrs.evolve(
            SIZES[self.size], **{name: value for name, value in given.items() if value is not None}
        )
        if shape.n_embd % shape.n_head:
            raise BadInput(
                f"{shape.n_head} does not divide n_embd {shape.n_embd}", key="gpt.n_head"
            )
        return shape

    def build(self, seed: int, device: torch.device) -> BuiltGpt:
        """Read the data and make the model on ``device``, its weights a function of ``seed``.

        The global random state is neither used nor changed, and the weights are drawn on the CPU,
        so that they are the same on every device. Raises BadInput if the data cannot be used.
        """
        shape = self.shape()
        # A default device that the caller has set is not for the data, nor for drawing weights.
        with torch.device("cpu"):
            corpus = load(self.data, self.token_type)
            if self.tokenizer is not None:
                corpus = encode(corpus, self.tokenizer)
            copied = SAME_SPLITS if corpus.validates_training() else None
        check_length(corpus, shape.block_size)
        vocab_size, notice = _vocabulary(corpus, self.vocab_size)
        _check_ids(corpus, corpus.largest_id, vocab_size)
        return BuiltGpt(
            model=self.build_model(seed, device, {"vocab_size": vocab_size}),
            corpus=corpus,
            seed=seed,
            device=torch.device(device),
            shape=shape,
            vocab_size=vocab_size,
            notice="; ".join(filter(None, (notice, copied))),
        )

    def build_model(self, seed: int, device: torch.device, facts: Mapping[str, Any]) -> nn.Module:
        """Make the model as `build` does with data that have these ``facts``, and read none."""
        shape = self.shape()
        # Modules draw their default weights when made, from the random state that is kept here.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = GptModel(
                vocab_size=int(facts["vocab_size"]),
                block_size=shape.block_size,
                n_layer=shape.n_layer,
                n_head=shape.n_head,
                n_embd=shape.n_embd,
                dropout=self.dropout,
                bias=self.bias,
            )
        generator = torch.Generator("cpu")
        generator.manual_seed(int.from_bytes(_hash(f"init/{seed:d}", 8), "little") >> 1)
        model.initialise(generator)
        return model.to(device)


@attrs.define(eq=False)
class BuiltGpt:
    """The model, its batches and its loss."""

    model: nn.Module
    corpus: Corpus = attrs.field(repr=False)
    seed: int
    device: torch.device
    shape: Shape
    vocab_size: int
    notice: str | None = None
    """For the user: about a setting that was given and is not used, or about the data."""
    item: str = attrs.field(default="tokens", init=False)
    items_per_batch: int = attrs.field(init=False)
    facts: dict[str, str | int | float] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.items_per_batch = self.shape.batch_size * self.shape.block_size
        self.facts = _facts(self.corpus, self.model, self.vocab_size)
        self.facts["batch_size"] = self.shape.batch_size
        if self.notice:
            self.facts["notice"] = self.notice

    def batch(self, split: str, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Return token ids and their successors, each int64 (batch_size, block_size).

        The sequences begin at random places of ``split`` ("train" or "val"), a pure function of
        (seed, split, step, micro): no generator is kept, so that there is no state to save, and
        runs that differ in anything else see the same batches.
        """
        tokens = self.corpus.split(split)
        length = self.shape.block_size
        key = f"batch/{self.seed:d}/{split}/{step:d}/{micro:d}"
        count = self.shape.batch_size
        starts = [
            place % (tokens.numel() - length)
            for place in struct.unpack(f"<{count}Q", _hash(key, 8 * count))
        ]
        with torch.device("cpu"):
            rows = [tokens[start : start + length + 1] for start in starts]
        block = unsigned(torch.stack(rows))
        if not self.corpus.complete:
            # Before the GPU meets them, where a bad index would end the process.
            least, largest = block.aminmax()
            if least < 0:
                raise BadInput(f"{self.corpus.source} holds no token ids: {int(least)}", key=KEY)
            _check_ids(self.corpus, int(largest), self.vocab_size)
        if self.device.type == "cuda":
            block = block.pin_memory().to(self.device, non_blocking=True)
        else:
            block = block.to(self.device)
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def items(self, batch: tuple[Tensor, Tensor]) -> int:
        """Return how many tokens a batch predicts."""
        return batch[1].numel()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross entropy of ``model`` on a batch: a scalar, in nats a token.

        It is computed in float32, whatever the type of the logits.
        """
        inputs, targets = batch
        logits = model(inputs)
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def _vocabulary(corpus: Corpus, given: int | None) -> tuple[int, str | None]:
    """Return how many ids the model knows, and what is to be said about it.

    GPT-2's 50257 mean its BPE vocabulary: over bytes nearly all of them would never occur.
    """
    if given == BIN_VOCAB and corpus.is_bytes:
        return corpus.vocab_size, (
            f"gpt.vocab_size {given} is a BPE vocabulary, and {corpus.source} is read as bytes: "
            f"{corpus.vocab_size} ids are used (a folder with train.bin and val.bin as data, or a "
            "gpt.tokenizer, brings the others)"
        )
    if given is None and corpus.vocab_reason:
        return corpus.vocab_size, f"gpt.vocab_size is {corpus.vocab_size}: {corpus.vocab_reason}"
    return given or corpus.vocab_size, None


def _check_ids(corpus: Corpus, largest: int, vocab_size: int) -> None:
    if largest >= vocab_size:
        raise BadInput(
            f"{vocab_size} is too small for {corpus.source}, which has token id "
            f"{largest}: at least {largest + 1} is needed",
            key="gpt.vocab_size",
        )


def _facts(corpus: Corpus, model: nn.Module, vocab_size: int) -> dict[str, str | int | float]:
    """Return what the record says of the data and the model; entropy in nats a token.

    The entropy is of the training split: the loss that the frequencies of tokens alone can reach.
    """
    facts: dict[str, str | int | float] = {"corpus": corpus.description}
    for split in ("train", "val"):
        facts[f"{split}_files"] = corpus.files[split]
        facts[f"{split}_bytes"] = corpus.size_in_bytes(split)
        facts[f"{split}_tokens"] = corpus.split(split).numel()
    facts["sha256"] = corpus.sha256
    facts["unigram_entropy"] = corpus.unigram_entropy()
    facts["vocab_size"] = vocab_size
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    return facts


def _hash(key: str, length: int) -> bytes:
    """Return ``length`` bytes that depend on nothing but the key, on every machine."""
    return hashlib.shake_128(f"altcore-gpt/{key}".encode()).digest(length)
