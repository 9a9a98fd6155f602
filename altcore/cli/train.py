"""``altcore train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from altcore.cli.options import once
from altcore.cli.summary import print_summary
from altcore.errors import BadInput

if TYPE_CHECKING:
    from altcore.config import TrainConfig
    from altcore.engine import Engine

FLAGS = {
    "format": "Number format: a name, a .yaml file, or none.",
    "recipe": "What is quantized: a named recipe, or a .yaml file.",
    "workload": "The model and its data (default gpt).",
    "optimizer": "The optimizer (default adamw).",
    "data": "A text file, a folder of texts, or a folder with train.bin and val.bin.",
    "name": "A new name for the run.",
    "device": "auto, cpu, cuda or cuda:N.",
    "seed": "Decides the weights, the batches and random rounding.",
    "steps": "Number of training steps.",
    "preset": "A named set of plugins and settings, such as format-experiment.",
}
KEYS = {"steps": "max_steps"}
"""The configuration keys of flags with another name; --data is a setting of the workload."""


def _flags(command: Any) -> Any:
    for name, text in reversed(FLAGS.items()):
        command = once(f"--{name}", metavar="VALUE", help=text)(command)
    return command


@click.command()
@_flags
@click.option(
    "--plugin", "plugins", multiple=True, metavar="NAME", help="Activate a plugin. Repeatable."
)
@click.option(
    "--no-plugin", "without", multiple=True, metavar="NAME", help="Leave a plugin out. Repeatable."
)
@once("--config", "file", metavar="FILE", help="A YAML file of configuration keys.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any key; VALUE is YAML. Repeatable.",
)
@click.option("--strict", is_flag=True, help="Stop if a diagnostic or reporter breaks.")
@once("--resume", metavar="RUN", help="Continue a run from its newest checkpoint.")
def train(
    plugins: tuple[str, ...],
    without: tuple[str, ...],
    file: str | None,
    sets: tuple[str, ...],
    strict: bool,
    resume: str | None,
    **flags: str | None,
) -> None:
    """Train in a number format, and see whether training survives.

    \b
    altcore train --format E7M0 --plugin ulp-stats
    altcore train --format E3M4 --recipe pure --set gpt.size=tiny --steps 50
    altcore train --resume e3m4-pure
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    from altcore.config import gather, located, make, missing_observers

    overrides = overrides_of(flags, sets)
    overrides += [("+plugins", name, " by --plugin") for name in plugins]
    if strict:
        overrides.append(("strict", True, " by --strict"))
    if resume is not None:
        config, given_in = _resumed(resume, overrides, bool(file or without))
    else:
        plain, given_in = gather(file, overrides, without)
        config = make(plain, given_in)
        for name in missing_observers():
            if name not in config.no_plugins:
                click.echo(f"altcore: the observer {name} is not installed and left out", err=True)
    with located(given_in):
        engine = _prepared(config, resume)
    print_summary(engine.train())


def overrides_of(
    flags: Mapping[str, str | None], sets: Sequence[str]
) -> list[tuple[str, Any, str]]:
    """Return the configuration keys that flags and ``--set`` set: (key, value, how)."""
    from altcore.yaml_files import load_yaml

    overrides: list[tuple[str, Any, str]] = []
    for name, text in flags.items():
        if text is not None:
            is_number = name in ("seed", "steps")
            value = load_yaml(text, f"--{name}") if is_number else text
            overrides.append((KEYS.get(name, name), value, f" by --{name}"))
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key or key.startswith("."):
            raise BadInput(f"--set {text}: KEY=VALUE is needed")
        overrides.append((key, load_yaml(value, f"--set {key}"), " by --set"))
    return overrides


def _resumed(
    name: str, overrides: list[tuple[str, Any, str]], more: bool
) -> tuple[TrainConfig, dict[str, str]]:
    from altcore.config import located
    from altcore.engine import resumed

    allowed = ("max_steps", "device", "runs_dir")
    refused = [how.removeprefix(" by ") for key, _, how in overrides if key not in allowed]
    if refused or more:
        given = ", ".join(refused) or "--config and --no-plugin"
        raise BadInput(
            f"--resume goes on with the run's own configuration, so {given} cannot be given: "
            "only --steps, --device and --set runs_dir=... can"
        )
    changes = {key: value for key, value, _ in overrides}
    if len(changes) < len(overrides):
        raise BadInput("max_steps, device or runs_dir is given twice on the command line")
    given_in = {key: how for key, _, how in overrides}
    with located(given_in):
        return resumed(name, str(changes.pop("runs_dir", "runs")), **changes), given_in


def _prepared(config: TrainConfig, resume: str | None) -> Engine:
    import warnings

    # torch warns if numpy is not installed, and altcore does not use it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    # Import torch only here, so that bad input is refused without the wait.
    from altcore.cli.log import configure
    from altcore.engine import prepare

    configure()
    return prepare(config, resume=resume)
