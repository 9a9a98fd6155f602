"""What a process says when a message to the other ranks fails, and what they left in the store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from altcore.errors import LostRank, text_of

HINT = "; --resume goes on from the last checkpoint"
CLOSED = "Application timeout caused pair closure"
"""What gloo says of the next message after one that timed out, without its name."""


PATIENCE = timedelta(seconds=5)
"""For the word of a rank that was there a moment ago."""


def tell_error(store: Store, rank: int, error: BaseException) -> None:
    """Keep the error with which a rank leaves."""
    with suppress(RuntimeError):  # whoever holds the store is gone
        store.set(f"error/{rank}", f"{type(error).__name__}: {text_of(error)}")


def told_errors(store: Store, rank: int, world_size: int) -> Iterator[str]:
    """Yield the errors of the others."""
    with suppress(RuntimeError):  # whoever holds the store is gone
        for other in range(world_size):
            if other != rank and store.check([f"error/{other}"]):
                yield f"rank {other} failed: {store.get(f'error/{other}').decode()}"


def tell_end(store: Store, rank: int, error: str | None) -> None:
    """Keep that a rank comes to its end, and the error that it met there."""
    with suppress(RuntimeError):
        store.set(f"end/{rank}", error or "")


def told_ends(store: Store, rank: int, world_size: int, lost: LostRank) -> Iterator[str]:
    """Yield the errors that the others met at their end: ``lost`` for one that came to none."""
    for other in range(world_size):
        if other != rank:
            try:
                store.wait([f"end/{other}"], PATIENCE)
                error = store.get(f"end/{other}").decode()
            except RuntimeError:
                yield str(lost)
            else:
                yield from [f"rank {other} failed: {error}"] if error else ()


def is_of_messages(error: RuntimeError) -> bool:
    """Whether an error is of torch.distributed: a lost connection, or one that timed out."""
    text = text_of(error)
    return isinstance(error, dist.DistError) or "gloo" in text or CLOSED in text


def lost_rank(told: Sequence[str], error: RuntimeError) -> LostRank:
    """Return the error of a run that lost a rank, from the others' errors and the message's."""
    short = _short(error)
    what = "does not answer" if "Timed out" in short or CLOSED in short else "is gone"
    why = "; ".join(told) or f"another process of the run {what}: {short}"
    return LostRank(f"{why.removesuffix(HINT)}{HINT}")


def _short(error: RuntimeError) -> str:
    """Return what gloo says without the place in its source, and without its advice."""
    return re.sub(r"^\[[^]]*\] ", "", text_of(error)).partition(". This is")[0][:200]
