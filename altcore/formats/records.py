"""How records hold formats: by name if a distribution names them, whole otherwise.

A name means what is installed, so the digests of those formats are recorded beside: a
distribution that has other values since is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from altcore.errors import BadInput
from altcore.formats.blocks import AnyFormat
from altcore.formats.digests import format_digest
from altcore.formats.lookup import format_named, origin_of


def saved(fmt: AnyFormat) -> str | dict[str, Any]:
    """Return what a record holds of a format; `get_format` gives the format back.

    That is its name if a distribution installed here gives these values and rules to the name,
    and the whole plain form otherwise: the same object each time, not to be changed.
    """
    return fmt.name if _is_installed(fmt) else _whole(fmt)


def digests_of(formats: Iterable[AnyFormat]) -> dict[str, str]:
    """Return the digests of the formats that `saved` holds by name, by that name."""
    installed = {fmt.name: format_digest(fmt) for fmt in formats if _is_installed(fmt)}
    return dict(sorted(installed.items()))


def check_digests(recorded: Mapping[str, str]) -> None:
    """Raise `BadInput` if an installed format is another than the one that was recorded.

    Formats that are not installed are passed by: whoever needs them says so.
    """
    for name, digest in recorded.items():
        try:
            now = format_digest(format_named(name))
        except BadInput:
            continue
        if now != digest:
            raise BadInput(
                f"format {name}: the values or rules that {origin_of(name)} gives it are not "
                f"those of the record (digest {now[:12]}, recorded {digest[:12]}): install the "
                "version of then; a new run whose configuration leaves it out of format_digests "
                "takes those of now",
                key="format_digests",
                item=name,
            )


def _is_installed(fmt: AnyFormat) -> bool:
    try:
        return format_digest(format_named(fmt.name)) == format_digest(fmt)
    except BadInput:
        return False


@cache
def _whole(fmt: AnyFormat) -> dict[str, Any]:
    # One object for each format, so that YAML writes a large table once and refers to it.
    return fmt.to_plain()
