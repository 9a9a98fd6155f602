"""What the configurations of runs have in common, and under which conditions they were made.

Runs can be compared by format, or by optimizer, only if all else is the same. What else differs
makes conditions: keys of the configuration, the data by their digest, the versions of formats and
plugins, and what was changed when a run went on. Each is called by as few keys as tell it from the
others, the telling ones first, and the same in whichever order the runs and their keys come.
Diagnostics and reporters change no weight, so they do not count; nor does a setting that was given
at its default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from altcore.plugin import with_defaults
from altcore_reporters.original_names import names_in_config
from altcore_reporters.run_facts import DIGITS, changes_of, data_of, versions_of

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

# Names, paths and the record; what is saved and watched, and when, changes no weight. Flat keys of
# the original experiments among them, as their runs in W&B have them. eval_steps and log_interval
# are not: they decide of what val_loss, best_loss and the rates are.
_ABOUT_NOTHING = {
    "name", "label", "run_name", "project", "tags", "runs_dir", "checkpoint_dir", "seed",
    "no_plugins", "strict", "check_observers", "hook_timeout", "device",
    "eval_interval", "evals_per_epoch", "monitor", "monitor_mode",
    "checkpoint_interval", "max_checkpoints", "keep_best",
    "original", "changes", "format_digests", "format_origins", "steps_per_epoch",
    "log_bit_position", "manifold_mantissa_bits",
}  # fmt: skip
_SNAPSHOTS = {"snapshot_interval", "max_snapshots"}
"""Keys that decide to which step an intervention goes back, and nothing without any."""
_FORMAT = {"format", "fp8_format"}
_OPTIMIZER = {"optimizer", "use_manifold_aware", "manifold_max_stiffness"}

_TELLING = ("recipe", "optimizer", "workload", "data")
"""Keys that name a condition before any other, which follow by name."""

Flat = dict[str, Any]


def apart_from_format(records: Sequence[RunRecord]) -> list[str]:
    """Return the condition of each run: in what it differs from others but format and seed."""
    return _conditions(records, _is_of_format)


def apart_from_optimizer(records: Sequence[RunRecord]) -> list[str]:
    """Return the condition of each run: in what it differs from others but optimizer and seed."""
    return _conditions(records, _is_of_optimizer)


def formats_of(records: Sequence[RunRecord]) -> list[str]:
    """Return each run's format; those of one name and several definitions have digests, too."""
    names = [names_in_config(record)["format"] for record in records]
    definitions = [_definition(record, name) for record, name in zip(records, names, strict=True)]
    known = {pair for pair in zip(names, definitions, strict=True) if pair[1]}
    several = {name for name, _ in known if sum(other == name for other, _ in known) > 1}
    return [
        f"{name} {_digest(own)}" if own and name in several else name
        for name, own in zip(names, definitions, strict=True)
    ]


def _definition(record: RunRecord, name: str) -> str:
    """Return what tells a format from others of its name; nothing if it is not recorded."""
    given = record.config.get("format")
    if isinstance(given, Mapping):
        return _text(given)
    return str((record.config.get("format_digests") or {}).get(name, ""))


def optimizers_of(records: Sequence[RunRecord]) -> list[str]:
    """Return each run's optimizer, with those of its settings that are not the same in all."""
    names = [record.summary["optimizer"] or "unknown" for record in records]
    flat = _flat(records)
    found = []
    for name, own in zip(names, flat, strict=True):
        used = [f for n, f in zip(names, flat, strict=True) if n == name]
        varying = {key: words[_text(own.get(key))] for key, words in _varying(used).items()}
        shown = [
            f"{key.rpartition('.')[2]}={word}"
            for key, word in varying.items()
            if key.startswith(f"settings.{name}.")
        ]
        version = varying.get(f"code.optimizer {name}")
        found.append(" ".join([name, *([version] if version else []), *shown]))
    return found


def _is_of_format(key: str, own: Flat) -> bool:
    return key in _FORMAT or key == f"code.format {own.get('format')}"


def _is_of_optimizer(key: str, own: Flat) -> bool:
    name = own.get("optimizer")
    return key in (*_OPTIMIZER, f"code.optimizer {name}") or key.startswith(f"settings.{name}.")


def _conditions(
    records: Sequence[RunRecord], is_compared: Callable[[str, Flat], bool]
) -> list[str]:
    rest = [{k: v for k, v in own.items() if not is_compared(k, own)} for own in _flat(records)]
    labels: list[tuple[str, ...]] = [()] * len(rest)
    for key, words in _varying(rest).items():
        name = key.removeprefix("settings.").removeprefix("code.")
        longer = [
            (*label, f"{name} {words[_text(own.get(key))]}")
            for label, own in zip(labels, rest, strict=True)
        ]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    return [", ".join(label) for label in labels]


def _flat(records: Sequence[RunRecord]) -> list[Flat]:
    """Return what may change the result of each run, settings as ``settings.OWNER.key``."""
    watching = _observers()
    configs = with_defaults([record.config for record in records])
    versions = versions_of(records, watching)
    found = []
    for record, config, code in zip(records, configs, versions, strict=True):
        data, changes = data_of(record), changes_of(record)
        own: Flat = {"workload": None, "data": data}
        own |= {k: v for k, v in config.items() if k not in _ABOUT_NOTHING}
        if changes:
            own["changed"] = {"name": changes, "changes": record.config["changes"]}
        for owner, settings in own.pop("settings").items():
            if owner not in watching:
                own |= {f"settings.{owner}.{k}": v for k, v in settings.items()}
        if data is not None:  # wherever the files are
            own.pop(f"settings.{own['workload']}.data", None)
        own["plugins"] = [p for p in own.get("plugins", ()) if p not in watching]
        if not own["plugins"]:
            own = {k: v for k, v in own.items() if k not in _SNAPSHOTS}
        found.append(own | {f"code.{key}": version for key, version in code.items()})
    return found


def _observers() -> set[str]:
    """Return the names of the installed diagnostics and reporters."""
    named = {
        kind: {e.name for e in entry_points(group=f"altcore.{kind}")}
        for kind in ("diagnostics", "reporters", "interventions")
    }
    return (named["diagnostics"] | named["reporters"]) - named["interventions"]


def _varying(flat: Sequence[Flat]) -> dict[str, dict[str, str]]:
    """Return the keys that have several values, with a word for each value."""
    found = {}
    for key in sorted({k for own in flat for k in own}, key=_place):
        values = {_text(own.get(key)): own.get(key) for own in flat}
        if len(values) > 1:
            words = {text: _word(value) for text, value in values.items()}
            taken = list(words.values())
            # Two recipes of one name are two recipes.
            found[key] = {
                text: word if taken.count(word) == 1 else f"{word} {_digest(text)}".strip()
                for text, word in words.items()
            }
    return found


def _place(key: str) -> tuple[int, str]:
    return (_TELLING.index(key) if key in _TELLING else len(_TELLING), key)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:DIGITS]


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name", "own")).removesuffix(".yaml")
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
