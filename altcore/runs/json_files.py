"""JSON files of runs and studies: read, with errors that name the file, and with a digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altcore import durable
from altcore.errors import BadInput, UnreadableFile, shown
from altcore.formats import digest

LARGEST = 1 << 28
"""Bytes of a file that is read."""
DIGEST = "digest"
"""The key with the SHA-256 of all others as canonical JSON, by which a change is found."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds, empty if there is no file.

    Raises:
        BadInput: naming the file, if it cannot be read or holds anything else.
    """
    try:
        found = json.loads(durable.read_file(path, LARGEST))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnreadableFile:  # a ValueError, too
        raise
    # Not text, not JSON, too many digits; too deep.
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} is not a mapping: it holds {shown(found)}")
    return found


def with_digest(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with their own digest.

    >>> is_as_written(with_digest({"a": 1}))
    True
    """
    return {**plain, DIGEST: digest(plain)}


def is_as_written(plain: Mapping[str, Any]) -> bool:
    """Return whether plain data match the digest in them; False if they have none."""
    return plain.get(DIGEST) == digest({k: v for k, v in plain.items() if k != DIGEST})
