"""What a process says when a message to the other ranks fails, and what they left in the store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from attrs import asdict
from torch.distributed.distributed_c10d import Store

from altcore.errors import LostRank, text_of
from altcore.processes import Process, this_process

HINT = "; --resume goes on from the last checkpoint"
CLOSED = "Application timeout caused pair closure"
"""What gloo says of the next message after one that timed out, without its name."""


PATIENCE = timedelta(seconds=5)
"""For the word of a rank that was there a moment ago."""


def tell_process(store: Store, rank: int) -> None:
    """Keep which process a rank is."""
    store.set(f"process/{rank}", json.dumps(asdict(this_process())))


def tell_error(store: Store, rank: int, error: BaseException) -> None:
    """Keep the error with which a rank leaves."""
    with suppress(RuntimeError):  # whoever holds the store is gone
        store.set(f"error/{rank}", f"{type(error).__name__}: {text_of(error)}")


def told_errors(store: Store, rank: int, world_size: int) -> list[str]:
    """Return the errors of the others."""
    told = _of_others("error", store, rank, world_size)
    return [f"rank {other} failed: {error}" for other, error in told]


def tell_end(store: Store, rank: int, error: str | None) -> None:
    """Keep that a rank comes to its end, and the error that it met there."""
    with suppress(RuntimeError):
        store.set(f"end/{rank}", error or "")


def told_ends(store: Store, rank: int, world_size: int, lost: LostRank) -> list[str]:
    """Return the errors that the others met at their end: ``lost`` for one that came to none."""
    told = []
    for other in range(world_size):
        if other != rank:
            try:
                store.wait([f"end/{other}"], PATIENCE)
                error = store.get(f"end/{other}").decode()
            except RuntimeError:
                told.append(str(lost))
            else:
                told += [f"rank {other} failed: {error}"] if error else []
    return told


def is_of_messages(error: RuntimeError) -> bool:
    """Whether an error is of torch.distributed: a lost connection, or one that timed out."""
    text = text_of(error)
    return isinstance(error, dist.DistError) or "gloo" in text or CLOSED in text


def lost_rank_named(
    store: Store | None, rank: int, world_size: int, error: RuntimeError
) -> LostRank:
    """Return `lost_rank` with what the store, if there is one, has of the others."""
    if store is None:
        return lost_rank(error)
    told = told_errors(store, rank, world_size)
    processes = {
        other: Process(**json.loads(process))
        for other, process in _of_others("process", store, rank, world_size)
    }
    # The connections of a process are closed before it is seen to have ended.
    for _ in range(10):
        gone = [f"rank {other} (process {p.pid})" for other, p in processes.items() if p.is_gone()]
        if told or gone:
            break
        time.sleep(0.1)
    return lost_rank(error, told, gone)


def _of_others(key: str, store: Store, rank: int, world_size: int) -> Iterator[tuple[int, str]]:
    """Yield the other ranks that have told something, and that."""
    with suppress(RuntimeError):  # whoever holds the store is gone
        for other in range(world_size):
            if other != rank and store.check([f"{key}/{other}"]):
                yield other, store.get(f"{key}/{other}").decode()


def lost_rank(error: RuntimeError, told: Sequence[str] = (), gone: Sequence[str] = ()) -> LostRank:
    """Return the error of a run that lost a rank.

    Args:
        error: that of the message.
        told: the errors of the others.
        gone: the others whose processes have ended, as far as this machine sees them.
    """
    short = _short(error)
    is_late = not gone and ("Timed out" in short or CLOSED in short)
    what = "does not answer" if is_late else "are gone" if len(gone) > 1 else "is gone"
    who = " and ".join(gone) or "another process of the run"
    why = "; ".join(told) or f"{who} {what}: {short}"
    return LostRank(f"{why.removesuffix(HINT)}{HINT}")


def _short(error: RuntimeError) -> str:
    """Return what gloo says without the place in its source, and without its advice."""
    return re.sub(r"^\[[^]]*\] ", "", text_of(error)).partition(". This is")[0][:200]
