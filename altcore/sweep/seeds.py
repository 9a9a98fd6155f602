"""The key ``seeds`` of a sweep file: how many seeds, or which ones."""

from __future__ import annotations

from typing import Any

from altcore.errors import BadInput, shown

HINT = "3 is three of them, [3] the seed 3"


def check_seeds(seeds: Any) -> None:
    """Raise `BadInput` unless these are a number of seeds, or a list of different ones."""
    listed = seeds if isinstance(seeds, list) else [seeds]
    if seeds is None or not listed or seeds == 0:
        raise BadInput("no seed is given", key="seeds", hint=HINT)
    for seed in listed:
        if isinstance(seed, str) and seed.strip().isdecimal():
            raise BadInput(f"{shown(seed)} is a text", key="seeds", hint="leave the quotes out")
        if type(seed) is not int:
            problem = f"a number of seeds, or a list of them, is needed, not {shown(seeds)}"
            raise BadInput(problem, key="seeds", hint=HINT)
        if not 0 <= seed < 2**63:
            raise BadInput(f"{shown(seed)} is not >= 0 and < 2**63", key="seeds", hint=HINT)
    if len(set(listed)) < len(listed):
        twice = next(seed for i, seed in enumerate(listed) if seed in listed[:i])
        raise BadInput(f"{twice} is given twice", key="seeds")


def count_seeds(seeds: int | list[int]) -> int:
    """Return how many seeds there are."""
    return seeds if isinstance(seeds, int) else len(seeds)


def seeds_from(seeds: int | list[int], first: int) -> list[int]:
    """Return the seeds; of a number of them, those from ``first`` on."""
    return [first + i for i in range(seeds)] if isinstance(seeds, int) else list(seeds)
