"""The options that the commands of studies share, and how they print an answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from altcore.cli.options import AS_JSON, names, once, print_json, tell_left_out
from altcore.cli.status import Status
from altcore.cli.terminal import echo, say
from altcore.cli.train import FLAGS, overrides_of
from altcore.errors import BadInput

if TYPE_CHECKING:
    from altcore.config import Override
    from altcore.study import Options

SHARED = {
    **{name: FLAGS[name] for name in ("workload", "optimizer", "data", "device")},
    "seed": "The first of the seeds.",
    "steps": "Steps of each run; with a budget, the most.",
}
"""Flags of ``train`` that studies have, too, with their help."""


def study_options(command: Any) -> Any:
    """Add the options that all studies share."""
    options = [
        *(once(f"--{name}", metavar="VALUE", help=text) for name, text in SHARED.items()),
        once(
            "--config",
            "file",
            metavar="FILE",
            help="A YAML file of configuration keys for all runs.",
        ),
        click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set any key; VALUE is YAML. Repeatable.",
        ),
        once(
            "--seeds",
            type=int,
            default=5,
            show_default=True,
            help="Runs of each arm, paired with the twin by seed.",
        ),
        once(
            "--within",
            type=float,
            default=0.05,
            show_default=True,
            help="The largest gap to the float32 twin that counts as training.",
        ),
        once(
            "--rates",
            metavar="FACTOR,...",
            help="Factors of the learning rate: one fixes it, several are the grid (default: a "
            "search for the best of each arm).",
        ),
        click.option(
            "--null/--no-null",
            default=True,
            help="Whether to run the null arm, which says how small a gap can be detected.",
        ),
        once(
            "--budget",
            type=float,
            metavar="MINUTES",
            help="Minutes for all runs together; decides the steps.",
        ),
        once(
            "--executor",
            metavar="NAME[:KEY=VALUE,...]",
            default="local",
            help="Where runs are made (default local, in this process; local:2 is two processes).",
        ),
        click.option(
            "--all-seeds",
            is_flag=True,
            help="Run every arm with every seed; by default one stops once its verdict is settled.",
        ),
        once("--name", help="Folder of the study, in studies/. A later command may add to it."),
        AS_JSON,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def split(shared: dict[str, Any]) -> tuple[list[Override], dict[str, Any]]:
    """Return the configuration keys among the shared options, and the other options."""
    tell_left_out(again=False)
    flags = {name: shared[name] for name in SHARED}
    rest = {k: v for k, v in shared.items() if k not in (*SHARED, "sets")}
    if rest["rates"] is not None:
        rest["rates"] = [_number(text) for text in names([rest["rates"]], "--rates")]
    return overrides_of(flags, shared["sets"]), rest


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BadInput("a number is needed", key="--rates", part=text) from error


def asked(overrides: list[Override], rest: Mapping[str, Any]) -> Options:
    """Return the options of a study; its log goes to standard error, beside its answer."""
    from altcore.cli.log import configure
    from altcore.study import Options

    configure()
    status = Status()
    click.get_current_context().call_on_close(lambda: status.now(""))
    return Options(overrides=overrides, tell=status.tell, doing=status.now, **rest)


def show(found: Mapping[str, Any], folder: Path, as_json: bool) -> None:
    """Print the answer of a study."""
    if as_json:
        print_json(found)
        return
    from altcore.study import SHOWN

    page = folder / f"{found['about']['page']}{SHOWN}"
    if page.is_file():
        echo(page.read_text(encoding="utf-8"))
        say(f"Written: {page.with_suffix('.*')}", "info")
