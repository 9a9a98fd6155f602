"""The line of help of each plugin, as the README of its distribution has it.

The README is part of the metadata that pip installs, so that listing plugins imports none.
"""

from __future__ import annotations

import re

_NAMES = r"`[^`\n]+`(?:, *`[^`\n]+`)*"
_ROW = re.compile(rf"^ *\| *({_NAMES}) *\|(?P<cell>(?:\\.|[^|\\\n])+)\|", re.MULTILINE)
_ITEM = re.compile(rf"^ *[*-] +({_NAMES}) *: +(?P<cell>.+)$", re.MULTILINE)


def read_help(readme: str) -> dict[str, str]:
    r"""Return the help for each name that begins a table's row or an item of a list.

    The first one counts. Markdown's marks for code and links are taken out.

    >>> read_help("| `E*M*`, `E3M4` | [any](a.md) `ExMy` |\n\n- `agc`: clips\n")
    {'E*M*': 'any ExMy', 'E3M4': 'any ExMy', 'agc': 'clips'}
    """
    found: dict[str, str] = {}
    for match in (*_ROW.finditer(readme), *_ITEM.finditer(readme)):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match["cell"])
        for name in re.findall("`([^`]+)`", match[1]):
            found.setdefault(name, re.sub(r"\\(?=[|\\])|`", "", text).strip())
    return found
