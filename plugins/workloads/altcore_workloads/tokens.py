"""Text as the ids of a tokenizer file, as the tokenizers library writes it (tokenizer.json)."""

from __future__ import annotations

import ctypes
import hashlib
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor

from altcore.plugin import BadInput, open_to_read
from altcore_workloads.bounded import ChildFailed, bounded
from altcore_workloads.data import SPLITS, Corpus
from altcore_workloads.token_files import BIN_IDS, LARGEST_IDS, unsigned

KEY = "gpt.tokenizer"
LARGEST_FILE = 1 << 28  # bytes; those of the largest vocabularies have some 35 MB
PIECE = 1 << 16  # characters that are encoded as one
BATCH = 32  # pieces that are encoded at a time, on all cores
MEMORY = 512  # bytes for a character of a batch; a token of each character takes 200
BREAK = re.compile(r"\n(?=\S)")
"""A text may be cut here: GPT-2's pretokenizer never joins a line's end with the next word.

Tokenizers that put a space before a text (Metaspace, ``add_prefix_space``) put one before each
piece: a token more or less every `PIECE` characters.
"""


def encode(
    corpus: Corpus, tokenizer: str, told: Callable[[float], None] = lambda share: None
) -> Corpus:
    """Return a corpus of bytes as the ids of a tokenizer file; BadInput if it cannot be.

    The library does its work in a process of its own: where a tokenizer makes much of a text, it
    ends that. ``told`` is called now and then with the share that is done.
    """
    if not corpus.is_bytes:
        raise BadInput(f"{corpus.source} holds token ids already: leave the tokenizer out", key=KEY)
    made_of = _read(tokenizer)
    pieces = {name: _pieces_of(corpus.split(name)) for name in SPLITS}
    longest = max((len(p) for own in pieces.values() for p in own), default=0)
    memory = MEMORY * max(BATCH * PIECE, longest)
    with closing(bounded(lambda: _encoded(made_of, pieces), memory)) as results:
        with _naming(f"{tokenizer} is not a tokenizer.json"):
            # Ids may have gaps: the largest one counts, not how many there are.
            size = int(next(results)) + 1
        if size > LARGEST_IDS:
            most = LARGEST_IDS - 1
            raise BadInput(f"{tokenizer} has the id {size - 1}: {most} is the most", key=KEY)
        with _naming(f"{tokenizer} cannot encode {corpus.source}"):
            tokens = _collect(results, pieces, size, told)
    digest = hashlib.sha256(corpus.sha256.encode())
    digest.update(made_of.encode())
    counts = torch.bincount(unsigned(tokens["train"]), minlength=size)
    return attrs.evolve(
        corpus,
        description=f"{corpus.description.removesuffix(', as bytes')}, as ids of "
        f"{Path(tokenizer).name} ({size})",
        train=tokens["train"],
        val=tokens["val"],
        sha256=digest.hexdigest(),
        counts=counts,
        largest_id=max((int(unsigned(t).max()) for t in tokens.values() if t.numel()), default=0),
        vocab_size=size,
    )


def _read(path: str) -> str:
    try:
        import tokenizers  # noqa: F401  # the child has it, too
    except ImportError as error:
        raise BadInput(
            "the tokenizers library is needed: pip install 'altcore-workloads[bpe]'",
            key=KEY,
        ) from error
    try:
        with open_to_read(Path(path).expanduser()) as stream:
            text = stream.read(LARGEST_FILE + 1).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"{path} cannot be read: {reason}", key=KEY) from error
    if len(text) > LARGEST_FILE:
        raise BadInput(f"{path} has more than {LARGEST_FILE >> 20} MiB: no tokenizer has", key=KEY)
    return text


@contextmanager
def _naming(problem: str) -> Iterator[None]:
    try:
        yield
    except ChildFailed as error:
        raise BadInput(f"{problem}: {error}", key=KEY) from error


def _encoded(made_of: str, pieces: dict[str, list[str]]) -> Iterator[bytes]:
    """Yield the largest id of a tokenizer, as text, and the ids of each batch, as 32 bits."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(made_of)
    made.no_padding()
    made.no_truncation()
    yield str(max(made.get_vocab(with_added_tokens=True).values(), default=0)).encode()
    for own in pieces.values():
        for batch in _batches(own):
            found = made.encode_batch(batch, add_special_tokens=False)
            yield array("I", (i for encoding in found for i in encoding.ids)).tobytes()


def _collect(
    results: Iterator[bytes],
    pieces: dict[str, list[str]],
    size: int,
    told: Callable[[float], None],
) -> dict[str, Tensor]:
    """Return the ids of each split: int16 if they fit into 16 bits, unsigned, otherwise int32."""
    dtype = torch.int16 if size <= BIN_IDS else torch.int32
    tokens = {}
    done, whole = 0, sum(len(p) for own in pieces.values() for p in own)
    for name, own in pieces.items():
        parts = [torch.empty(0, dtype=dtype)]
        for batch in _batches(own):
            if ids := bytearray(next(results)):
                parts.append(torch.frombuffer(ids, dtype=torch.int32).to(dtype))
            done += sum(map(len, batch))
            told(done / whole)
        tokens[name] = torch.cat(parts)
    return tokens


def _batches(pieces: list[str]) -> Iterator[list[str]]:
    return (pieces[i : i + BATCH] for i in range(0, len(pieces), BATCH))


def _pieces_of(tokens: Tensor) -> list[str]:
    """Return text that is given as bytes in pieces."""
    # Without numpy, which need not be installed, this is how bytes come out of a tensor at once.
    text = ctypes.string_at(tokens.data_ptr(), tokens.numel())
    # A split may begin and end within a character.
    return list(_pieces(text.decode("utf-8", "ignore")))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        cut = BREAK.search(text, start + PIECE)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
