"""Write data once as a folder that every run opens at once: nanoGPT's train.bin and val.bin.

python -m altcore_workloads.prepare --data eurlex --tokenizer tokenizer.json --out eurlex-bpe
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from altcore.plugin import BadInput
from altcore_workloads.data import SPLITS, Corpus, load
from altcore_workloads.tokens import encode

HEARTBEAT = 10.0
"""Seconds between lines that say how far it is."""


def prepare(data: str | None, tokenizer: str, out: Path) -> Corpus:
    """Write ``data`` in the ids of a tokenizer file to ``out``; returns the corpus."""
    corpus = encode(load(data), tokenizer, heartbeat())
    if corpus.train.dtype != torch.int16:
        raise BadInput(f"{tokenizer}: {corpus.vocab_size} ids do not fit into 16 bits")
    out.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        tokens = corpus.split(name)
        (out / f"{name}.bin").write_bytes(ctypes.string_at(tokens.data_ptr(), 2 * tokens.numel()))
    return corpus


def heartbeat() -> Callable[[float], None]:
    """Return a function of the share that is done; it says it every ten seconds."""
    began = told = time.monotonic()

    def tell(share: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= HEARTBEAT and share > 0:
            told = now
            left = (now - began) * (1 - share) / share
            with suppress(OSError, ValueError):  # hours of work do not end for this line
                print(f"encoding: {share:.0%} done, about {left:.0f} s left", file=sys.stderr)

    return tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it, and say what was written; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="as gpt.data")
    parser.add_argument("--tokenizer", required=True, help="as gpt.tokenizer")
    parser.add_argument("--out", required=True, type=Path, help="the folder")
    given = parser.parse_args(arguments)
    try:
        corpus = prepare(given.data, given.tokenizer, given.out)
    except BadInput as error:
        print(f"altcore_workloads.prepare: {error}", file=sys.stderr)
        return 2
    sizes = ", ".join(f"{corpus.split(name).numel()} of {name}" for name in SPLITS)
    print(f"{given.out}: {corpus.description}; tokens: {sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
