"""What a process says when a message to the other ranks fails."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.distributed as dist

from altcore.errors import LostRank, text_of

HINT = "; --resume goes on from the last checkpoint"
CLOSED = "Application timeout caused pair closure"
"""What gloo says of the next message after one that timed out, without its name."""


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
