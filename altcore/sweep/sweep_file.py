"""The file of a sweep: what every job has, what tells them apart, and how they are run."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

from attrs import evolve, fields, fields_dict, frozen
from attrs.validators import and_, gt, in_, le, optional

from altcore.config import TrainConfig, check_name, read_interval
from altcore.errors import BadInput, Source, item_key, keyed, located, nearest, shown
from altcore.hooks import build, setting
from altcore.sweep.declared import Declared
from altcore.sweep.job import PRIORITY
from altcore.sweep.joining import joined, joined_keys, joined_variants
from altcore.sweep.limits import Alerts, Range, check_finite, range_of
from altcore.sweep.retry import Rule
from altcore.sweep.retry_rules import rules_of
from altcore.sweep.seeds import check_seeds
from altcore.yaml_files import dump_yaml, read_mapping, source_of, without_sources

JOINED_BY = {"base": joined_keys, "variants": joined_variants}
"""How the keys of a file are joined with those of its preset, unless as mappings are."""

SOURCED = ("base", "variants", "grid", "retry", "executors")
"""Keys that are kept as they were read, with the line of each key within: others check these."""
LIMITS = ("checks", "alerts", "resources", "retry")
"""Keys whose numbers limit something."""

STATISTICS = "statistics"
"""The name of the exported table of means, without its ending."""
PLACE = {
    "step": "the step, from 1",
    "epoch": "epochs that are completed after it; empty if the workload has none",
}
"""Columns of every exported file of series, and what they hold."""


@frozen(kw_only=True)
class Measure:
    """A measure that a completed run must have."""

    name: str = setting(help="its name in metrics.jsonl")
    every: Any = setting(
        None, help="steps between two values, or epochs, as `2 epochs`; null is at least one"
    )

    def __attrs_post_init__(self) -> None:
        every = read_interval(self.every, "requires.every")
        if every is not None and every <= 0:
            raise BadInput(f"{shown(self.every)} is not a positive interval", key="requires.every")

    def steps(self, per_epoch: Fraction | float | None) -> int | None:
        """Return the steps between two values; None if one is enough.

        Raises:
            BadInput: if it counts epochs, and there are none.
        """
        every = read_interval(self.every, "requires.every")
        if not isinstance(every, Fraction):
            return every
        if per_epoch is None:
            raise BadInput(f"{self.every}: the workload counts no epochs", key="requires.every")
        return math.ceil(every * Fraction(per_epoch).limit_denominator(10**6))


@frozen(kw_only=True)
class SweepFile:
    """The keys of a sweep file. The keys of its runs are checked when the jobs are made."""

    name: str | None = setting(None, help="the sweep's name; that of the file if null")
    preset: str | None = setting(
        None,
        help="another sweep file, whose keys this one adds to or replaces: a path from this file's "
        "folder, or `PACKAGE:FILE` in an installed package",
    )
    config: str | None = setting(
        None,
        help="a file of configuration keys that every job has: a path from the working directory",
    )
    base: dict[str, Any] = setting(factory=dict, help="configuration keys that every job has")
    variants: dict[str, dict[str, Any]] = setting(
        factory=dict, help="configuration keys by variant: only what differs from the base"
    )
    grid: dict[str, list[Any]] = setting(
        factory=dict, help="values by configuration key; every combination is a job"
    )
    seeds: Any = setting(1, help="how many seeds, from the configuration's on, or which ones")
    priority: dict[str, int] = setting(
        factory=dict, help=f"order of the variants: lower numbers first, {PRIORITY} if not given"
    )
    collapse_is: str = setting(
        "result",
        help="what a collapsed run is: a result or a failure",
        validator=in_(("result", "failure")),
    )
    requires: list[Any] = setting(
        factory=list,
        help="measures without which a completed run is incomplete: a name, or `name` and `every`",
    )
    fail_fast: bool = setting(False, help="whether no job is begun any more once one has failed")
    timeout_minutes: float | None = setting(
        None,
        help="longest time of an attempt",
        validator=optional(and_(gt(0), le(threading.TIMEOUT_MAX / 60))),
    )
    lost_after: float = setting(
        60.0,
        help="seconds without a heartbeat after which a worker is lost",
        validator=and_(gt(0), le(threading.TIMEOUT_MAX)),
    )
    columns: Any = setting(
        factory=list,
        help="values of each run in the exported table, by the name of a key of its summary, of a "
        "measure, or of a setting, as `config.learning_rate`; every number and text of the summary "
        "if empty. A mapping of names gives the whole table: these columns, of the runs that count",
    )
    series: dict[str, str] = setting(
        factory=dict,
        help="measures whose course is exported, a file for each run, by the name of the column",
    )
    table: str = setting("runs", help="name of the exported table, without its ending")
    checks: dict[str, Any] = setting(
        factory=dict, help="`[LOWEST, HIGHEST]` of the values of such a name; null is no limit"
    )
    alerts: dict[str, Any] = setting(
        factory=dict,
        help="limits whose transgression `status` tells: `failed` and `collapsed` as shares, "
        "`minutes` of a job, and `epochs` after which it may take longer",
    )
    executors: dict[str, dict[str, Any]] = setting(
        factory=dict, help="settings of executors by name, for those that --executor does not give"
    )
    resources: dict[str, Any] = setting(
        factory=dict, help="what a GPU has, and what workers and runs may take of it"
    )
    retry: dict[str, dict[str, Any]] = setting(
        factory=dict, help="what is done about a cause of failure, in place of the default"
    )
    study: bool = setting(
        False, help="whether `explain` or `compare` makes the jobs: they write it, you need not"
    )

    def __attrs_post_init__(self) -> None:
        for names in (self.variants, self.priority):
            for name in names:
                check_name(name, "variants" if names is self.variants else "priority")
        self._check_variants(self.priority, "priority")
        check_name(self.table, "table")
        if self.table.lower() == STATISTICS:
            raise BadInput(f"{self.table} is another file of the export", key="table")
        if taken := {*PLACE} & {*self.series}:
            problem = f"{', '.join(sorted(taken))}: a column that each file of series has"
            raise BadInput(problem, key="series")
        _check_columns(self.columns)
        for key, values in self.grid.items():
            if not values:
                raise BadInput("no value is given", key=f"grid.{key}")
        check_seeds(self.seeds)
        for name in LIMITS:
            check_finite(getattr(self, name), name)
        # Which check what they hold.
        _ = self.rules, self.measures, self.ranges, self.limits
        self._check_variants(self.declared.memory_gb, "resources.memory_gb")

    @property
    def variant_names(self) -> list[str]:
        """The names of the variants; ``base`` if there are none."""
        return list(self.variants) or ["base"]

    def _check_variants(self, names: Mapping[str, Any], key: str) -> None:
        unknown = set(names) - set(self.variant_names)
        if unknown:
            problem = f"{', '.join(sorted(unknown))}: there is no such variant"
            raise BadInput(problem, key=key, hint=f"there are {', '.join(self.variant_names)}")

    @property
    def rules(self) -> dict[str, Rule]:
        """What is done about each cause of failure, in the order in which they are tried."""
        return rules_of(self.retry)

    @property
    def measures(self) -> list[Measure]:
        """What a completed run must have."""
        return [_measure(given) for given in self.requires]

    @property
    def ranges(self) -> dict[str, Range]:
        """The lowest and highest value of each name that is checked."""
        return {name: range_of(name, given) for name, given in self.checks.items()}

    @property
    def declared(self) -> Declared:
        """What a GPU has, and what workers and runs may take of it."""
        made: Declared = build(Declared, self.resources, "resources")
        return made

    @property
    def limits(self) -> Alerts:
        """The limits beyond which `status` alerts."""
        made: Alerts = build(Alerts, self.alerts, "alerts")
        return made


def _check_columns(columns: Any) -> None:
    names = [*columns.values(), *columns] if isinstance(columns, dict) else columns
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        hint = "such as [val_loss], or {loss: val_loss}"
        problem = f"a list or a mapping of names is needed, not {shown(columns)}"
        raise BadInput(problem, key="columns", hint=hint)
    twice = [name for i, name in enumerate(columns) if name in list(columns)[:i]]
    if twice:
        raise BadInput(f"{twice[0]} is given twice", key="columns")


def _measure(given: Any) -> Measure:
    if not isinstance(given, str | Mapping):
        problem = f"a measure is a name, or a mapping of name and every, not {shown(given)}"
        raise BadInput(problem, key="requires")
    made: Measure = build(Measure, {"name": given} if isinstance(given, str) else given, "requires")
    return made


def read_sweep(told: str | Path) -> SweepFile:
    """Return the sweep that a YAML file asks for, by its path or as ``PACKAGE:FILE``.

    Raises:
        BadInput: with key and line.
    """
    path = path_of(told)
    held = _with_presets(path, ())
    if not held:
        raise BadInput(f"{path} is empty: it asks for no sweep")
    _check_keys(held)
    with located(_places(held, path)):
        made: SweepFile = build(SweepFile, held)
    # Presets are within.
    read = {key: held[key] for key in SOURCED if key in held}
    return evolve(made, name=made.name or check_name(path.stem, "name"), preset=None, **read)


def _check_keys(held: Mapping[str, Any]) -> None:
    """Raise `BadInput` for what is no key of a sweep file."""
    known, of_runs = fields_dict(SweepFile), fields_dict(TrainConfig)
    for key in held:
        if key not in known:
            meant = key if key in of_runs else nearest(key, [*known, *of_runs])
            hint = f"keys of a sweep file are {', '.join(known)}"
            raise BadInput(
                f"unknown key {shown(key)}",
                meant="" if meant == key else meant,
                hint="keys of a run stand under base" if meant in of_runs else hint,
                source=source_of(held, key),
            )


def _places(held: Mapping[str, Any], path: Path) -> dict[str, Source]:
    """Return where each key of a file was given, and each key of its mappings."""
    places = {key: source_of(held, key) or Source(str(path)) for key in held}
    for key, value in held.items():
        for name in value if isinstance(value, Mapping) else ():
            places[item_key(key, name)] = source_of(value, name) or places[key]
    return places


def check_asks(sweep: SweepFile) -> None:
    """Raise `BadInput` for the file of a study, which asks for no jobs."""
    if sweep.study:
        hint = "the command of the study goes on with it, and altcore sweep run NAME runs its jobs"
        raise BadInput("no sweep file asks for the jobs of a study", key="study", hint=hint)


def path_of(told: str | Path, *, beside: Path | None = None) -> Path:
    """Return the path of a sweep file, which may be one of an installed package.

    A relative path begins ``beside`` another file, if that is given.
    """
    path, (package, colon, file) = Path(told), str(told).partition(":")
    path = path if beside is None else beside.parent / path
    if not colon or path.exists():
        return path
    try:
        found = Path(str(files(package))) / file
    except (ImportError, TypeError, ValueError) as error:
        raise BadInput(f"there is no installed package {package!r}", part=str(told)) from error
    if not found.is_file():
        known = sorted(p.name for p in found.parent.glob("*.yaml"))
        raise BadInput(f"{package} has no file {file!r}", meant=nearest(file, known))
    return found


def _with_presets(path: Path, within: tuple[Path, ...]) -> Mapping[str, Any]:
    """Return the keys of a sweep file, joined with those of its preset, and of that one's."""
    held: Mapping[str, Any] = read_mapping(path, "sweep")
    if not isinstance(preset := held.get("preset"), str):
        return held
    within = (*within, path.resolve())
    with located({"preset": source_of(held, "preset")}), keyed("preset"):
        found = path_of(preset, beside=path)
        if found.resolve() in within:
            raise BadInput(f"{preset} is built on itself")
        below = _with_presets(found, within)
        both: Mapping[str, Any] = joined(below, held, JOINED_BY)
        return both


def sweep_text(sweep: SweepFile) -> str:
    """Return a sweep as the YAML of its file; defaults are left out."""
    held = {
        a.name: without_sources(getattr(sweep, a.name))
        for a in fields(SweepFile)
        if getattr(sweep, a.name) != getattr(SweepFile(), a.name)
    }
    return dump_yaml(held)
