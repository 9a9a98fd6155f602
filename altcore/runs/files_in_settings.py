"""The files that settings name, at any depth of their values, and what these files hold."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from altcore.errors import BadInput
from altcore.runs.digests import Stamp, contents, named_paths, shares, stamps

Named = dict[str, dict[str, str]]
"""By setting, as ``gpt.data``, the texts that name files, each by its place: ``gpt.data[1]``."""


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value that hold no others, each by its place.

    >>> [*leaves("a", {"b": [1, {"c": 2}], "d": []})]
    [('a.b[0]', 1), ('a.b[1].c', 2), ('a.d', [])]
    """
    if value and isinstance(value, Mapping):
        parts = ((f"{key}.{name}", part) for name, part in value.items())
    elif value and isinstance(value, list | tuple | set | frozenset):
        held = members(value) if isinstance(value, set | frozenset) else value
        parts = ((f"{key}[{i}]", part) for i, part in enumerate(held))
    else:
        yield key, value
        return
    for name, part in parts:
        yield from leaves(name, part)


def members(value: Collection[Any]) -> list[str]:
    """Return the members of a set as text, in an order that every process has."""
    return sorted(os.fspath(v) if isinstance(v, str | os.PathLike) else repr(v) for v in value)


def by_owner(nested: Any) -> dict[str, Any]:
    """Return ``{"gpt": {"size": "tiny"}}`` as ``{"gpt.size": "tiny"}``, one level deep."""
    if not isinstance(nested, Mapping):
        return {}
    return {
        f"{owner}.{key}": value
        for owner, own in nested.items()
        if isinstance(own, Mapping)
        for key, value in own.items()
    }


def paths_among(settings: Mapping[str, Any]) -> set[str]:
    """Return the places of settings that hold paths by their type."""
    found = (leaf for key, value in by_owner(settings).items() for leaf in leaves(key, value))
    return {place for place, value in found if isinstance(value, os.PathLike)}


def named_files(settings: Mapping[str, Any], surely: Collection[str] = ()) -> Named:
    """Return the texts in settings that name a file or a folder, or several by a pattern.

    Args:
        settings: by owner.
        surely: the places of paths. Elsewhere a bare word, or no more than dots and slashes, names
            a file only in a setting ``data``.
    """
    found: Named = {}
    for key, value in by_owner(settings).items():
        for place, text in leaves(key, value):
            if not isinstance(text, str):
                continue
            is_like_one = bool({"/", "."} & {*text}) and bool(text.strip("./"))
            is_path = is_like_one or key.endswith(".data") or place in surely
            if is_path and named_paths(text):
                found.setdefault(key, {})[place] = text
    return found


def stamps_of_files(named: Named) -> dict[str, Stamp]:
    """Return by what a change of the files is noticed soon, by path, as `stamps` does."""
    texts = {text: None for own in named.values() for text in own.values()}
    return stamps(path for text in texts for path in named_paths(text))


def file_digests(named: Named) -> dict[str, str]:
    """Return the digest of what each text names, by its place.

    Raises `BadInput` if a file cannot be read. The files of one setting share what is read of them.
    """
    found: dict[str, str] = {}
    for key, texts in named.items():
        place, groups = key, [named_paths(text) for text in texts.values()]
        try:
            for place, paths, blocks in zip(texts, groups, shares(groups), strict=True):
                found |= {place: contents(*paths, blocks=blocks)} if paths else {}
        except OSError as error:
            problem = f"{error.filename or texts.get(place)} cannot be read: {error.strerror}"
            raise BadInput(problem, key=place) from error
    return found
