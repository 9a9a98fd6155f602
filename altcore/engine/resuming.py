"""The configuration of a run that goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import fields_dict

from altcore.config import TrainConfig, merge_sources, sources_in
from altcore.errors import BadInput, Source, shown
from altcore.registry import kind_of
from altcore.runs import find_run, read_configuration, read_environment

LISTS = ("plugins", "no_plugins")
"""Keys that together say which plugins a run has."""


def resumed(run: str, runs_dir: str, /, **changes: Any) -> TrainConfig:
    """Return the configuration of a run that is to go on, with ``changes``: keys and settings.

    `prepare` refuses those that make another run of it.
    """
    return resumed_with_sources(run, runs_dir, **changes)[0]


def resumed_with_sources(
    run: str, runs_dir: str, /, **changes: Any
) -> tuple[TrainConfig, dict[str, Source | None]]:
    """Return the same, and where in the run's config.yaml each key and setting stands."""
    plain = read_configuration(find_run(run, runs_dir))
    _check_name(changes.pop("name", None), run, plain.get("name"))
    if "data" in changes:
        changes[f"{plain['workload']}.data"] = changes.pop("data")
    given = {k: v for k, v in changes.items() if "." not in k}
    if None not in (given.get("max_steps"), given.get("epochs")):
        raise BadInput("max_steps is given, too", key="epochs")
    for key, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if given.get(key) is not None:
            plain.pop(other, None)
    sources = {key: source for key, source in sources_in(plain).items() if key not in given}
    of_owners = {k: v for k, v in changes.items() if "." in k}
    for key, value in of_owners.items():
        owner, _, setting = key.partition(".")
        settings = given.get("settings", plain["settings"])
        if not isinstance(settings, dict) or not isinstance(settings.get(owner, {}), dict):
            break  # which is refused below
        given["settings"] = {**settings, owner: {**settings.get(owner, {}), setting: value}}
    # Formats whose values are others now are changes as all others are: `prepare` names them all.
    kept = {**plain, **given, "runs_dir": runs_dir, "format_digests": {}}
    made = TrainConfig.from_plain(kept, sources)
    return made, {key: source for key, source in sources.items() if key not in changes}


def _check_name(given: Any, run: str, own: Any) -> None:
    """Raise `BadInput` for another name, of which a run that goes on makes no use."""
    if given not in (None, run, own):
        hint = "leave the name out, or begin a run of that name without resume"
        problem = f"the run that goes on keeps its own, {shown(run)}"
        raise BadInput(problem, key="name", part=shown(given), hint=hint)


@contextmanager
def origin_told(config: TrainConfig, run: Path) -> Iterator[None]:
    """Add to the error of a plugin that is not installed any more of what the run had it."""
    try:
        yield
    except BadInput as error:
        is_plugin = error.key == "plugins"
        name = error.item if is_plugin else getattr(config, error.key, None)
        known = read_environment(run).get("code") or {}
        own = known.get(name if is_plugin else f"{error.key} {name}")
        if own and kind_of(str(name)) is None:
            error.problem += f"; the run had it of {own['from']}"
        raise


def resumed_with_keys(
    name: str, keys: Mapping[str, Any]
) -> tuple[TrainConfig, dict[str, Source | None]]:
    """Return the same with ``keys`` as `load_config` takes them, and its ``runs_dir`` among them.

    Keys that are not given stay those of the run: of its own workload, optimizer and plugins.
    """
    runs_dir = str(keys.get("runs_dir", fields_dict(TrainConfig)["runs_dir"].default))
    own = read_configuration(find_run(name, runs_dir))
    about = {key: own[key] for key in ("workload", "optimizer", *LISTS) if key in own}
    merged, sources = merge_sources(overrides={**about, **keys})
    flat = {f"{o}.{k}": v for o, held in merged["settings"].items() for k, v in held.items()}
    named = sources.keys() - (about.keys() - keys.keys())
    changes = {key: value for key, value in {**merged, **flat}.items() if key in named}
    if not changes.keys().isdisjoint(LISTS):
        changes |= {key: merged[key] for key in LISTS}
    changes.pop("runs_dir", None)
    return resumed_with_sources(name, runs_dir, **changes)
