"""A configuration as a run's record holds it: enough to repeat the run on another machine."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from altcore.config.original_keys import shared_keys
from altcore.config.train_config import OWNER_KINDS, TrainConfig
from altcore.errors import BadInput, Source
from altcore.formats import AnyFormat, check_names, digests_of, origins_of
from altcore.hooks import describe_settings, format_settings, formats_within
from altcore.registry import find
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


def with_defaults(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return recorded configurations as they compare; a run records the settings that it was given.

    One that any of them was given is in all that have its owner, at its default where it was not
    given. Of owners that are not installed no default is known.
    """
    given = [config.get("settings") or {} for config in configs]
    names = {
        owner: {k for own in given for k in own.get(owner, ())} for own in given for owner in own
    }
    defaults = {owner: _defaults_of(owner, keys) for owner, keys in names.items()}
    return [
        {
            **config,
            "settings": {
                owner: {**default, **_shared_with(owner, config, default), **own.get(owner, {})}
                for owner, default in defaults.items()
                if owner in own or owner in _owners_in(config)
            },
        }
        for config, own in zip(configs, given, strict=True)
    ]


def _defaults_of(owner: str, keys: Container[str]) -> dict[str, Any]:
    try:
        settings = describe_settings(find(owner, OWNER_KINDS).load())
    except BadInput:
        return {}
    return {row["name"]: row["default"] for row in settings if row["name"] in keys}


def _shared_with(owner: str, config: Mapping[str, Any], keys: Container[str]) -> dict[str, Any]:
    """Return the settings of an owner that are those of the run's keys unless they are given."""
    shared = shared_keys(owner).items()
    return {name: config[key] for name, key in shared if name in keys and key in config}


def _owners_in(config: Mapping[str, Any]) -> tuple[Any, ...]:
    return (config.get("workload"), config.get("optimizer"), *config.get("plugins", ()))
