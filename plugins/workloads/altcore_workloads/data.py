"""The sources of the tokens of the workload ``gpt``.

Text is taken as bytes, a token each, unless a tokenizer file is given; a nanoGPT folder brings its
own token ids. Only EUR-Lex is ever downloaded: without a path, the text is the source of the
running Python's standard library.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import os
import platform
import stat
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import attrs
import torch
from torch import Tensor

from altcore.plugin import BadInput
from altcore_workloads.eurlex import is_source, read
from altcore_workloads.splits import entropy
from altcore_workloads.token_files import (
    BLOCK,
    KEY,
    SURVEY_BLOCKS,
    TokenFile,
    id_type,
    is_whole,
    size_of,
    survey,
    vocabulary,
)

SPLITS = ("train", "val")
VAL_SHARE = 0.1
TEXT_VOCAB = 256

# Tests are a third of the library and repeat themselves; installed packages differ everywhere.
NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
# Written when Python is built: they would make the digest differ between equal versions.
BUILD_OUTPUT = ("config-", "_sysconfigdata")


@attrs.frozen(eq=False)
class Corpus:
    """The tokens of both splits, and what is known of them.

    ``train`` and ``val`` are 1-D: uint8 for bytes, int16 that holds unsigned ids for .bin files of
    uint16 and tokenizers, int32 for .bin files of uint32 and tokenizers of more than 65536 ids.
    Those of .bin files stay on the disk. ``counts`` says how often each id occurs in the training
    split, and ``largest_id`` is over both splits; both cover all tokens if ``complete``, else
    evenly spaced blocks.
    """

    source: str
    description: str
    train: Tensor | TokenFile
    val: Tensor | TokenFile
    files: dict[str, int]
    sha256: str
    counts: Tensor
    largest_id: int
    vocab_size: int
    complete: bool = True
    vocab_reason: str = ""
    """Where ``vocab_size`` comes from, if people may wonder."""

    @property
    def is_bytes(self) -> bool:
        """Whether a token is a byte of text."""
        return self.train.dtype == torch.uint8

    def split(self, name: str) -> Tensor | TokenFile:
        """Return the tokens of "train" or "val"; ValueError for another name."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}: it is 'train' or 'val'")
        return self.train if name == "train" else self.val

    def size_in_bytes(self, name: str) -> int:
        """Return how many bytes a split has."""
        tokens = self.split(name)
        return tokens.numel() * tokens.element_size()

    def validates_training(self) -> bool:
        """Return whether the splits are equal, as far as 64 evenly spaced blocks of each tell."""
        size = self.train.numel()
        if size != self.val.numel():
            return False
        starts = range(0, size, max(BLOCK, size // SURVEY_BLOCKS))
        parts = (slice(start, start + BLOCK) for start in starts)
        return all(torch.equal(self.train[part], self.val[part]) for part in parts)

    def unigram_entropy(self) -> float:
        """Return the entropy of the training split's token frequencies, in nats a token.

        It is the loss of a model that knows the frequencies and nothing of the context.
        """
        return entropy(self.counts)


def load(data: str | os.PathLike[str] | None, token_type: str | None = None) -> Corpus:
    """Return the corpus at a path, or the standard library's source for None.

    The path is a UTF-8 text file (first 90 % to train on, the rest to validate), a folder of them
    (about a tenth of the files validate), a folder with nanoGPT's train.bin and val.bin (uint16
    or uint32 ids, as ``token_type`` says or the files tell), or ``eurlex`` (see
    `altcore_workloads.eurlex`). Raises BadInput that names the path if there is nothing usable at
    it.
    """
    corpus = _load(data, token_type)
    if token_type is not None and corpus.is_bytes:
        raise BadInput(f"{corpus.source} is text, which has none", key="gpt.token_type")
    return corpus


def _load(data: str | os.PathLike[str] | None, token_type: str | None) -> Corpus:
    if data is None:
        return _standard_library()
    if not os.fspath(data):
        raise BadInput("empty; give a path, or null for Python's standard library", key=KEY)
    if is_source(os.fspath(data)):
        return text_corpus(*read(os.fspath(data)), {"train": 1, "val": 1})
    path = Path(data)
    try:
        path = path.expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{path} does not exist", key=KEY) from None
    except OSError as error:
        _refuse(error, path)
    except (ValueError, RuntimeError) as error:  # a null byte; the home of an unknown user
        raise BadInput(f"{str(path)!r} cannot be a path: {error}", key=KEY) from None
    try:
        if stat.S_ISDIR(mode):
            return _folder(path, token_type)
        if stat.S_ISREG(mode):
            return _text_file(path)
    except OSError as error:
        _refuse(error, path)
    raise BadInput(f"{path} is neither a regular file nor a folder", key=KEY)


def check_length(corpus: Corpus, block_size: int) -> None:
    """Raise BadInput unless each split has a sequence of block_size tokens and its targets."""
    for name in SPLITS:
        have = corpus.split(name).numel()
        if have <= block_size:
            raise BadInput(
                f"the {name} split of {corpus.source} has {have} tokens, and "
                f"gpt.block_size {block_size} needs at least {block_size + 1}: "
                "give more data or a smaller block_size",
                key=KEY,
            )


def _refuse(error: OSError, path: Path) -> NoReturn:
    """Turn what the system says about ``path``, or about a file in it, into BadInput."""
    raise BadInput(
        f"cannot read {error.filename or path}: {error.strerror or error}",
        key=KEY,
    ) from error


@functools.cache  # a sweep of many runs in one process reads it once
def _standard_library() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    texts: dict[str, bytes] = {}
    for path in _walk(root, keep_folder=_is_library, on_error=None):
        if path.suffix == ".py" and not path.name.startswith(BUILD_OUTPUT):
            try:
                texts[path.relative_to(root).as_posix()] = path.read_bytes()
            except OSError:
                continue  # nothing the user could mend; the digest tells
    texts = {name: text for name, text in texts.items() if text}
    if len(texts) < 2:
        raise BadInput(f"this Python has no library source in {root}; give a path to text", key=KEY)
    description = f"source of Python {platform.python_version()}'s standard library, as bytes"
    return _split_by_file(texts, "Python's standard library", description)


def _is_library(name: str) -> bool:
    return name not in NOT_LIBRARY and not name.startswith((*BUILD_OUTPUT, "__pycache__"))


def _folder(path: Path, token_type: str | None) -> Corpus:
    present = [name for name in SPLITS if os.path.lexists(path / f"{name}.bin")]
    if len(present) == 2:
        return _bin_folder(path, token_type)
    if present:
        missing = "val" if present == ["train"] else "train"
        raise BadInput(
            f"{path} has {present[0]}.bin but no {missing}.bin; both are needed", key=KEY
        )
    texts: dict[str, bytes] = {}
    # A file that is there and cannot be read is an error: leaving it out would change the data.
    for file in _walk(path, keep_folder=lambda name: True, on_error=_raise):
        if text := _read_text(file):
            texts[file.relative_to(path).as_posix()] = text
    if not texts:
        raise BadInput(
            f"{path} holds no text: UTF-8 files that are not hidden, "
            "or train.bin and val.bin, are needed",
            key=KEY,
        )
    count = f"{len(texts)} text files" if len(texts) > 1 else "1 text file"
    description = f"{count} in folder {path.resolve().name}, as bytes"
    if len(texts) == 1:
        return _split_within(next(iter(texts.values())), str(path), description)
    return _split_by_file(texts, str(path), description)


def _text_file(path: Path) -> Corpus:
    text = _read_text(path)
    if text is None:
        hint = ": for token ids, give the folder with train.bin and val.bin"
        raise BadInput(f"{path} is not UTF-8 text{hint if path.suffix == '.bin' else ''}", key=KEY)
    if not text:
        raise BadInput(f"{path} is empty", key=KEY)
    return _split_within(text, str(path), f"text file {path.name}, as bytes")


def _walk(
    root: Path,
    keep_folder: Callable[[str], bool],
    on_error: Callable[[OSError], object] | None,
) -> Iterator[Path]:
    """Yield the regular files below ``root`` that are not hidden, nor in a hidden folder.

    Links to files are followed, links to folders are not: they may lead round in circles.
    """
    for folder, names, files in os.walk(root, onerror=on_error):
        names[:] = [n for n in names if not n.startswith(".") and keep_folder(n)]
        for file in files:
            path = Path(folder, file)
            try:
                if not file.startswith(".") and stat.S_ISREG(path.stat().st_mode):
                    yield path
            except FileNotFoundError:
                continue  # a link to nothing
            except OSError as error:
                if on_error is not None:
                    on_error(error)


def _raise(error: OSError) -> NoReturn:
    raise error


def _read_text(path: Path) -> bytes | None:
    """Return a file's bytes, or None if they are not UTF-8 text."""
    with path.open("rb") as stream:
        text = stream.read(BLOCK)
        if b"\0" in text:
            return None  # without reading the rest: a binary file may be large
        text += stream.read()
    if b"\0" in text:
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    try:
        # In blocks, as the decoded string may need four times the memory.
        for start in range(0, len(text), BLOCK):
            decoder.decode(view[start : start + BLOCK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    return text


def _split_within(text: bytes, source: str, description: str) -> Corpus:
    cut = len(text) - int(len(text) * VAL_SHARE)
    halves = {"train": bytearray(text[:cut]), "val": bytearray(text[cut:])}
    return text_corpus(halves, source, description, {"train": 1, "val": 1})


def _split_by_file(texts: dict[str, bytes], source: str, description: str) -> Corpus:
    """Split two or more files by their names alone, so that no file moves when others come."""
    names = sorted(texts, key=lambda name: (_place(name), name))
    held_out = sum(_place(name) < VAL_SHARE for name in names)
    held_out = min(max(held_out, 1), len(names) - 1)
    parts = {"train": sorted(names[held_out:]), "val": sorted(names[:held_out])}
    # Without a separator the last line of a file would run into the first of the next.
    halves = {k: bytearray(b"\n").join(texts[n] for n in part) for k, part in parts.items()}
    return text_corpus(halves, source, description, {k: len(v) for k, v in parts.items()})


def _place(name: str) -> float:
    """Return a fixed pseudo-random place in [0, 1) for a relative path."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def text_corpus(
    halves: dict[str, bytearray], source: str, description: str, files: dict[str, int]
) -> Corpus:
    """Return the corpus whose tokens are the bytes of ``halves``."""
    digest = hashlib.sha256()
    tokens, counts = {}, {}
    for name, text in halves.items():
        digest.update(f"{name} {len(text)}\n".encode())
        digest.update(text)
        # frombuffer refuses an empty buffer
        tokens[name] = torch.frombuffer(text or bytearray(1), dtype=torch.uint8)[: len(text)]
        counts[name] = torch.bincount(tokens[name], minlength=TEXT_VOCAB)
    return Corpus(
        source=source,
        description=description,
        train=tokens["train"],
        val=tokens["val"],
        files=files,
        sha256=digest.hexdigest(),
        counts=counts["train"],
        largest_id=int((counts["train"] + counts["val"]).nonzero().max()),
        vocab_size=TEXT_VOCAB,
    )


def _bin_folder(path: Path, token_type: str | None) -> Corpus:
    digest = hashlib.sha256()
    tokens, counts = {}, {}
    complete = True
    dtype = id_type([path / f"{name}.bin" for name in SPLITS], token_type)
    for name in SPLITS:
        file = path / f"{name}.bin"
        size = size_of(file, dtype.itemsize)
        digest.update(f"{name} {size}\n".encode())
        counts[name] = survey(file, size, dtype, digest.update)
        complete &= is_whole(size)
        tokens[name] = TokenFile(file, dtype, size // dtype.itemsize)
    sampled = f"; digest and entropy from {SURVEY_BLOCKS} blocks of 1 MiB of each split"
    kind = "uint32" if dtype == torch.int32 else "uint16"
    description = f"{kind} token ids in folder {path.resolve().name}"
    largest = int((counts["train"] + counts["val"]).nonzero().max())
    vocab_size, why = vocabulary(largest, complete)
    return Corpus(
        source=str(path),
        description=description if complete else description + sampled,
        train=tokens["train"],
        val=tokens["val"],
        files={"train": 1, "val": 1},
        sha256=digest.hexdigest(),
        counts=counts["train"],
        largest_id=largest,
        vocab_size=vocab_size,
        complete=complete,
        vocab_reason=f"the ids of {path} reach {largest}, {why}",
    )
