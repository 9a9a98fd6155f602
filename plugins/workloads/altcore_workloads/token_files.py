"""The files of token ids in nanoGPT's folders: train.bin and val.bin, of uint16 or uint32."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from altcore.plugin import BadInput

KEY = "gpt.data"
BIN_VOCAB = 50257  # of GPT-2's tokenizer, which nanoGPT's folders usually hold
BIN_IDS = 1 << 16
LARGEST_IDS = 1 << 20  # more than any tokenizer has; the upper half of a uint32 id is below 16
VOCAB_STEP = 64  # products of sizes that it divides are faster
BLOCK = 1 << 20  # bytes read at a time, of whole tokens
SURVEY_BLOCKS = 64


def vocabulary(largest: int, complete: bool) -> tuple[int, str]:
    """Return the size of a vocabulary whose ids reach ``largest``, and why it is that.

    A larger id may be in the blocks that a survey, not being ``complete``, leaves out.

    >>> vocabulary(64, True), vocabulary(50256, True)[0], vocabulary(30000, False)[0]
    ((128, 'rounded up to a multiple of 64'), 50257, 32768)
    """
    needed = largest + 1
    size, why = -(-needed // VOCAB_STEP) * VOCAB_STEP, f"rounded up to a multiple of {VOCAB_STEP}"
    if not complete:
        size = max(size, 1 << (needed - 1).bit_length())
        why = "rounded up to a power of two, since not all were read"
    if needed <= BIN_VOCAB < size:
        return BIN_VOCAB, "as those of GPT-2's tokenizer do"
    return size, why


def size_of(file: Path, width: int) -> int:
    """Return a file's size in bytes; BadInput unless it holds ids of ``width`` bytes."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{file} is not a regular file", key=KEY)
    size = status.st_size
    if size == 0:
        raise BadInput(f"{file} is empty", key=KEY)
    if size % width:
        odd = "an odd number" if width == 2 else f"which {width} does not divide"
        needed = f"uint{8 * width} ids are needed"
        raise BadInput(f"{file} has {size} bytes, {odd}; {needed}", key=KEY)
    return size


def id_type(file: Path) -> torch.dtype:
    """Return int32 for a file of uint32 ids, int16 for one of uint16.

    In uint32 every second half is the upper one: often 0 and never large, unlike the lower ones.
    """
    with file.open("rb") as stream:
        block = stream.read(BLOCK)
    if len(block) < 64 or len(block) % 4:
        return torch.int16
    lower, upper = unsigned(torch.frombuffer(bytearray(block), dtype=torch.int16)).view(-1, 2).T
    most, top = int(upper.max()), int(lower.max())
    is_often_zero = 4 * int((upper == 0).sum()) >= len(upper)
    is_wide = most == 0 < top or most < LARGEST_IDS // BIN_IDS <= top
    return torch.int32 if is_often_zero and is_wide else torch.int16


def is_whole(size: int) -> bool:
    """Return whether `survey` reads all of a file of ``size`` bytes."""
    return size <= BLOCK * SURVEY_BLOCKS


def survey(file: Path, size: int, dtype: torch.dtype, update: Callable[[bytes], object]) -> Tensor:
    """Count the ids of a .bin file, and digest it, by 64 evenly spaced MiB if it is larger.

    The first and the last block are among them; a file of many GiB would take minutes to read.
    """
    blocks = -(-size // BLOCK)
    wanted = min(blocks, SURVEY_BLOCKS)
    known = BIN_IDS if dtype == torch.int16 else LARGEST_IDS
    counts = torch.zeros(known, dtype=torch.int64)
    with file.open("rb") as stream:
        for i in range(wanted):
            stream.seek(i * (blocks - 1) // max(wanted - 1, 1) * BLOCK)
            block = stream.read(BLOCK)
            update(block)
            ids = unsigned(torch.frombuffer(bytearray(block), dtype=dtype))
            if not 0 <= int(ids.min()) <= int(ids.max()) < known:
                raise BadInput(f"{file} holds neither uint16 nor uint32 token ids", key=KEY)
            counts += torch.bincount(ids, minlength=known)
    return counts


def unsigned(tokens: Tensor) -> Tensor:
    """Return tokens as int64 ids: an int16 holds an id from 0 to 65535, a uint8 its own value."""
    ids = tokens.long()
    return ids & 0xFFFF if tokens.dtype == torch.int16 else ids
