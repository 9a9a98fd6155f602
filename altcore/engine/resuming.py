"""The configuration of a run that goes on."""

from __future__ import annotations

from typing import Any

from altcore.config import TrainConfig
from altcore.errors import BadInput
from altcore.runs import find_run, read_configuration
from altcore.yaml_files import source_of


def resumed(name: str, runs_dir: str, **changes: Any) -> TrainConfig:
    """Return the configuration of a run that is to go on, with ``changes``: keys and settings.

    `prepare` refuses those that make another run of it.
    """
    plain = read_configuration(find_run(name, runs_dir))
    if "data" in changes:
        changes[f"{plain['workload']}.data"] = changes.pop("data")
    given = {k: v for k, v in changes.items() if v is not None and "." not in k}
    if {"max_steps", "epochs"} <= given.keys():
        raise BadInput("max_steps is given, too", key="epochs")
    for key, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if key in given:
            plain.pop(other, None)
    sources = {key: source_of(plain, key) for key in plain if key not in given}
    settings = {name: dict(own) for name, own in plain.get("settings", {}).items()}
    for key in changes.keys() - given.keys():
        owner, _, setting = key.partition(".")
        settings.setdefault(owner, {})[setting] = changes[key]
    given |= {"settings": settings} if settings else {}
    return TrainConfig.from_plain({**plain, **given, "runs_dir": runs_dir}, sources)
