"""A configuration as a file: written so that loading it gives the same run."""

from __future__ import annotations

from pathlib import Path

from altcore.config.train_config import TrainConfig
from altcore.errors import BadInput
from altcore.yaml_files import dump_yaml


def save_config(config: TrainConfig, path: str | Path) -> Path:
    """Write a configuration as YAML, all keys resolved; returns the path.

    ``altcore train --config PATH`` and `load_config` give the same run.

    Raises:
        BadInput: if the file cannot be written.
    """
    try:
        Path(path).write_text(dump_yaml(config.to_plain()), encoding="utf-8")
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise BadInput(problem, key="path", part=str(path)) from error
    return Path(path)
