"""EUR-Lex, the laws of the European Union in English, through the datasets library.

``eurlex`` is the 65,000 documents of the LexGLUE benchmark (arXiv 2110.00976, CC BY 4.0), which
the library downloads once (about 200 MB) and keeps in its own cache. ``eurlex:PATH`` is a
JSON-lines file of the same shape, an object with a field ``text`` a line, and needs no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from altcore.plugin import BadInput
from altcore_workloads.datasets_library import datasets_library
from altcore_workloads.splits import held_out

NAME = "eurlex"
HUB = ("coastalcph/lex_glue", "eurlex")
FIELD = "text"
HELD_OUT = 10
"""One in so many documents validates, where the source brings no validation split."""


def is_source(data: str) -> bool:
    """Return whether ``data`` means EUR-Lex, and no path; a file of that name is ``./eurlex``."""
    return data == NAME or data.startswith(f"{NAME}:")


def read(data: str) -> tuple[dict[str, bytearray], str, str]:
    """Return the text of both splits, what messages call it, and what the record does.

    Documents are parted by an empty line. Raises BadInput that says what to do.
    """
    path = data.removeprefix(NAME).removeprefix(":")
    if data != NAME and not Path(path).expanduser().is_file():
        raise BadInput(f"{data}: {path or 'an empty path'} is not a file", key="gpt.data")
    found = _load(data, path)
    for split, rows in found.items():
        if FIELD not in rows.column_names:
            have = ", ".join(rows.column_names) or "none"
            raise BadInput(
                f"{data}: no field {FIELD!r} in its split {split}, but {have}", key="gpt.data"
            )
    train, val = _splits(found)
    if not train or not val:
        raise BadInput(f"{data}: two documents with text are needed", key="gpt.data")
    halves = {"train": bytearray(), "val": bytearray()}
    for split, texts in (("train", train), ("val", val)):
        halves[split] += "\n\n".join(texts).encode("utf-8", "replace")
    where = f" in {Path(path).name}" if path else f" of {HUB[0]}"
    return halves, data, f"EUR-Lex{where}, {len(train)} and {len(val)} documents, as bytes"


def _load(data: str, path: str) -> Mapping[str, Any]:
    """Return the splits, by name, as the datasets library gives them."""
    hint = "" if path else "; without a network, give eurlex:FILE.jsonl"
    found: Mapping[str, Any]
    with datasets_library(data, extra="eurlex", key="gpt.data", hint=hint) as datasets:
        if path:
            given = {"train": str(Path(path).expanduser())}
            found = datasets.load_dataset("json", data_files=given)
        else:
            found = datasets.load_dataset(*HUB)
    return found


def _splits(found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the documents that train and those that validate."""
    if "validation" in found:
        return _texts(found["train"]), _texts(found["validation"])
    texts = _texts(found["train"])
    is_val = held_out([t.encode("utf-8", "replace") for t in texts], HELD_OUT)
    train = [t for t, is_held in zip(texts, is_val, strict=True) if not is_held]
    return train, [t for t, is_held in zip(texts, is_val, strict=True) if is_held]


def _texts(rows: Mapping[str, Iterable[Any]]) -> list[str]:
    return [t for t in rows[FIELD] if isinstance(t, str) and t.strip()]
