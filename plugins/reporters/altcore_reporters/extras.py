"""Packages that are not installed with the reporters, since only one of them uses each."""

from __future__ import annotations

from importlib.util import find_spec

from altcore.plugin import BadInput


def check_installed(extra: str) -> None:
    """Raise `BadInput`, with what to install, if the package of an extra is missing."""
    if find_spec(extra) is None:
        hint = f"pip install 'altcore-reporters[{extra}]'"
        raise BadInput(f"the package {extra} is not installed", hint=hint)
