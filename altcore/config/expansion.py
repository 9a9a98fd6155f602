"""Keys that stand for several: presets, and compound keys of the original experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import define, field

from altcore.config.assignments import Assignment, refuse_twice
from altcore.config.original_keys import checked_value, compound_keys
from altcore.config.presets import find_preset
from altcore.errors import BadInput, Source
from altcore.registry import entries

_NO_KEYS = ("plugins", "install")
"""Parts of a preset or compound key that are not keys with one value."""


@define
class Expansion:
    """The keys of a run after presets and compound keys have been replaced."""

    assignments: list[Assignment]
    """Later ones win."""
    implied: set[int]
    """Indices of the assignments that a preset or compound key stands for."""
    plugins: list[str]
    """Plugins that they add."""
    original: dict[str, Any]
    """The values of compound keys, for the record."""


def expand(given: Iterable[Assignment]) -> Expansion:
    """Replace presets and compound keys by the keys that they stand for.

    A value derived from one of them yields to a value that the same source gives by name, and
    wins over the file below. Raises `BadInput`.
    """
    work = _Expander()
    explicit = work.collect(list(given))
    for level in (0, 1):
        own = [a for a in work.implied if a.level == level]
        start = len(work.assignments)
        work.places.update(range(start, start + len(own)))
        work.assignments += [*own, *(a for a in explicit if a.level == level)]
    original = {key: a.value for key, a in work.compound.items()}
    return Expansion(work.assignments, work.places, work.plugins, original)


@define
class _Expander:
    compound: dict[str, Assignment] = field(factory=dict)
    implied: list[Assignment] = field(factory=list)
    plugins: list[str] = field(factory=list)
    assignments: list[Assignment] = field(factory=list)
    places: set[int] = field(factory=set)

    def collect(self, given: list[Assignment]) -> list[Assignment]:
        """Carry out presets and compound keys; returns the other assignments."""
        keys = {a.key for a in given} & compound_keys().keys()
        taken = {name for key in keys for name in compound_keys()[key].get("takes", ())}
        seen: dict[str, Source | None] = {}
        for a in given:
            if a.key in compound_keys() or a.key in taken:
                refuse_twice(a.key, a.source, seen)
                self.compound[a.key] = a._replace(value=checked_value(a))
        for a in given:
            if a.key == "preset":
                # A file's keys override a preset, even one given on the command line.
                self.imply(find_preset(a), a._replace(level=0), find_preset(a))
        for a in self.compound.values():
            meaning = compound_keys().get(a.key, {})
            for path in meaning.get("sets", ()):
                self.implied.append(a.standing_for(path, a.value, a.key))
            if isinstance(a.value, bool):
                self.imply(meaning.get(a.value, {}), a, meaning)
        return [a for a in given if a.key != "preset" and a.key not in self.compound]

    def imply(self, keys: Mapping[str, Any], given: Assignment, about: Mapping[Any, Any]) -> None:
        """Add the keys that an assignment stands for; ``about`` says what to install for them."""
        through = f"preset {given.value}" if given.key == "preset" else given.key
        for name in keys.get("plugins", ()):
            _check_installed(name, given, about)
            self.plugins += [] if name in self.plugins else [name]
        for key, value in keys.items():
            if isinstance(value, Mapping):
                self.implied += [
                    given.standing_for(f"{key}.{k}", v, through) for k, v in value.items()
                ]
            elif key not in _NO_KEYS:
                if key == "optimizer":
                    _check_installed(value, given, about)
                self.implied.append(self._referred(given, key, value, through, about))

    def _referred(
        self, given: Assignment, key: str, value: Any, through: str, about: Mapping[Any, Any]
    ) -> Assignment:
        """Return the assignment of ``value``, where ``=name`` is another compound key's value."""
        if not (isinstance(value, str) and value.startswith("=")):
            return given.standing_for(key, value, through)
        name = value[1:]
        other = self.compound.get(name, given._replace(value=about["takes"][name]))
        level = max(other.level, given.level)
        return other.standing_for(key, other.value, other.key)._replace(level=level)


def _check_installed(name: str, given: Assignment, about: Mapping[Any, Any]) -> None:
    if not any(e.name == name for e in entries()):
        raise BadInput(
            f"it needs {name}, which is not installed",
            key=given.key,
            part=given.value if given.key == "preset" else "",
            hint=f"pip install {about['install']}" if "install" in about else "",
            source=given.source,
        )
