"""Options and groups that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from altcore.builtin_types import to_json
from altcore.cli.terminal import echo, say
from altcore.errors import BadInput, nearest
from altcore.registry import left_out


def once(*names: str, default: Any = None, **more: Any) -> Callable[[Any], Any]:
    """Return a `click.option` that refuses to be given twice; click itself takes the last."""

    def single(_: click.Context, option: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise BadInput(f"{option.opts[0]} is given twice")
        return values[0] if values else None

    defaults = None if default is None else (default,)
    return click.option(*names, multiple=True, default=defaults, callback=single, **more)


class ListCommand(click.Command):
    """A command without arguments whose options in ``lists`` take names with spaces between them.

    ``--formats A B`` is ``--formats "A B"``; `names` takes the text apart.
    """

    def __init__(self, *arguments: Any, lists: Sequence[str], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.lists = lists

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the names of each list before click sees them."""
        joined: list[str] = []
        is_within = False
        for argument in args:
            is_option = argument.startswith("-")
            if is_within and not is_option and joined[-1] not in self.lists:
                joined[-1] += f" {argument}"
            else:
                joined.append(argument)
            if is_option:
                is_within = argument.partition("=")[0] in self.lists
        return super().parse_args(ctx, joined)


def names(texts: Iterable[str], option: str) -> list[str]:
    """Return the names in texts that hold several, with commas or spaces between them.

    The name of a file that is there may contain spaces.

    >>> names(["E5M2,E3M4", "E7M0 E0M7"], "--formats")
    ['E5M2', 'E3M4', 'E7M0', 'E0M7']
    """
    found: list[str] = []
    for text in texts:
        for part in map(str.strip, text.split(",")):
            own = [part] if _is_file(part) else part.split()
            if not own:
                problem = "names with commas or spaces between them are needed"
                raise BadInput(problem, key=option, part=repr(text))
            found += own
    return found


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a name
        return False


class Group(click.Group):
    """A group that suggests the nearest name for an unknown command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the command, or fail with the nearest name."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}{hint(name, known)}.")
        return super().resolve_command(ctx, args)


def hint(name: str, known: Iterable[str]) -> str:
    """Return the nearest of the known names, or all of them."""
    meant = nearest(name, known)
    return f" (did you mean {meant}?)" if meant else f": one of {', '.join(known)}"


def runs_dir_option(command: Any) -> Any:
    """Add the option for the folder of the runs."""
    option = once(
        "--runs-dir", default="runs", show_default=True, help="Folder that holds the runs."
    )
    return option(command)


def tell_left_out(*, again: bool) -> None:
    """Name the distributions that are left out, on standard error; see `altcore.registry`."""
    for line in left_out(again=again):
        say(line)


STDOUT = "altcore.stdout"
"""The key in click's context of the stream to which JSON goes."""


def _only_json(ctx: click.Context, _: click.Parameter, given: bool) -> bool:
    """With ``--json``, send all else to standard error: a plugin may print when it is imported."""
    if given:
        ctx.meta[STDOUT] = sys.stdout
        ctx.with_resource(redirect_stdout(sys.stderr))
    return given


AS_JSON = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_only_json, help="Print JSON."
)


def print_json(value: Any) -> None:
    """Print strict JSON, in which nan and inf are words."""
    text = json.dumps(to_json(value), indent=1, allow_nan=False, default=str)
    ctx = click.get_current_context(silent=True)
    echo(text, file=ctx.meta.get(STDOUT) if ctx else None)


REPORTER_SETTINGS = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the reporter; VALUE is YAML. Repeatable.",
)
