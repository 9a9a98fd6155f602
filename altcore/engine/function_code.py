"""The code of a function, by which two processes tell whether they have the same one."""

from __future__ import annotations

import inspect
import marshal
from functools import partial
from hashlib import sha256
from types import CodeType, FunctionType, MethodType
from typing import Any


def code_digest(function: Any) -> str | None:
    """Return the digest of a function's code, without its place; None of what has no code.

    It may be a method, partial or decorated, or an object that can be called. Neither arguments nor
    variables are in it: a rank may have its own, as its number or its device.
    """
    while isinstance(function, partial):
        function = function.func
    if callable(function) and not isinstance(function, FunctionType | MethodType):
        function = type(function).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return digest_of(code) if code else None


def digest_of(code: CodeType) -> str:
    """Return the digest of code, without its place."""
    # Version 2 of marshal writes the same for the same code.
    return sha256(marshal.dumps(_placeless(code), 2)).hexdigest()


def _placeless(code: CodeType) -> CodeType:
    consts = tuple(_placeless(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    nowhere: dict[str, Any] = {"co_filename": "", "co_firstlineno": 0, "co_linetable": b""}
    return code.replace(co_consts=consts, **nowhere)
