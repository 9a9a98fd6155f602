"""The keys of the configuration that are an arm's own: its optimizer, its plugins, its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import fields_dict

from altcore.config import Override, TrainConfig
from altcore.errors import BadInput, Source, keyed, located
from altcore.hooks import build
from altcore.registry import HOOK_KINDS, entries, find
from altcore.yaml_files import load_yaml

NO_PLUGINS = "none"
SHARED = (
    *("workload", "seed", "device", "max_steps", "epochs", "log_interval"),
    *("gradient_accumulation_steps", "eval_steps", "eval_interval", "monitor", "runs_dir", "name"),
)
"""Keys that all arms share: their runs see the same batches and are measured alike."""
CHOSEN = {
    "format": "give the arm another recipe by --arms",
    "recipe": "give the arm another recipe by --arms",
    "optimizer": "--optimizers takes it",
    "plugins": "--plugins takes them",
    "learning_rate": "the study chooses it for each arm",
}
"""Keys of an arm that it is given otherwise."""

Configure = Callable[[Sequence[str], Sequence[Override]], TrainConfig]
"""Returns the configuration of a study with further plugins and keys."""


def own_keys(
    config: TrainConfig,
    configure: Configure,
    optimizer: str,
    plugins: str = NO_PLUGINS,
    settings: Mapping[str, Any] | None = None,
    arm: str = "",
) -> dict[str, Any]:
    """Return the keys in which an arm's runs differ from all runs of a study.

    Args:
        config: of all runs.
        configure: makes the configuration with the arm's plugins and settings.
        optimizer: as ``NAME`` or ``NAME:KEY=VALUE:...``.
        plugins: alike, with ``+`` between several, or ``none``.
        settings: further keys, dotted if they are settings of a plugin.
        arm: its name, for messages.

    Raises:
        BadInput: for a plugin or key that there is not, and for a key that all arms share.
    """
    own = config
    if plugins != NO_PLUGINS or settings:
        source = Source(flag=f"--set {arm}")
        wanted, overrides = _plugins(plugins)
        overrides += [(key, value, source) for key, value in (settings or {}).items()]
        _refuse_shared(settings or {}, config)
        own = configure(wanted, overrides)
    own = own.evolve(**optimizer_keys(optimizer, own))
    names = [n for n in fields_dict(TrainConfig) if getattr(own, n) != getattr(config, n)]
    return {name: getattr(own, name) for name in names}


def _refuse_shared(settings: Mapping[str, Any], config: TrainConfig) -> None:
    for key in settings:
        owner = key.partition(".")[0]
        if owner in CHOSEN:
            raise BadInput("it is not set for an arm", key=key, hint=CHOSEN[owner])
        if owner in (*SHARED, config.workload, "data"):
            raise BadInput("all arms share it", key=key, hint=f"--set {key}=VALUE sets it for all")


def _plugins(text: str) -> tuple[list[str], list[Override]]:
    """Return the plugins of an arm, and their settings."""
    wanted: list[str] = []
    overrides: list[Override] = []
    for part in () if text == NO_PLUGINS else text.split("+"):
        name, *settings = part.split(":")
        given = settings_in(settings, "--plugins", text)
        source = Source(flag=f"--plugins {text}")
        with located({"plugins": source}), keyed("plugins"):
            find(name, HOOK_KINDS)
        wanted.append(name)
        overrides += [(f"{name}.{key}", value, source) for key, value in given.items()]
    return wanted, overrides


def optimizer_keys(text: str, config: TrainConfig) -> dict[str, Any]:
    """Return the keys that choose an optimizer written as ``NAME`` or ``NAME:KEY=VALUE:...``.

    Leaves out settings of other optimizers, which would not be active.
    """
    name, *settings = text.split(":")
    names = {e.name for e in entries() if e.kind == "optimizer"}
    given = settings_in(settings, "--optimizers", text)
    own = {**config.settings.get(name, {}), **given}
    others = {n: v for n, v in config.settings.items() if n not in names}
    made = {"optimizer": name, "settings": {**others, **({name: own} if own else {})}}
    # A wrong name or setting is found before anything runs.
    source = Source(flag=f"--optimizers {text}")
    sources = {"optimizer": source, **{f"{name}.{key}": source for key in own}}
    with located(sources), keyed("optimizer"):
        build(find(name, ("optimizer",)).load(), own, name)
    return made


def settings_in(texts: Iterable[str], option: str, whole: str) -> dict[str, Any]:
    """Return the settings that are given as ``KEY=VALUE`` in a text; `BadInput` if one is not."""
    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"{text!r} is not KEY=VALUE", key=option, part=whole)
        if key in given:
            raise BadInput(f"{key} is given twice", key=option, part=whole)
        given[key] = load_yaml(value, Source(flag=option), key)
    return given
