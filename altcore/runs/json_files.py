"""Reading a JSON file of a run: whatever is in it, the error names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from altcore import durable
from altcore.errors import BadInput, UnreadableFile, shown

LARGEST = 1 << 28
"""Bytes of a file that is read."""


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
