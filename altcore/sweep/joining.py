"""Two mappings that were read from YAML, or typed, joined to one: the upper one wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from altcore.config import defaults, full_name, in_full
from altcore.errors import BadInput, Source
from altcore.yaml_files import SourcedDict, source_of


def joined(
    lower: Any, upper: Any, how: Mapping[Any, Callable[[Any, Any], Any]] | None = None
) -> Any:
    """Return one mapping of both, at every depth; ``upper`` if either is none.

    Args:
        lower: of whose values those stay that ``upper`` does not have.
        upper: whose values win.
        how: the function that joins the values of a key, unless they are joined so themselves.
    """
    if not (isinstance(lower, Mapping) and isinstance(upper, Mapping)):
        return upper
    within = {
        key: (how or {}).get(key, joined)(lower[key], upper[key]) for key in upper if key in lower
    }
    # Each key with the place that gave it last.
    places = {key: at for of in (lower, upper) for key in of if (at := source_of(of, key))}
    source = source_of(upper) or source_of(lower) or Source()
    return SourcedDict({**lower, **upper, **within}, source, places)


def joined_keys(lower: Any, upper: Any) -> Any:
    """Return the configuration keys of both, with a dotted key for each setting.

    Two spellings of a key, as ``batch_size`` and ``gpt.batch_size``, are one. The value of a key is
    replaced as a whole, also if it is a mapping, as a recipe.

    Raises:
        BadInput: if one of both gives a setting twice.
    """
    if not (isinstance(lower, Mapping) and isinstance(upper, Mapping)):
        return upper
    below, above = _dotted(lower), _dotted(upper)
    both = {**defaults(), **below, **above}
    active = {kind: str(both[kind]) for kind in ("workload", "optimizer")}
    given = {full_name(key, active) for key in above}
    kept = {key: value for key, value in below.items() if full_name(key, active) not in given}
    return joined(SourcedDict(kept, below.source, below.sources), above)


def joined_variants(lower: Any, upper: Any) -> Any:
    """Return the variants of both; of one that both have, the keys are joined."""
    return joined(
        lower, upper, dict.fromkeys(upper if isinstance(upper, Mapping) else (), joined_keys)
    )


def _dotted(keys: Mapping[str, Any]) -> SourcedDict:
    made: dict[str, Any] = {}
    places: dict[str, Source] = {}
    for key, value, at in in_full((k, v, source_of(keys, k)) for k, v in keys.items()):
        if key in made:
            raise BadInput("given twice", key=key, source=at)
        made[key] = value
        places |= {key: at} if at else {}
    return SourcedDict(made, source_of(keys) or Source(), places)
