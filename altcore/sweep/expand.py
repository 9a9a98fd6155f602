"""The jobs that a sweep file asks for: every variant with every combination of its grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from altcore.builtin_types import to_json
from altcore.config import Override, TrainConfig, load_with_sources
from altcore.errors import BadInput, keyed, located, shown
from altcore.formats import digest
from altcore.registry import HOOK_KINDS, NAMED_ONCE, find
from altcore.sweep.job import PRIORITY, Job
from altcore.sweep.ledger import Ledger
from altcore.sweep.naming import name_of
from altcore.sweep.retry_rules import check_halved
from altcore.sweep.seeds import count_seeds, seeds_from
from altcore.sweep.sweep_file import SweepFile, check_asks
from altcore.sweep.variant_keys import keys_of, replaced
from altcore.yaml_files import source_of

MOST_JOBS = 100_000
NOT_A_JOBS = ("name", "runs_dir", "label")
"""Keys that say where a run is: the sweep says it."""

Check = Callable[[TrainConfig], None]
GONE = object()
Leaf = tuple[str, ...]
"""The path of a value in a plain configuration."""


def check_nothing(_: TrainConfig) -> None:
    """Pass any configuration."""


def check_installed(config: TrainConfig) -> None:
    """Raise `BadInput` for a name that no distribution has. Nothing is imported for that."""
    for kind in NAMED_ONCE:
        with keyed(kind):
            find(getattr(config, kind), (kind,))
    for name in config.plugins:
        with keyed("plugins", name):
            find(name, HOOK_KINDS)


def jobs_of(
    sweep: SweepFile, check: Check = check_installed, *, only: str | None = None
) -> list[Job]:
    """Return the jobs, in the order of the file.

    Each value of the grid is checked once, with the first value of every other key: so a sweep of
    10,000 jobs is planned in seconds. Whatever is refused only together is found by its run.

    Args:
        sweep: the file.
        check: is called for each of these configurations, and may raise `BadInput`.
        only: the variant whose jobs are returned; None for all.

    Raises:
        BadInput: with the key, and the line of the sweep file.
    """
    check_asks(sweep)
    _check_count(sweep)
    for key, values in sweep.grid.items():
        if key in ("seed", *NOT_A_JOBS):
            told = "seeds have a key of their own" if key == "seed" else "the sweep names its runs"
            raise BadInput(told, key=f"grid.{key}")
        _check_different(key, values)
    taken: set[str] = set()
    variants = sweep.variant_names if only is None else [only]
    jobs = [job for variant in variants for job in _of_variant(sweep, variant, taken, check)]
    if only is None:
        check_halved(sweep.retry, jobs)
    return jobs


def planned(sweep: SweepFile, ledger: Ledger, check: Check = check_installed) -> list[Job]:
    """Return the jobs that a sweep should have: as `jobs_of` does, or those of a study's ledger."""
    return ledger.jobs() if sweep.study else jobs_of(sweep, check)


def _check_count(sweep: SweepFile) -> None:
    """Raise `BadInput` for more jobs than a sweep may have, before any of them is made."""
    sizes = {"seeds": count_seeds(sweep.seeds), "variants": len(sweep.variant_names)}
    sizes |= {f"grid.{key}": len(values) for key, values in sweep.grid.items()}
    if math.prod(sizes.values()) > MOST_JOBS:
        largest = max(sizes, key=lambda key: sizes[key])
        parts = [f"{size} {key}" for key, size in sizes.items() if size > 1]
        told = " x ".join(parts).replace(" grid.", " values of ")
        raise BadInput(f"{told}: a sweep has at most {MOST_JOBS} jobs", key=largest)


def _check_different(key: str, values: Sequence[Any]) -> None:
    seen = set()
    for i, value in enumerate(values):
        # 1 and 1.0 are the same value, 1 and "1" are not.
        known = value if isinstance(value, int | float | str) else digest(to_json(value))
        if known in seen:
            source = source_of(values, i)
            raise BadInput(f"{shown(value)} is given twice", key=f"grid.{key}", source=source)
        seen.add(known)


def _of_variant(sweep: SweepFile, variant: str, taken: set[str], check: Check) -> Iterator[Job]:
    own = keys_of(sweep, variant)
    axes = {key: list(values) for key, values in sweep.grid.items()}
    axes["seed"] = seeds_from(sweep.seeds, _plain(sweep, own)["seed"])
    at = {key: source_of(sweep.grid, key) for key in axes}
    own = replaced(own, [(key, values[0], at[key]) for key, values in axes.items()])
    point = _plain(sweep, own, check)
    changes = {
        (key, i): _difference(point, _plain(sweep, replaced(own, [(key, value, at[key])]), check))
        for key, values in axes.items()
        for i, value in enumerate(values)
    }
    is_apart = _are_apart(changes)
    for indices in itertools.product(*(range(len(values)) for values in axes.values())):
        chosen = dict(zip(axes, indices, strict=True))
        factors = {key: axes[key][i] for key, i in chosen.items()}
        if is_apart:
            config = point
            for pair in chosen.items():
                config = _changed(config, changes[pair])
        else:
            given = [(key, value, at[key]) for key, value in factors.items()]
            config = _plain(sweep, replaced(own, given))
        yield Job(
            name=name_of(variant, factors, taken),
            config={k: v for k, v in config.items() if k not in NOT_A_JOBS} | {"label": variant},
            factors=factors,
            variant=variant,
            priority=sweep.priority.get(variant, PRIORITY),
        )


def _plain(
    sweep: SweepFile, overrides: Sequence[Override], check: Check = check_nothing
) -> dict[str, Any]:
    config, sources = load_with_sources(sweep.config, overrides)
    for key in NOT_A_JOBS:
        # A configuration that a run wrote down has them, and they are of no matter.
        if key in sources and not ((at := sources[key]) and at.file == str(sweep.config)):
            raise BadInput("the sweep names its runs", key=key, source=at)
    with located(sources):
        check(config)
    return config.to_plain()


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[Leaf, Any]:
    """Return the leaves of ``other`` that ``one`` does not have so: settings, or whole keys.

    What ``other`` does not have is `GONE`, as the steps that follow from epochs.
    """
    found: dict[Leaf, Any] = {(key,): GONE for key in one if key not in other}
    found |= {
        (key,): value
        for key, value in other.items()
        if key != "settings" and one.get(key, GONE) != value
    }
    for owner, settings in other["settings"].items():
        before = one["settings"].get(owner, {})
        for name, value in settings.items():
            if name not in before or before[name] != value:
                found["settings", owner, name] = value
    for owner, settings in one["settings"].items():
        gone = settings.keys() - other["settings"].get(owner, {}).keys()
        found |= {("settings", owner, name): GONE for name in gone}
    return found


def _are_apart(changes: Mapping[tuple[str, int], Mapping[Leaf, Any]]) -> bool:
    """Return whether no two keys of the grid change the same value, and none takes one away.

    A value that takes settings away, such as another optimizer, says whose settings others are.
    """
    by_key: dict[str, set[Leaf]] = {}
    for (key, _), leaves in changes.items():
        if GONE in leaves.values():
            return False
        by_key.setdefault(key, set()).update(leaves)
    whole = sum(map(len, by_key.values()))
    return whole == len(set().union(*by_key.values()))


def _changed(config: Mapping[str, Any], leaves: Mapping[Leaf, Any]) -> dict[str, Any]:
    made = dict(config)
    for leaf, value in leaves.items():
        if len(leaf) == 1:
            made[leaf[0]] = value
        else:
            _, owner, name = leaf
            own = {**made["settings"].get(owner, {}), name: value}
            made["settings"] = {**made["settings"], owner: own}
    return made
