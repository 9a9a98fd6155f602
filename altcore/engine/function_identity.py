"""What a function of the caller's own is known by, in any process: its code, and the values in it.

A value is known by numbers, text and tensors at a small depth, a module by the kinds of those in
it; anything else by the name of its class, so that a dataset or a connection that is made anew is
no other one.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Set
from enum import Enum
from functools import partial
from hashlib import sha256
from importlib.util import MAGIC_NUMBER
from typing import Any

import torch
from torch import Tensor, nn

from altcore.engine.batch_digests import PLAIN, batch_digest, is_array
from altcore.engine.called_state import parts_of
from altcore.engine.function_code import digest_of
from altcore.engine.hidden_state import is_no_state
from altcore.engine.module_kinds import kinds_of
from altcore.runs import CHANGES, CODE, DIGITS, VALUES

PLACE = re.compile(r".*[/\\].*|(cpu|cuda|mps|xpu)(:\d+)?", re.DOTALL)
"""Text that says where something is: a run may go on elsewhere."""
DEPTH, MOST = 2, 256
"""Levels of containers that are looked into, and parts of one of them."""
LARGE = 2**16
"""Elements of a tensor or an array; of a larger one some are looked at, evenly spaced."""
WORD = re.compile(r"[\w .-]{0,16}")
"""Text that a manifest shows; other text is known by its digest, since it may be a secret."""
LONGEST = 100
"""Letters of a value in a manifest; a longer one is known by its digest."""
OF_GLOBALS = (str, int, float, complex, torch.dtype, Tensor, nn.Module)
"""Globals that are compared: others are the program's, which does more than this function."""


def function_identity(function: Any, own: Container[int] = ()) -> dict[str, Any]:
    """Return what a function, or another object that can be called, is known by.

    Args:
        function: a method, partial, module or other object, too.
        own: ids and addresses of what the model has, which is known by itself.

    Returns:
        The digest of its code by the version of Python's bytecode, and its values by name: of
        variables in closures, defaults, bound arguments and attributes, and of some globals.
    """
    called = parts_of(function, own)
    codes = {f"{f.__qualname__} {digest_of(f.__code__)}" for f in called.functions}
    code = sha256("\n".join(sorted(codes | called.names)).encode()).hexdigest()
    owners = [(v.owner, v.name) for v in called.variables]
    bound = {(id(owner.func), name) for owner, name in owners if isinstance(owner, partial)}
    texts: dict[str, list[str]] = {}
    for name, value, owner, is_global in called.variables:
        if (id(owner), name) in bound:  # the default is not used
            continue
        is_others = is_global and (name.startswith("__") or not isinstance(value, OF_GLOBALS))
        if not (is_others or is_no_state(name, owner) or is_no_state(name, function)):
            texts.setdefault(name, []).append(_text(value))
    values = {
        name: CHANGES if name in called.sets else _short(", ".join(found))
        for name, found in texts.items()
    }
    return {CODE: {MAGIC_NUMBER.hex(): code}, VALUES: values}


def _text(value: Any, depth: int = DEPTH) -> str:
    kind = type(value).__name__
    try:
        if isinstance(value, Enum):
            return f"{kind}.{value.name}"
        if isinstance(value, str) and PLACE.fullmatch(value):
            return kind
        if isinstance(value, str | bytes) and not WORD.fullmatch(str(value)):
            return f"{kind} {sha256(repr(value).encode()).hexdigest()[:DIGITS]}"
        if type(value) in (*PLAIN, bool, complex, torch.dtype):
            return repr(value)
        if isinstance(value, Tensor) or is_array(value):
            return _text_of_elements(value)
        if isinstance(value, nn.Module):
            kinds = kinds_of(value).items()
            return ", ".join(f"{what} as {name}" if name else what for name, what in kinds)
        if isinstance(value, Mapping | list | tuple | Set) and depth and len(value) <= MOST:
            return f"{kind}({_text_of_parts(value, depth - 1)})"
    except Exception:  # code of others, and tensors that hold no numbers
        return kind
    return kind


def _text_of_parts(held: Any, depth: int) -> str:
    if isinstance(held, Mapping):
        return ", ".join(f"{_text(k, 0)}: {_text(v, depth)}" for k, v in held.items())
    parts = [_text(part, depth) for part in held]
    return ", ".join(sorted(parts) if isinstance(held, Set) else parts)


def _text_of_elements(value: Any) -> str:
    """Return the number of a tensor or an array, or its shape with a digest."""
    shape = [*value.shape]
    if not shape:
        return repr(value.item())
    flat = value.reshape(-1)
    digest, _ = batch_digest(flat[:: max(1, -(-len(flat) // LARGE))])
    return f"{shape} {digest[:DIGITS]}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else sha256(text.encode()).hexdigest()
