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
from altcore.formats.lookup import format_named, origin_of, recorded_origin


class ChangedFormat(BadInput):
    """An installed format has other values or rules than one of its name had in a record."""


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


def origins_of(names: Iterable[str]) -> dict[str, str]:
    """Return the distribution and version that gives each name its format."""
    return {name: origin_of(name) for name in names}


def check_names(formats: Iterable[AnyFormat]) -> None:
    """Raise `BadInput` if a format has the name of one with other values or rules.

    That is another one of ``formats``, or one that is installed. Elements and scales of block
    formats may be called as they like: records hold them whole.
    """
    seen: dict[str, str] = {}
    for fmt in formats:
        name, digest = fmt.name, format_digest(fmt)
        if seen.setdefault(name, digest) != digest:
            problem = "two formats with different values or rules have this name"
            raise BadInput(problem, key="format", part=name, hint="one needs another name")
        if not _is_installed(fmt) and _installed(name):
            problem = f"{origin_of(name)} gives this name to other values or rules"
            raise BadInput(problem, key="format", part=name, hint="this one needs another name")


def check_digests(recorded: Mapping[str, str]) -> None:
    """Raise `ChangedFormat` if an installed format is another than the one that was recorded.

    Formats that are not installed are passed by: whoever needs them says so. The error says what to
    install; callers who know another way add it.
    """
    for name, now in changed_digests(recorded).items():
        origin, was = origin_of(name), recorded_origin(name)
        hint = f"install {was or 'the version that gave it the recorded ones'}"
        if was == origin:
            hint = f"install the {was} that was there then: this one has the same version"
        raise ChangedFormat(
            f"format {name}: the values or rules that {origin} gives it are not those of the "
            f"record (digest {now[:12]}, recorded {recorded[name][:12]})",
            hint=hint,
            item=name,
        )


def changed_digests(recorded: Mapping[str, str]) -> dict[str, str]:
    """Return today's digests of the installed formats that are others than was recorded."""
    now = {name: _installed(name) for name in recorded}
    return {name: own for name, own in now.items() if own and own != recorded[name]}


def _is_installed(fmt: AnyFormat) -> bool:
    return _installed(fmt.name) == format_digest(fmt)


def _installed(name: str) -> str | None:
    """Return the digest of the installed format called ``name``, None if there is none."""
    try:
        return format_digest(format_named(name))
    except BadInput:
        return None


@cache
def _whole(fmt: AnyFormat) -> dict[str, Any]:
    # One object for each format, so that YAML writes a large table once and refers to it.
    return fmt.to_plain()
