"""Templates of pages: what they hold is escaped, and their style and script are within them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from altcore_reporters.page.words import number

if TYPE_CHECKING:
    from jinja2 import Template

UNSEEN = {
    ord(c): f"\\u{ord(c):04x}"
    for c in "\0\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
}
"""Characters that nobody sees, and that turn the text around them, by how they are written."""


def template(
    package: str, file: str, ours: Mapping[str, str], **filters: Callable[[Any], Any]
) -> Template:
    """Return the template in a file of a package.

    Args:
        package: holds the file.
        file: the template.
        ours: style and script: what comes from a record is never put into them.
        filters: further filters.
    """
    # Imported here: a run without a page does not pay for it.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value.translate(UNSEEN) if type(value) is str else value,
    )
    environment.filters["word"] = lambda value: (
        number(value) if isinstance(value, int | float) and value is not True else str(value)
    )
    environment.filters |= filters
    environment.globals |= {name: Markup(text) for name, text in ours.items()}
    return environment.from_string(text_of(package, file))


def text_of(package: str, file: str) -> str:
    """Return the text of a file of a package."""
    return (files(package) / file).read_text(encoding="utf-8")
