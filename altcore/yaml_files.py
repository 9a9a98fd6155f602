"""YAML as altcore reads it: 6e-4 is a number, and a key given twice is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from altcore.errors import BadInput

SUFFIXES = (".yaml", ".yml")
"""The ends of the names of YAML files."""


class _Loader(yaml.SafeLoader):
    """YAML in which 6e-4 is a number and a key given twice is an error."""

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


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML strictly; `BadInput` naming ``where`` and the line."""
    try:
        # The loader is a SafeLoader; yaml.load with it makes plain data only.
        return yaml.load(text, Loader=_Loader)
    # PyYAML makes dates and numbers of what looks like them, and some are neither.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise BadInput(f"{where}{line}: not valid YAML: {problem}") from error


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML that `load_yaml` gives back; keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; `BadInput` naming the file otherwise."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadInput(f"{what} {path}: cannot be read: {reason}") from error
    data = load_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BadInput(f"{what} {path}: a mapping of keys to values is needed")
    return data
