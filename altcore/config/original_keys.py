"""The flat keys of the original experiments, and presets: keys that stand for several.

What they mean is data, in original-keys.yaml and presets.yaml. Here it is only carried out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml
from attrs import define, field

from altcore.errors import BadInput, nearest
from altcore.registry import entries

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
RESERVED = ("plugins", "install")
"""Parts of a meaning or preset that are no keys with one value."""


class Given(NamedTuple):
    """A key as it was given."""

    key: str
    value: Any
    how: str
    """As messages say it: `` in FILE``, `` by --set``."""
    level: int
    """0 for the file, 1 for what goes before it."""


@cache
def _data(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((files("altcore.config") / name).read_text()))


def original_names() -> dict[str, str]:
    """Return the flat keys that are another key under another name, and that key."""
    return dict(_data("original-keys.yaml")["names"])


def meanings() -> dict[str, dict[Any, Any]]:
    """Return the flat keys that stand for several keys, and what each means."""
    return dict(_data("original-keys.yaml")["meanings"])


def presets() -> dict[str, dict[str, Any]]:
    """Return the presets, by name."""
    return dict(_data("presets.yaml"))


def notices(original: Mapping[str, Any]) -> list[str]:
    """Return what a run is told of flat keys that it was given."""
    said = {key: meaning.get("says") for key, meaning in meanings().items()}
    return [f"{key} {said[key]}" for key in original if said.get(key)]


@define
class Expanded:
    """What was given, flat keys and presets resolved."""

    pairs: list[Given]
    """What they come to, and what was given by its own name: later ones win."""
    implied: set[int]
    """Places of the former in ``pairs``."""
    plugins: list[str]
    """Plugins that they add."""
    original: dict[str, Any]
    """The values of flat keys, for the record."""


@define
class _Expansion:
    given: Sequence[Given]
    flat: dict[str, Given] = field(factory=dict)
    implied: list[Given] = field(factory=list)
    plugins: list[str] = field(factory=list)

    def collect(self) -> list[Given]:
        """Take the flat keys out of what was given; returns the rest."""
        present = {g.key for g in self.given}
        taken = {k for key in present & meanings().keys() for k in meanings()[key].get("takes", ())}
        rest: list[Given] = []
        once: dict[str, str] = {}
        for g in self.given:
            if g.key not in meanings() and g.key not in taken:
                rest.append(g)
                continue
            _once(g.key, g.how, once)
            self.flat[g.key] = g._replace(value=_checked(g))
        return rest

    def preset(self, g: Given) -> None:
        """Carry out a preset."""
        if not isinstance(g.value, str) or g.value not in presets():
            names = ", ".join(presets())
            raise BadInput(f"preset: {g.value!r} is none of {names}{nearest(g.value, presets())}")
        # Whoever asks for it, the file says more about its own run.
        self.imply(presets()[g.value], g._replace(level=0), presets()[g.value])

    def meaning(self, g: Given) -> None:
        """Carry out a flat key."""
        meaning = meanings().get(g.key, {})
        for path in meaning.get("sets", ()):
            self.implied.append(g._replace(key=path))
        if isinstance(g.value, bool):
            self.imply(meaning.get(g.value, {}), g, meaning)

    def imply(self, keys: Mapping[str, Any], g: Given, about: Mapping[Any, Any]) -> None:
        """Add keys that ``g`` stands for."""
        for name in keys.get("plugins", ()):
            _check_installed(name, g, about)
            self.plugins += [] if name in self.plugins else [name]
        for key, value in keys.items():
            if isinstance(value, Mapping):
                self.implied += [g._replace(key=f"{key}.{k}", value=v) for k, v in value.items()]
            elif key not in RESERVED:
                if key == "optimizer":
                    _check_installed(value, g, about)
                self.implied.append(self._referred(g, key, value, about))

    def _referred(self, g: Given, key: str, value: Any, about: Mapping[Any, Any]) -> Given:
        if not (isinstance(value, str) and value.startswith("=")):
            return g._replace(key=key, value=value)
        name = value[1:]
        other = self.flat.get(name, g._replace(value=about["takes"][name]))
        return other._replace(key=key, level=max(other.level, g.level))


def expand(given: Iterable[Given]) -> Expanded:
    """Resolve flat keys and presets.

    What one comes to is weaker than what its own source gives by name, and stronger than what
    the file below says. Raises `BadInput`.
    """
    work = _Expansion(list(given))
    rest = work.collect()
    for g in rest:
        if g.key == "preset":
            work.preset(g)
    for g in work.flat.values():
        work.meaning(g)
    explicit = [g for g in rest if g.key != "preset"]
    pairs: list[Given] = []
    implied: set[int] = set()
    for level in (0, 1):
        own = [g for g in work.implied if g.level == level]
        implied.update(range(len(pairs), len(pairs) + len(own)))
        pairs += [*own, *(g for g in explicit if g.level == level)]
    return Expanded(pairs, implied, work.plugins, {k: g.value for k, g in work.flat.items()})


def merge(
    expanded: Expanded, default: Mapping[str, str], keys: Collection[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, str], set[str]]:
    """Return keys, settings by owner, where each was given, and which settings were implied.

    ``default`` are the workload and optimizer of a run that names none, ``keys`` all that there
    are. Raises `BadInput` for what is given twice.
    """
    last = {g.key: g.value for g in expanded.pairs}
    active = {k: str(last.get(k, v)) for k, v in default.items()}
    merged: dict[str, Any] = dict(default)
    owners: dict[str, dict[str, Any]] = {}
    given_in: dict[str, str] = {}
    explicit: dict[str, str] = {}
    implied: set[str] = set()
    for place, (key, value, how, _) in enumerate(expanded.pairs):
        for path, leaf in flatten(longer(key, default, active), value, how, keys):
            if place in expanded.implied:
                implied.update([path] if "." in path else [])
            else:
                _once(path, how, explicit)
                implied.discard(path)
            given_in[path] = how
            owner, dot, rest = path.partition(".")
            if not dot:
                merged[path] = leaf
            else:
                owners.setdefault(owner, {}).update({rest: leaf} if rest else {})
    return merged, owners, given_in, implied


def _once(path: str, how: str, explicit: dict[str, str]) -> None:
    if explicit.get(path) == how:
        raise BadInput(f"{path}{how} is given twice")
    if how.startswith(" by") and explicit.get(path, "").startswith(" by"):
        raise BadInput(f"{path} is given twice on the command line")
    explicit[path] = how


def longer(key: str, default: Mapping[str, str], active: Mapping[str, str]) -> str:
    """Return the key that ``key`` is short for.

    A flat key of the ``default`` workload or optimizer is one of the ``active`` workload or
    optimizer.
    """
    path = {**original_names(), "data": f"{default['workload']}.data"}.get(key)
    if path is None:
        return key
    owner, dot, rest = path.partition(".")
    renamed = {default[kind]: active[kind] for kind in default}
    return f"{renamed.get(owner, owner)}.{rest}" if dot else path


def flatten(key: str, value: Any, how: str, keys: Collection[str]) -> list[tuple[str, Any]]:
    """Return (key, value) or (NAME.setting, value) pairs for one given key.

    ``NAME.`` with no setting stands for an empty mapping of NAME's.
    """
    owner, _, rest = key.partition(".")
    if owner == "settings":
        if not rest and not isinstance(value, Mapping):
            raise BadInput(f"settings{how}: a mapping of names to settings is needed")
        if not rest:
            return [p for name, v in value.items() for p in flatten(f"{name}.", v, how, keys)]
        owner, _, rest = rest.partition(".")
    if rest:
        return [(f"{owner}.{rest}", value)]
    if isinstance(value, Mapping) and (key != owner or owner not in keys):
        return [(f"{owner}.{k}", v) for k, v in value.items()] or [(f"{owner}.", None)]
    if key.endswith("."):
        raise BadInput(f"{owner}{how}: a mapping of settings is needed, not {value!r}")
    return [(owner, value)]


def _checked(g: Given) -> Any:
    """Return a flat key's value if it has the type of its default."""
    if g.key not in meanings():
        return g.value
    kind = type(meanings()[g.key]["default"])
    if kind is float and type(g.value) is int:
        return float(g.value)
    if type(g.value) is not kind:
        raise BadInput(f"{g.key}{g.how}: {g.value!r} is not {WORDS[kind]}")
    return g.value


def _check_installed(name: str, g: Given, about: Mapping[Any, Any]) -> None:
    if not any(e.name == name for e in entries()):
        given = f"{g.key}: {g.value}" if g.key == "preset" else g.key
        what = f": pip install {about['install']}" if "install" in about else ""
        raise BadInput(f"{given}{g.how} needs {name}, which is not installed{what}")
