"""A configuration as a file: written so that loading it gives the same run."""

from __future__ import annotations

from pathlib import Path

from altcore.config.train_config import TrainConfig
from altcore.output_files import write_output
from altcore.yaml_files import dump_yaml


def save_config(config: TrainConfig, path: str | Path) -> Path:
    """Write a configuration as YAML, all keys resolved; returns the path.

    ``altcore train --config PATH`` and `load_config` give the same run.

    Raises:
        BadInput: if the file cannot be written, or is none, such as a link or a device.
        NoSpace: if the disk is full; what was there stays.
    """
    write_output(Path(path), dump_yaml(config.to_plain()).encode())
    return Path(path)
