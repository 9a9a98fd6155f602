"""What it takes to repeat a study, for its answer: the command, the training, data and model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from altcore.builtin_types import digits
from altcore.config import TrainConfig
from altcore.errors import DEFAULT
from altcore.study.identity import plain
from altcore.study.options import Options

TRAINING = (
    "schedule",
    "warmup_steps",
    "min_lr_ratio",
    "decay_share",
    "grad_clip",
    "gradient_accumulation_steps",
    "eval_steps",
)
"""Keys of the configuration that a paper states."""
LISTS = ("formats", "recipes", "roundings", "optimizers", "plugins")
NAMED = ("arms", "ablate")
WORD = re.compile(r"[A-Za-z_./][\w./ -]*")
KEYWORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
"""Of YAML."""


def to_repeat(
    command: str,
    options: Options,
    config: TrainConfig,
    asked: Mapping[str, Any],
    study: Path,
    about: Any,
) -> dict[str, Any]:
    """Return what it takes to repeat a study, as plain data.

    Args:
        command: ``explain`` or ``compare``.
        options: of the study.
        config: of all runs.
        asked: what was asked besides: the entrants of a comparison.
        study: the folder.
        about: what the workload says of itself.
    """
    entrants = _entrants(asked) if command == "compare" else ()
    words = [*entrants, *_options(options, study)]
    notes = [f"with {', '.join(options.own.names)} from Python"] if options.own.names else []
    given = {key: value for key, value, _ in options.overrides}.get("warmup_steps")
    if given not in (None, config.warmup_steps):
        notes.append(f"which shortens warmup_steps to {config.warmup_steps}")
    shell = shlex.join(["altcore", command, *words])
    return {
        "study": study.name,
        "shell": "  # ".join(filter(None, (shell, ", ".join(notes)))),
        "workload_facts": plain(about),
        "training": {key: plain(getattr(config, key)) for key in TRAINING},
    }


def _entrants(asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options that say what is compared."""
    for name in LISTS:
        usual = {"recipes": ["master"], "plugins": ["none"]}.get(name, [])
        if list(asked[name]) != usual:
            yield from (f"--{name}", ",".join(asked[name]))
    for name in NAMED:
        if asked[name]:
            yield from (f"--{name}", ",".join(f"{k}={v}" for k, v in asked[name].items()))
    for arm, keys in asked["settings"].items():
        for key, value in keys.items():
            yield from ("--set", f"{arm}:{key}={_yaml(value)}")
    if asked["against"] is not None:
        yield from ("--against", asked["against"])
    if asked["metric"] != "train":
        yield from ("--metric", asked["metric"])


def _options(options: Options, study: Path) -> Iterator[str]:
    """Yield the options that all studies have, without those that say where runs are made."""
    if options.file is not None:
        yield from ("--config", str(options.file))
    for key, value, source in options.overrides:
        if source is not DEFAULT:
            yield from ("--set", f"{key}={_yaml(value)}")
    yield from ("--seeds", str(options.seeds))
    yield from ("--within", digits(options.within))
    if options.rates is not None:
        yield from ("--rates", _numbers(options.rates))
    if options.budget is not None:
        yield from ("--budget", digits(options.budget))
    if not options.null:
        yield "--no-null"
    if options.all_seeds:
        yield "--all-seeds"
    yield from ("--name", study.name)


def _numbers(given: Sequence[float]) -> str:
    return ",".join(map(digits, given))


def _yaml(value: Any) -> str:
    """Return a value as --set takes it: a text in quotes if YAML reads something else there."""
    if isinstance(value, str) and WORD.fullmatch(value) and value.lower() not in KEYWORDS:
        return value
    return json.dumps(plain(value), default=str)
