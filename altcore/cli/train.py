"""``altcore train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from altcore.cli.options import ListCommand, names, once, tell_left_out
from altcore.cli.status import Status
from altcore.cli.summary import print_summary
from altcore.cli.terminal import say
from altcore.errors import AltcoreError, BadInput, Source, located

if TYPE_CHECKING:
    from altcore.config import Override, TrainConfig
    from altcore.engine import Engine

FLAGS = {
    "format": "Number format: a name, a .yaml file, or none.",
    "recipe": "What is quantized: a named recipe, or a .yaml file.",
    "workload": "The model and its data (default gpt).",
    "optimizer": "The optimizer (default adamw).",
    "data": "A text file, a folder of texts or with train.bin and val.bin, or eurlex.",
    "name": "A new name for the run.",
    "device": "auto, cpu, cuda or cuda:N.",
    "seed": "Decides weights, batches and random rounding.",
    "steps": "Steps of the run.",
    "preset": "A named set of plugins and settings, such as format-experiment.",
}
KEYS = {"steps": "max_steps"}
"""The configuration keys of flags with another name; --data is a setting of the workload."""

FREE = (
    *("max_steps", "epochs", "device", "runs_dir"),
    *("strict", "check_observers", "hook_timeout", "rank_timeout"),
)
"""The keys that may be given to a run that goes on: they make no other run of it."""


def _flags(command: Any) -> Any:
    for name, text in reversed(FLAGS.items()):
        command = once(f"--{name}", metavar="VALUE", help=text)(command)
    return command


@click.command(cls=ListCommand, lists=("--plugin", "--no-plugin", "--allow-change"))
@_flags
@click.option(
    "--plugin", "plugins", multiple=True, metavar="NAME ...", help="Activate plugins. Repeatable."
)
@click.option(
    "--no-plugin",
    "without",
    multiple=True,
    metavar="NAME ...",
    help="Leave plugins out. Repeatable.",
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
@click.option(
    "--check-observers",
    is_flag=True,
    help="Check every call of a diagnostic or reporter for what it changes.",
)
@once("--resume", metavar="RUN", help="Continue a run from its newest valid checkpoint.")
@click.option(
    "--allow-change",
    "allowed",
    multiple=True,
    metavar="NAME ...",
    help="With --resume: accept another configuration, data, format, recipe, plugin or "
    "world_size, or one key. Repeatable.",
)
def train(
    plugins: tuple[str, ...],
    without: tuple[str, ...],
    file: str | None,
    sets: tuple[str, ...],
    strict: bool,
    check_observers: bool,
    resume: str | None,
    allowed: tuple[str, ...],
    **flags: str | None,
) -> None:
    """Train in a number format, and see whether training survives.

    \b
    altcore train --format E7M0 --plugin ulp-stats
    altcore train --format E3M4 --recipe pure --set gpt.size=tiny --steps 50
    altcore train --resume e3m4-pure
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    from altcore.config import load_with_sources, missing_observers

    tell_left_out(again=False)
    overrides = overrides_of(flags, sets)
    listed, left_out = names(plugins, "--plugin"), names(without, "--no-plugin")
    if strict:
        overrides.append(("strict", True, Source(flag="--strict")))
    if check_observers:
        overrides.append(("check_observers", True, Source(flag="--check-observers")))
    sources: Mapping[str, Source | None]
    accepted: list[str] = []
    if resume is not None:
        others = {"--plugin": plugins, "--config": file, "--no-plugin": without}
        refused = [flag for flag, given in others.items() if given]
        accepted = names(allowed, "--allow-change")
        config, sources = _resumed(resume, overrides, refused, bool(accepted))
    elif allowed:
        raise BadInput("--allow-change is for a run that goes on: it needs --resume")
    else:
        with located({"config": Source(flag="--config")}):
            config, sources = load_with_sources(file, overrides, listed, left_out)
        tell_left_out(again=False)  # families are asked as the configuration is read
        for name in missing_observers():
            if name not in config.no_plugins:
                say(f"the observer {name} is not installed and left out")
        if flags["recipe"] == config.recipe == "master" and config.format is None:
            say("recipe master without a format quantizes nothing")
    with located(sources), Status() as status:
        status.now("preparing the model and the data")
        engine = _prepared(config, resume, accepted)
    summary = engine.train()
    if engine.run.rank == 0:
        _check_end(engine.directory.path)
        print_summary(summary)


def _check_end(run: Path) -> None:
    """Raise `AltcoreError` unless the end of a run is written: exit code 0 says that it is."""
    from altcore.runs import ENDED, summary_of

    status = summary_of(run)["status"]
    if status not in ENDED:
        raise AltcoreError(f"run {run.name} has no written end: it is {status}")


def overrides_of(flags: Mapping[str, str | None], sets: Sequence[str]) -> list[Override]:
    """Return the keys of a configuration that flags and ``--set`` give."""
    from altcore.yaml_files import load_yaml

    overrides: list[Override] = []
    for name, text in flags.items():
        if text is not None:
            key, source = KEYS.get(name, name), Source(flag=f"--{name}")
            is_number = name in ("seed", "steps")
            overrides.append((key, load_yaml(text, source, key) if is_number else text, source))
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key or key.startswith("."):
            raise BadInput("KEY=VALUE is needed", key="--set", part=text)
        source = Source(flag="--set")
        overrides.append((key, load_yaml(value, source, key), source))
    return overrides


def _resumed(
    name: str, overrides: list[Override], refused: list[str], may_change: bool
) -> tuple[TrainConfig, dict[str, Source | None]]:
    """Return a run's own configuration, with the keys that may change."""
    from altcore.engine import resumed_with_sources

    given = [source.flag for key, _, source in overrides if key not in FREE and source]
    if refused or (given and not may_change):
        raise BadInput(
            "--resume goes on with the run's own configuration, so "
            f"{', '.join([*given, *refused])} cannot be given",
            hint="only --steps, --device, --strict and --set epochs=... or runs_dir=... can, and "
            "keys that --allow-change names",
        )
    changes = {key: value for key, value, _ in overrides}
    sources = {key: source for key, _, source in overrides}
    if len(changes) < len(overrides):
        raise BadInput("a key is given twice on the command line")
    with located(sources):
        runs_dir = str(changes.pop("runs_dir", "runs"))
        config, recorded = resumed_with_sources(name, runs_dir, **changes)
    return config, {**recorded, **sources}


def _prepared(config: TrainConfig, resume: str | None, allowed: Sequence[str]) -> Engine:
    import warnings

    # torch warns if numpy is not installed, and altcore does not use it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    # Import torch only here, so that bad input is refused without the wait.
    from altcore.cli.log import configure
    from altcore.engine import prepare

    configure()
    return prepare(config, resume=resume, allow_change=allowed)
