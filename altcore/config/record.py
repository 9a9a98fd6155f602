"""A configuration as a run's record holds it: enough to repeat the run on another machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from altcore.config.train_config import TrainConfig
from altcore.errors import Source
from altcore.formats import AnyFormat, check_names, digests_of, origins_of
from altcore.hooks import format_settings, formats_within
from altcore.yaml_files import source_of


def sources_in(plain: Mapping[str, Any]) -> dict[str, Source | None]:
    """Return where each key, and each ``OWNER.setting``, of a run's config.yaml stands.

    ``plain`` is what `read_mapping` returned.
    """
    sources = {key: source_of(plain, key) for key in plain}
    settings = plain.get("settings")
    for owner, held in settings.items() if isinstance(settings, dict) else ():
        for key in held if isinstance(held, dict) else ():
            sources[f"{owner}.{key}"] = source_of(held, key)
    return sources


def recorded(
    config: TrainConfig, owners: Mapping[str, Any], used: Iterable[AnyFormat]
) -> TrainConfig:
    """Return the configuration with its formats, and digests and origins of installed ones.

    Args:
        config: its settings may name formats by their files.
        owners: the workload, the optimizer and the plugins, built of their settings, by name.
        used: the formats of the recipe, as the model has it.

    Raises:
        BadInput: for a format whose name means other values, in the run or among what is installed.
    """
    found = {name: format_settings(instance) for name, instance in owners.items()}
    settings = {
        name: {**given, **{k: v for k, v in found[name].items() if k in given}}
        for name, given in config.settings.items()
    }
    formats = [*used, *formats_within([config.format, list(found.values())])]
    check_names(formats)
    digests = digests_of(formats)
    return config.evolve(
        settings=settings, format_digests=digests, format_origins=origins_of(digests)
    )
