"""The datasets library of Hugging Face, whose errors say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from altcore.plugin import BadInput


@contextmanager
def datasets_library(data: str, *, extra: str, key: str, hint: str) -> Iterator[Any]:
    """Give the library to load ``data`` with.

    Raises `BadInput` of ``key``, if ``extra`` is not installed, and, ending in ``hint``, for
    whatever is raised within.
    """
    try:
        import datasets
    except ImportError as error:
        problem = f"{data} needs the datasets library: pip install 'altcore-workloads[{extra}]'"
        raise BadInput(problem, key=key) from error
    try:
        yield datasets
    # The library raises whatever those below it do: of HTTP, of the disk, of a parser.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{data} cannot be loaded: {reason}{hint}", key=key) from error
