"""The files of token ids in nanoGPT's folders: train.bin and val.bin, of uint16 or uint32."""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path

import attrs
import torch
from torch import Tensor

from altcore.plugin import BadInput

KEY = "gpt.data"
BIN_VOCAB = 50257  # of GPT-2's tokenizer, which nanoGPT's folders usually hold
BIN_IDS = 1 << 16
UPPER_HALVES = 16  # of a uint32 id: no tokenizer has more ids than these tell apart
LARGEST_IDS = UPPER_HALVES * BIN_IDS
TYPES = {"uint16": torch.int16, "uint32": torch.int32}
"""What torch reads ids as, by the type that files hold."""
FEWEST_BYTES = 64
"""What a file holds is not told by fewer."""
VOCAB_STEP = 64  # products of sizes that it divides are faster
BLOCK = 1 << 20  # bytes read at a time, of whole tokens
SURVEY_BLOCKS = 64


@attrs.frozen(eq=False)
class TokenFile:
    """The ids of a .bin file, read from the disk when a slice of them is asked for.

    With a memory map, SIGBUS would end the process if the file were shortened.
    """

    path: Path
    dtype: torch.dtype
    size: int
    """How many ids it had when it was opened."""
    stream: FileIO = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "stream", FileIO(self.path))
        weakref.finalize(self, self.stream.close)

    def numel(self) -> int:
        """Return how many ids it has."""
        return self.size

    def element_size(self) -> int:
        """Return how many bytes an id has."""
        return self.dtype.itemsize

    def __getitem__(self, part: slice) -> Tensor:
        """Return consecutive ids, 1-D; BadInput if the file has become too short for them."""
        start, stop, _ = part.indices(self.size)
        width = self.element_size()
        held = bytearray(os.pread(self.stream.fileno(), (stop - start) * width, start * width))
        if len(held) < (stop - start) * width:
            raise BadInput(
                f"{self.path} was shortened while it was in use: it had {self.size} token ids",
                key=KEY,
            )
        return torch.frombuffer(held, dtype=self.dtype)


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


def id_type(files: Sequence[Path], given: str | None = None) -> torch.dtype:
    """Return int16 for files of uint16 ids, int32 for those of uint32, which all of them must be.

    Raises BadInput if they differ, or if what they hold can be read as either; ``given``, the name
    of a type, is believed.
    """
    if given is not None:
        return TYPES[given]
    found = {file: kind for file in files if (kind := _kind_of(file))}
    if len(set(found.values())) > 1:
        told = " and ".join(f"{file.name} holds {kind}" for file, kind in found.items())
        raise BadInput(f"in {files[0].parent} {told} ids", key=KEY)
    return TYPES[next(iter(found.values()), "uint16")]


def _kind_of(file: Path) -> str | None:
    """Return the type of a file's ids; None if it holds too few to tell.

    Of uint32 every second half is the upper one, which is small and may be 0, unlike the lower
    ones. If one is not 0, they may also be uint16 numbers that come in pairs. Then a first number
    has several second ones: of uint32, that would be two ids that differ by a multiple of 65536.
    """
    kinds = set()
    seen = torch.zeros(LARGEST_IDS, dtype=torch.bool)
    is_every_second_0 = True
    for block in sampled(file, size_of(file, 2)):
        if len(block) < FEWEST_BYTES:
            continue
        whole = bytearray(block[: len(block) // 8 * 8])
        lower, upper = unsigned(torch.frombuffer(whole, dtype=torch.int16)).view(-1, 2).T
        most, top = int(upper.max()), int(lower.max())
        if most >= UPPER_HALVES:
            kinds.add("uint16")
        elif most == 0 < top or (most < UPPER_HALVES <= top and not upper.all()):
            kinds.add("uint32")
            ids = lower + BIN_IDS * upper
            seen[ids] = True
            is_every_second_0 &= not ids[1::2].any()
        elif most:
            kinds.add("uint16")
    if len(kinds) > 1 or (kinds == {"uint32"} and is_every_second_0):
        raise BadInput(f"{file} holds neither uint16 nor uint32 token ids", key=KEY)
    if int(seen.view(UPPER_HALVES, BIN_IDS).sum(0).max()) > 1:
        raise BadInput(
            f"{file} holds uint32 ids, or pairs of uint16 ones",
            key=KEY,
            hint="say which by gpt.token_type, uint32 or uint16",
        )
    return next(iter(kinds), None)


def is_whole(size: int) -> bool:
    """Return whether `survey` reads all of a file of ``size`` bytes."""
    return size <= BLOCK * SURVEY_BLOCKS


def sampled(file: Path, size: int) -> Iterator[bytes]:
    """Yield the blocks of a file; of one that is larger than 64 MiB, as many evenly spaced ones.

    The first and the last block are among them; a file of many GiB would take minutes to read.
    """
    blocks = -(-size // BLOCK)
    wanted = min(blocks, SURVEY_BLOCKS)
    with file.open("rb") as stream:
        for i in range(wanted):
            stream.seek(i * (blocks - 1) // max(wanted - 1, 1) * BLOCK)
            yield stream.read(BLOCK)


def survey(file: Path, size: int, dtype: torch.dtype, update: Callable[[bytes], object]) -> Tensor:
    """Count the ids of a .bin file, and digest it, by 64 evenly spaced MiB if it is larger."""
    known = BIN_IDS if dtype == torch.int16 else LARGEST_IDS
    counts = torch.zeros(known, dtype=torch.int64)
    for block in sampled(file, size):
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
