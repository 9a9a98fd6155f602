"""What texts and images have in common: which items validate, and how even their kinds are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor

SAME_SPLITS = "the data that validate are those that train: validation tells nothing of other data"
"""What is said of two equal splits."""


def held_out(keys: Sequence[bytes], one_in: int) -> list[bool]:
    """Return for each item whether it validates, about one in so many, by the digest of its key.

    So no item moves when others come, and equal ones stay together. Of two different items or more
    at least one trains and at least one validates.
    """
    digests = [hashlib.blake2b(key, digest_size=8).digest() for key in keys]
    is_val = [int.from_bytes(digest, "little") % one_in == 0 for digest in digests]
    if len(set(is_val)) == 1:
        least = min(digests)
        is_val = [digest == least for digest in digests]
    return is_val


def entropy(counts: Tensor) -> float:
    """Return the entropy of frequencies, in nats an item.

    It is the loss of a model that knows the frequencies and nothing else.
    """
    share = counts[counts > 0].double() / counts.sum()
    return 0.0 - float((share * share.log()).sum())  # never -0.0
