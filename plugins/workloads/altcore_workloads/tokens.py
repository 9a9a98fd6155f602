"""Text as the ids of a tokenizer file, as the tokenizers library writes it (tokenizer.json)."""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from altcore.plugin import BadInput
from altcore_workloads.data import SPLITS, Corpus
from altcore_workloads.token_files import BIN_IDS, LARGEST_IDS, unsigned

KEY = "gpt.tokenizer"
LARGEST_FILE = 1 << 28  # bytes; those of the largest vocabularies have some 35 MB
PIECE = 1 << 16  # characters that are encoded as one
BATCH = 64  # pieces that are encoded at a time, on all cores
BREAK = re.compile(r"\n(?=\S)")
"""A text may be cut here: GPT-2's pretokenizer never joins a line's end with the next word."""


def encode(
    corpus: Corpus, tokenizer: str, told: Callable[[float], None] = lambda share: None
) -> Corpus:
    """Return a corpus of bytes as the ids of a tokenizer file; BadInput if it cannot be.

    ``told`` is called now and then with the share that is done.
    """
    if not corpus.is_bytes:
        raise BadInput(f"{corpus.source} holds token ids already: leave the tokenizer out", key=KEY)
    made = _load(tokenizer)
    # Ids may have gaps: the largest one counts, not how many there are.
    size = max(made.get_vocab(with_added_tokens=True).values(), default=0) + 1
    if size > LARGEST_IDS:
        raise BadInput(f"{tokenizer} has the id {size - 1}: {LARGEST_IDS - 1} is the most", key=KEY)
    tokens: dict[str, Tensor] = {}
    whole, done = sum(corpus.split(name).numel() for name in SPLITS), 0
    with _naming(f"{tokenizer} cannot encode {corpus.source}"):
        for name in SPLITS:
            parts = []
            for ids, characters in _encoded(made, corpus.split(name), size):
                parts.append(ids)
                done += characters
                told(done / max(1, whole))
            tokens[name] = torch.cat(parts)
    digest = hashlib.sha256(corpus.sha256.encode())
    digest.update(Path(tokenizer).expanduser().read_bytes())
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


def _load(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BadInput(
            "the tokenizers library is needed: pip install 'altcore-workloads[bpe]'",
            key=KEY,
        ) from error
    try:
        with Path(path).expanduser().open("rb") as stream:
            text = stream.read(LARGEST_FILE + 1).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"{path} cannot be read: {reason}", key=KEY) from error
    if len(text) > LARGEST_FILE:
        raise BadInput(f"{path} has more than {LARGEST_FILE >> 20} MiB: no tokenizer has", key=KEY)
    with _naming(f"{path} is not a tokenizer.json"):
        made = Tokenizer.from_str(text)
        made.no_padding()
        made.no_truncation()
    return made


@contextmanager
def _naming(problem: str) -> Iterator[None]:
    """Raise `BadInput` for whatever the library raises: plain exceptions, and panics of its Rust.

    A panic is no `Exception`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, BadInput):
        raise
    except BaseException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{problem}: {reason:.200}", key=KEY) from error


def _encoded(tokenizer: Any, tokens: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the ids of text that is given as bytes, and how many characters they are of.

    They are int16 if they fit into 16 bits, unsigned.
    """
    # Without numpy, which need not be installed, this is how bytes come out of a tensor at once.
    text = ctypes.string_at(tokens.data_ptr(), tokens.numel())
    dtype = torch.int16 if size <= BIN_IDS else torch.int32
    yield torch.empty(0, dtype=dtype), 0
    # A split may begin and end within a character.
    pieces = list(_pieces(text.decode("utf-8", "ignore")))
    for start in range(0, len(pieces), BATCH):
        batch = pieces[start : start + BATCH]
        found = tokenizer.encode_batch(batch, add_special_tokens=False)
        ids = [i for encoding in found for i in encoding.ids]
        yield torch.tensor(ids, dtype=torch.int32).to(dtype), sum(map(len, batch))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        cut = BREAK.search(text, start + PIECE)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
