"""The ``altcore`` command. A command is imported when you call it, and torch only within one."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from altcore.cli.options import Group
from altcore.cli.streams import drop_output, prepare_streams
from altcore.cli.terminal import echo, logs_json, say
from altcore.environment import PREFIX, unknown_variables
from altcore.errors import PIPE_CLOSED, AltcoreError, described, text_of
from altcore.registry import spare_torch
from altcore.signals import ending, is_from_signal

SHELL_COMPLETION = "_ALTCORE_COMPLETE"
"""With this variable a shell asks for completions, and click itself leaves."""

COMMANDS = {
    "checkpoints": ("checkpoints", "List, verify and export the checkpoints of a run."),
    "compare": (
        "compare",
        "Compare formats on identical batches, with intervals and a frozen control.",
    ),
    "explain": ("explain", "Find out where training breaks in a format, by controlled runs."),
    "formats": ("formats", "Show the values of number formats."),
    "plugins": ("plugins", "Show the installed formats and plugins."),
    "report": ("report", "Let a reporter write its report on recorded runs."),
    "runs": ("runs", "Show recorded runs."),
    "sweep": ("sweep", "Run many runs: a grid of settings, variants and seeds."),
    "train": ("train", "Train in a number format, and see whether training survives."),
}


@contextmanager
def leaving_closed_pipe() -> Iterator[None]:
    """Leave as a program does that SIGPIPE ends, if the reader of the output is gone.

    click itself would make a failure of it.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise click.exceptions.Exit(PIPE_CLOSED) from None
    finally:
        with suppress(ValueError):  # a plugin closed it
            drop_output()


class LazyGroup(Group):
    """A group that imports a command on use, so that ``--help`` waits for none of them."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """Read the arguments; ``--help`` is written here."""
        with leaving_closed_pipe():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command."""
        with leaving_closed_pipe():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one command."""
        if name not in COMMANDS:
            return None
        spare_torch()
        command: click.Command = getattr(import_module(f"altcore.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="altcore")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--log-json", is_flag=True, help="Write the log as JSON lines.")
def cli(debug: bool, log_json: bool) -> None:
    """Does training survive in this number format, and if not, where does it break?"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command, and exit with a code of `altcore.errors.EXIT_CODES`."""
    prepare_streams()
    given = sys.argv[1:] if arguments is None else arguments
    # Accept it anywhere: people append it to the command that failed.
    debug = "--debug" in given
    if "--log-json" in given:
        from altcore.cli.log import configure_json

        configure_json()
    rest = [a for a in given if a not in ("--debug", "--log-json")]
    if not _has_folder():
        _leave("the current folder is gone: cd to one that is there", 2, debug=False)
    for line in unknown_variables():
        say(line)
    # The kernels say it to those who use altcore from Python.
    warnings.filterwarnings("ignore", message=f"the environment variable {PREFIX}")
    try:
        code: Any = cli.main(rest, prog_name="altcore", standalone_mode=False)
    except click.exceptions.Abort as error:
        # click's name for Ctrl-C, and for an end of file that nobody expected.
        cause = error.__cause__ or error
        _leave(*_unexpected(cause), debug)
    except click.exceptions.NoArgsIsHelpError as error:
        echo(error.format_message(), err=True)
        raise SystemExit(2) from None
    except click.ClickException as error:
        if debug:
            echo(traceback.format_exc(), err=True)
        if logs_json():
            say(error.format_message(), "error", exit_code=2)
        else:
            error.show()
        raise SystemExit(2) from None
    except AltcoreError as error:
        _leave(text_of(error), error.exit_code, debug)
    except SystemExit as error:
        if SHELL_COMPLETION in os.environ:
            raise
        _leave(f"sys.exit({error.code!r:.60}) was called {_where(error)}", 1, debug)
    # Anything else is a bug: name it in one line, and say how to see its traceback.
    except BaseException as error:
        _leave(*_unexpected(error), debug)
    raise SystemExit(code if isinstance(code, int) else 0)


def _unexpected(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an error that is nobody's on purpose."""
    if is_from_signal(error):
        return "interrupted", 130
    told = f"out of memory {_where(error)}" if isinstance(error, MemoryError) else described(error)
    return f"{told} (--debug shows the traceback)", 1


def _where(error: BaseException) -> str:
    """Say in which line an error was raised."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    return f"in {frame.f_code.co_filename}, line {line}"


def _leave(message: str, code: int, debug: bool) -> None:
    facts: dict[str, Any] = {"exit_code": code}
    if debug and logs_json():
        facts["traceback"] = traceback.format_exc()
    elif debug:
        with suppress(Exception):
            echo(traceback.format_exc(), err=True)
    # One line, even if a plugin's error or a file's name holds several.
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    who = "altcore" if is_alone else f"altcore, rank {os.environ.get('RANK')}"
    with suppress(Exception):  # its reader is gone, or a plugin put its own stream in the place
        say(message, "error", who, **facts)
    ending(code)
    raise SystemExit(code)


def _has_folder() -> bool:
    """Return whether there is a working directory, without which libraries end the process."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True
