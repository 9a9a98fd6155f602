"""YAML as altcore reads it: each value knows its line, 6e-4 is a number, no key comes twice.

12:00:00 is a text, as in YAML 1.2: to PyYAML it is the number 43200, and 12:00 is 720. So is
2026-11-28, a date to PyYAML, which no setting takes. So is 010, which is 8 to PyYAML, and 10 to
YAML 1.2.

Size, number of values and number of anchors are bounded: a few lines of anchors that stand for one
another can mean more values than any machine holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from altcore.durable import open_to_read
from altcore.errors import BadInput, Source, shown


class SourcedDict(dict[Any, Any]):
    """A mapping read from YAML, with its own source and that of each key."""

    def __init__(self, data: Any, source: Source, sources: dict[Any, Source]) -> None:
        super().__init__(data)
        self.source, self.sources = source, sources


class SourcedList(list[Any]):
    """A list read from YAML, with its own source and that of each item, by index."""

    def __init__(self, data: Any, source: Source, sources: dict[Any, Source]) -> None:
        super().__init__(data)
        self.source, self.sources = source, sources


_ITSELF = object()


def source_of(container: Any, key: Any = _ITSELF) -> Source | None:
    """Return where a key or item, or the mapping or list itself, was read from YAML."""
    if not isinstance(container, SourcedDict | SourcedList):
        return None
    return container.source if key is _ITSELF else container.sources.get(key)


def updated(mapping: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a copy of a mapping with some values changed, which keeps the sources."""
    made = {**mapping, **changes}
    if isinstance(mapping, SourcedDict):
        return SourcedDict(made, mapping.source, mapping.sources)
    return made


def without_sources(value: Any) -> Any:
    """Return plain dicts and lists for those read from YAML, at every depth."""
    if type(value) in (dict, SourcedDict):
        return {k: without_sources(v) for k, v in value.items()}
    if type(value) in (list, SourcedList):
        return [without_sources(v) for v in value]
    return tuple(map(without_sources, value)) if type(value) is tuple else value


SUFFIXES = (".yaml", ".yml")
"""The ends of the names of YAML files."""


LARGEST = 1 << 22
"""Bytes of a file, or characters of a flag's value."""
LONGEST = 1 << 16
"""Characters of a value."""
MOST_VALUES = 200_000
"""Values in a document, an alias counting as those that it stands for: three formats of 16 bits,
value by value, have fewer, and to read so many takes a second."""
_TOO_MANY = f"it has more than {MOST_VALUES} values"
MOST_ANCHORS = 1 << 10
DEEPEST = 500
"""Values within values that are counted: the loader refuses fewer."""


CParser: Any = None
"""The parser of libyaml, four times as fast as PyYAML's; a PyYAML may be built without it."""
with suppress(ImportError):
    CParser = import_module("yaml.cyaml").CParser

if TYPE_CHECKING or CParser is None:
    _Base = yaml.SafeLoader
else:

    class _Base(Composer, CParser, SafeConstructor, Resolver):
        """PyYAML's loader with the parser of libyaml, whose events are composed in Python."""

        def __init__(self, text):
            CParser.__init__(self, text)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)


class _Loader(_Base):
    source = Source()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.place: Any = None
        """The mark of the last value."""
        self.values = 0
        self.sizes: dict[str, int] = {}
        """Values that each anchor stands for."""

    # Called for each value, before anything is made of it.
    def compose_node(self, parent: Any, index: Any) -> Any:
        event, before = self.peek_event(), self.values  # type: ignore[no-untyped-call] # yaml's
        self.place = event.start_mark
        alias = event.anchor if isinstance(event, yaml.AliasEvent) else None
        node = super().compose_node(parent, index)
        self.values += 1 if alias is None else self.sizes.get(alias, 1)
        if alias is None and event.anchor is not None:
            self.sizes[event.anchor] = self.values - before
        problem = None
        if self.values > MOST_VALUES:
            problem = _TOO_MANY
        elif len(self.sizes) > MOST_ANCHORS:
            problem = f"it has more than {MOST_ANCHORS} anchors"
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
            problem = f"a value has more than {LONGEST} characters"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return node

    # Always at once, not in PyYAML's two steps: a value that holds itself is then refused.
    def construct_object(self, node: yaml.Node, deep: bool = True) -> Any:
        try:
            return super().construct_object(node, deep=True)
        except yaml.YAMLError:
            raise
        # PyYAML makes numbers, dates and more of texts that look like them, or that a tag calls
        # so, and raises whatever comes of it if they are none.
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _refused(node, error) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key if not isinstance(key, list | dict) else id(key_node))
        return super().construct_mapping(node, deep)

    def sourced_mapping(self, node: yaml.MappingNode) -> SourcedDict:
        data = self.construct_mapping(node, deep=True)
        keys = [(self.construct_object(k, deep=True), k) for k, _ in node.value]
        return SourcedDict(data, self._at(node), {key: self._at(k) for key, k in keys})

    def sourced_sequence(self, node: yaml.SequenceNode) -> SourcedList:
        items = self.construct_sequence(node, deep=True)
        sources = {i: self._at(item) for i, item in enumerate(node.value)}
        return SourcedList(items, self._at(node), sources)

    def _at(self, node: yaml.Node) -> Source:
        # A flag's text has a single line.
        if not self.source.file:
            return self.source
        return self.source._replace(line=node.start_mark.line + 1)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.sourced_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.sourced_sequence)


class _Dumper(yaml.SafeDumper):
    """YAML with lists of numbers in lines rather than one item a line."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: Any = None
    ) -> yaml.SequenceNode:
        is_numbers = any(type(x) is float for x in sequence)
        return super().represent_sequence(tag, sequence, flow_style=is_numbers or flow_style)


# 6e-4 is a number to the loader, so the dumper has to quote a text that looks like it.
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


# Before all others, of which the first that fits counts.
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers[_first].insert(
        0,
        (
            "tag:yaml.org,2002:str",
            re.compile(r"[-+]?(\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?|0[\d_]+)$"),
        ),
    )
    _Loader.yaml_implicit_resolvers[_first] = [
        one
        for one in _Loader.yaml_implicit_resolvers[_first]
        if one[0] != "tag:yaml.org,2002:timestamp"
    ]


def _refused(node: yaml.Node, error: Exception) -> yaml.YAMLError:
    """Return the error of a text that has not the type that it looks like, or is said to have."""
    if isinstance(error, RecursionError):
        problem = "it is nested too deeply"
    else:
        kind = node.tag.rpartition(":")[2]
        what = shown(node.value) if isinstance(node, yaml.ScalarNode) else "this"
        problem = f"{what} is {_NOT.get(kind, f'not a {kind}')}"
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_NOT = {
    "int": "not a whole number, or has too many digits",
    "float": "not a number",
    "bool": "neither true nor false",
    "timestamp": "not a date",
    "map": "not a mapping",
}


def is_yaml_file(given: Any) -> bool:
    """Whether something is given by the name of a YAML file."""
    return isinstance(given, str) and given.endswith(SUFFIXES)


def flow_parts(text: str) -> list[str]:
    """Split a text at its commas, but not within brackets and quotes, as a list in YAML.

    >>> flow_parts("a=1,b=[2,3],c={d: [4,5]},e='x,y',f=it's")
    ['a=1', 'b=[2,3]', 'c={d: [4,5]}', "e='x,y'", "f=it's"]
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        last = parts[-1][-1:]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and last in " =:,[{":
            quote = letter
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def load_yaml(text: str, source: Source, key: str = "") -> Any:
    """Parse YAML strictly.

    Args:
        text: one document; 6e-4 is a number in it.
        source: where the text was given.
        key: the key whose value it is, if it is one.

    Raises:
        BadInput: with the line, if it is not YAML, has a key twice, or is too large.
    """
    if len(text) > LARGEST:
        raise _not_yaml(_TOO_LARGE, key, source, 0)
    loader = None
    try:
        if len(text) > MOST_VALUES // 2:  # a value may take but one character
            _count_values(text)
        loader = _Loader(text)
        loader.source = source
        return loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n")
        problem = f"{error.reason}: {error.character:#x}"
        raise _not_yaml(problem, key, source, line) from error
    except UnicodeEncodeError as error:  # half of a character, in an argument that is no text
        problem = f"characters are not allowed: {ord(text[error.start]):#x}"
        raise _not_yaml(problem, key, source, text.count("\n", 0, error.start)) from error
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, str(error.problem)
        if problem == "but found another document":
            problem = "one document a file is needed, and here begins another"
        # What is missing at the end is missing after the last line that has text.
        last = text.rstrip().count("\n")
        raise _not_yaml(problem, key, source, min(mark.line, last) if mark else 0) from error
    except RecursionError as error:
        line = loader.place.line if loader and loader.place else 0
        raise _not_yaml("it is nested too deeply", key, source, line) from error


def _count_values(text: str) -> None:
    """Raise an error if a text has too many values, in a fifth of the time of making them."""
    parser = (CParser or yaml.SafeLoader)(text)
    values = depth = 0
    while depth <= DEEPEST and parser.check_event():
        event = parser.get_event()
        depth -= isinstance(event, yaml.CollectionEndEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        values += isinstance(event, yaml.NodeEvent)
        if values > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, _TOO_MANY, event.start_mark)


_TOO_LARGE = f"it has more than {LARGEST >> 20} MiB"


def _not_yaml(problem: str, key: str, source: Source, line: int) -> BadInput:
    at = source._replace(line=line + 1) if source.file else source
    return BadInput(f"not valid YAML: {problem}", key=key, source=at)


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML that `load_yaml` gives back; keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; ``what`` names its kind in messages.

    Raises:
        BadInput: if it cannot be read, or holds something else.
    """
    try:
        with open_to_read(path) as stream:
            data = stream.read(LARGEST + 1)
        text = "" if len(data) > LARGEST else data.decode()
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", key=what, part=str(path)) from error
    except UnicodeDecodeError as error:
        raise BadInput("cannot be read: it is not text", key=what, part=str(path)) from error
    except ValueError as error:
        raise BadInput("no file can have this name", key=what, part=shown(path)) from error
    if len(data) > LARGEST:
        raise _not_yaml(_TOO_LARGE, "", Source(str(path)), 0)
    held = load_yaml(text, Source(str(path)))
    if held is None:
        return SourcedDict({}, Source(str(path)), {})
    if not isinstance(held, dict):
        raise BadInput("a mapping of keys to values is needed", key=what, part=str(path))
    return held
