"""The configuration keys of a variant: its own, and those of the base that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from altcore.config import Override, active_of, defaults, full_name, in_full
from altcore.errors import BadInput, Source
from altcore.sweep.sweep_file import SweepFile
from altcore.yaml_files import source_of

Places = dict[str, tuple[str, Source | None]]
"""By key: which part of the sweep file gives it, and in which line."""


def keys_of(sweep: SweepFile, variant: str) -> list[Override]:
    """Return the keys of a variant, and those of the base that it leaves.

    Raises:
        BadInput: for a key that the grid or the seeds give, too: one value would never be run.
    """
    unused = _unused(sweep, variant)
    base = [o for o in in_full(_overrides(sweep.base)) if o[0].partition(".")[0] not in unused]
    own = [*in_full(_overrides(sweep.variants.get(variant, {})))]
    axes = [[(k, v, source_of(sweep.grid, k)) for v in values] for k, values in sweep.grid.items()]
    first = [points[0] for points in axes]
    active = active_of(sweep.config, replaced(replaced(base, own), first))
    full = partial(full_name, active=active)
    given: Places = {"seed": ("seeds", None)} if isinstance(sweep.seeds, list) else {}
    for points in axes:
        _note(f"grid.{points[0][0]}", {full(path): at for path, _, at in in_full(points)}, given)
    for what, keys in (("base", base), (f"variants.{variant}", own)):
        places = {full(path): at for path, _, at in keys}
        _note(what, {path: at for path, at in places.items() if path in given}, given)
    return replaced(base, own, full)


def replaced(
    first: Sequence[Override],
    then: Sequence[Override],
    full: Callable[[str], str] = lambda key: key,
) -> list[Override]:
    """Return both, without those of the first whose key, in ``full``, the second have."""
    keys = {full(key) for key, _, _ in then}
    return [*(o for o in first if full(o[0]) not in keys), *then]


def _note(what: str, places: Mapping[str, Source | None], given: Places) -> None:
    """Note in ``given`` what gives a key; `BadInput` if something else does already."""
    for path, at in places.items():
        if path in given:
            both = (given[path], (what, at))
            one, two = (f"{name} ({source.place})" if source else name for name, source in both)
            raise BadInput(f"{one} and {two} both give it", key=path, hint="keep one of them")
        given[path] = (what, at)


def _overrides(keys: Mapping[str, Any]) -> list[Override]:
    return [(key, value, source_of(keys, key)) for key, value in keys.items()]


def _unused(sweep: SweepFile, variant: str) -> set[str]:
    """Return the optimizers and workloads of other variants: settings in ``base`` are for those."""
    unused: set[str] = set()
    for kind in ("optimizer", "workload"):
        first = sweep.base.get(kind, defaults()[kind])
        chosen = {name: keys.get(kind, first) for name, keys in sweep.variants.items()}
        unused |= {str(name) for name in chosen.values()} - {str(chosen.get(variant, first))}
    return unused
