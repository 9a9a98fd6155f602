"""Configuration: defaults, a file and the command line become one checked `TrainConfig`.

Everything is validated here, before anything is built or written; every message names the key,
where it was given, and what would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from attrs import evolve, fields_dict, frozen
from attrs.validators import and_ as both
from attrs.validators import ge, gt, in_, le, lt

from altcore.config.original_keys import Given, expand, meanings, merge, original_names
from altcore.errors import BadInput, nearest, with_article
from altcore.formats import AnyFormat, check_digests, float_format
from altcore.hooks import build, format_or_none, python_fields, setting, to_plain
from altcore.python_values import as_python
from altcore.recipes import (
    SUFFIXES,
    Recipe,
    has_own_formats,
    named,
    own_name,
    parse,
    self_contained,
    with_format,
)
from altcore.registry import HOOK_KINDS, entries
from altcore.yaml_files import load_yaml, read_mapping

_SHARE = both(ge(0.0), le(1.0))
_ORDINARY = float_format("FORMAT", 5, 2, specials="ieee")
"""A format that has all that a recipe may ask of one."""


@cache
def defaults() -> dict[str, Any]:
    """Return the contents of defaults.yaml."""
    return dict(load_yaml((files("altcore.config") / "defaults.yaml").read_text(), "defaults.yaml"))


@frozen(kw_only=True, field_transformer=python_fields)
class TrainConfig:
    """Everything that decides a run. Keys keep the original experiments' names."""

    workload: str = setting(factory=lambda: defaults()["workload"], help="what is trained")
    optimizer: str = setting(
        factory=lambda: defaults()["optimizer"], help="how weights are updated"
    )
    format: AnyFormat | None = setting(
        None, help="the number format, or none", converter=format_or_none
    )
    recipe: str | dict[str, Any] = setting(
        "master",
        help="a named recipe, a .yaml file, or the recipe itself",
        converter=self_contained,
    )
    compute: str = setting(
        "auto", help="type of products", validator=in_(("auto", "float32", "bfloat16"))
    )
    freeze: tuple[str, ...] = setting(
        (), help="layers, by pattern, that keep their first weights", converter=tuple
    )
    compile: bool = setting(False, help="compile the model between its quantized layers")
    device: str = setting("auto", help="auto, cpu, cuda or cuda:N")
    plugins: tuple[str, ...] = setting((), help="active plugins, in order", converter=tuple)
    no_plugins: tuple[str, ...] = setting(
        (), help="plugins and default observers left out", converter=tuple
    )
    strict: bool = setting(False, help="stop when a diagnostic or reporter breaks")
    name: str | None = setting(None, help="the run's name; made from format and recipe if null")
    label: str | None = setting(
        None, help="what the run is called where it has no name; runs may share one"
    )
    project: str | None = setting(None, help="what the run belongs to, for the record")
    tags: tuple[str, ...] = setting((), help="words for the record", converter=tuple)
    runs_dir: str = setting("runs", help="folder of the run directories")
    seed: int = setting(
        42, help="decides weights, batches and rounding", validator=both(ge(0), lt(2**63))
    )
    max_steps: int = setting(300, help="batches drawn in the run", validator=ge(1))
    learning_rate: float = setting(
        1e-3, help="peak learning rate", validator=both(gt(0), lt(math.inf))
    )
    min_lr_ratio: float = setting(
        0.1, help="final learning rate, as a share of the peak", validator=_SHARE
    )
    warmup_steps: int = setting(30, help="steps of linear warm-up", validator=ge(0))
    gradient_accumulation_steps: int = setting(1, help="micro-batches in a step", validator=ge(1))
    grad_clip: float = setting(
        1.0, help="largest gradient norm, after the clippers; 0 is off", validator=ge(0)
    )
    log_interval: int = setting(1, help="steps between lines of metrics", validator=ge(1))
    eval_interval: int = setting(
        100, help="steps between evaluations; 0 is only at the end", validator=ge(0)
    )
    eval_steps: int = setting(8, help="validation batches of an evaluation", validator=ge(1))
    checkpoint_interval: int = setting(
        100, help="steps between checkpoints; 0 is only at the end", validator=ge(0)
    )
    max_checkpoints: int = setting(3, help="regular checkpoints kept", validator=ge(2))
    snapshot_interval: int = setting(
        10, help="steps between snapshots for rollback", validator=ge(1)
    )
    max_snapshots: int = setting(5, help="snapshots kept in memory", validator=ge(1))
    nan_patience: int = setting(
        10, help="consecutive non-finite steps that are a collapse", validator=ge(1)
    )
    bit_stall_threshold: float = setting(
        0.5, help="stall rate that, where the loss stands still, is a collapse", validator=_SHARE
    )
    stall_window: int = setting(
        100, help="steps over which stall and loss are judged", validator=ge(4)
    )
    overflow_threshold: float = setting(
        0.01, help="overflow rate that is warned of", validator=_SHARE
    )
    dead_neuron_threshold: float = setting(
        1e-8, help="a layer's gradient is dead when no element is larger", validator=ge(0)
    )
    dead_neuron_window: int = setting(
        100,
        help="steps of a dead gradient that, where the loss stands still, are a collapse",
        validator=ge(1),
    )
    diverged_ratio: float = setting(
        1.2, help="loss, over the loss at the start, that is a collapse", validator=gt(1)
    )
    original: dict[str, Any] = setting(
        factory=dict, help="values of original flat keys that stand for other keys, for the record"
    )
    format_digests: dict[str, str] = setting(
        factory=dict,
        help="digests of the formats that distributions name, for the record: others are refused",
    )
    settings: dict[str, dict[str, Any]] = setting(
        factory=dict, help="settings of plugins, workload and optimizer, by name"
    )

    def __attrs_post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name, "name")
        if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?))?", self.device):
            raise BadInput(f"device: {self.device!r} is not auto, cpu, cuda or cuda:N")
        twice = {p for p in self.plugins if self.plugins.count(p) > 1}
        if twice:
            raise BadInput(f"plugins: {', '.join(sorted(twice))} is listed twice")
        for owner in self.settings:
            if owner not in self.active:
                raise BadInput(inactive(owner, self.active))
        self.make_recipe()
        check_digests(self.format_digests)

    @property
    def active(self) -> tuple[str, ...]:
        """Names whose settings count: workload, optimizer and plugins."""
        return (self.workload, self.optimizer, *self.plugins)

    def make_recipe(self) -> Recipe:
        """Return the recipe, parsed."""
        try:
            return self._recipe_in(self.format)
        except BadInput as error:
            if self.format is None:
                raise
            # What is wrong with an ordinary format, too, is the recipe's own.
            self._recipe_in(None if has_own_formats(self.recipe) else _ORDINARY)
            raise BadInput(f"format: {self.format.name} cannot be had here: {error}") from error

    def _recipe_in(self, fmt: AnyFormat | None) -> Recipe:
        try:
            if isinstance(self.recipe, str):
                return named(self.recipe, fmt)
            return parse(with_format(self.recipe, fmt), "given")
        except BadInput as error:
            is_named = str(error).startswith("recipe")
            raise BadInput(str(error) if is_named else f"recipe: {error}") from error

    @property
    def recipe_name(self) -> str:
        """The recipe's name; one given in full has that of its file, or ``given``."""
        return self.recipe if isinstance(self.recipe, str) else own_name(self.recipe, "given")

    def to_plain(self) -> dict[str, Any]:
        """Return the configuration as a file holds it; loading it gives the same run."""
        plain = {key: to_plain(getattr(self, key)) for key in fields_dict(TrainConfig)}
        plain["format"] = plain["format"] or "none"
        return plain

    def evolve(self, **changes: Any) -> TrainConfig:
        """Return a changed copy."""
        return evolve(self, **changes)


LONGEST_NAME = 100
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it is a name and no path; `BadInput` otherwise."""
    if not NAME.fullmatch(name) or ".." in name:
        raise BadInput(
            f"{what}: {name!r:.60} is not a name: letters, digits, dot, dash and underscore, "
            f"{LONGEST_NAME} at most, beginning with a letter or digit"
        )
    return name


def inactive(owner: str, active: Iterable[str]) -> str:
    """Return the message for settings of something that this run does not use."""
    known = _owners()
    if owner in known:
        kind = known[owner]
        flag = "--plugin" if kind in HOOK_KINDS else f"--{kind}"
        given = f"settings are given for {with_article(kind)} that is not active"
        return f"{owner}: {given}: add {flag} {owner}"
    if owner in fields_dict(TrainConfig):
        return f"{owner}: a key with one value, which has no settings of its own"
    hint = nearest(owner, [*fields_dict(TrainConfig), *known, *active])
    return f"{owner}: there is no such key, plugin, workload or optimizer{hint}"


def _owners() -> dict[str, str]:
    """Return what may have settings, by name, and its kind."""
    kinds = (*HOOK_KINDS, "workload", "optimizer")
    return {e.name: e.kind for e in entries() if e.kind in kinds}


def read_recipe(path: str, what: str = "recipe") -> dict[str, Any]:
    """Read a recipe's file; it is called by the file's name unless it names itself.

    ``what`` is what names the file, for messages.
    """
    return {"name": Path(path).name, **read_mapping(path, what)}


def load(
    file: str | Path | None = None,
    overrides: Sequence[tuple[str, Any, str]] = (),
    without: Iterable[str] = (),
) -> TrainConfig:
    """Return the checked configuration: defaults, then ``file``, then ``overrides``.

    ``overrides`` are (dotted key, value, how it was given); ``without`` are observers to leave
    out. Raises `BadInput`.
    """
    return make(*gather(file, overrides, without))


def gather(
    file: str | Path | None = None,
    overrides: Sequence[tuple[str, Any, str]] = (),
    without: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what `load` is given as plain keys and values, and where each key was given."""
    given: list[Given] = []
    if file is not None:
        held = read_mapping(file, "--config")
        given += [Given(str(k), v, f" in {file}", 0) for k, v in held.items()]
    given += [Given(str(k), as_python(v), how, 1) for k, v, how in overrides]
    appended = [g.value for g in given if g.key == "+plugins" and g.how == " by --plugin"]
    expanded = expand(g for g in given if g.key != "+plugins" or g.how != " by --plugin")
    first = {k: str(defaults()[k]) for k in ("workload", "optimizer")}
    merged, owners, given_in, implied = merge(expanded, first, fields_dict(TrainConfig).keys())
    if expanded.original:
        merged["original"] = {**merged.get("original", {}), **expanded.original}
    recipe = merged.get("recipe")
    if isinstance(recipe, str) and recipe.endswith(SUFFIXES):
        by_flag = given_in["recipe"] == " by --recipe"
        with located({} if by_flag else given_in):
            merged["recipe"] = read_recipe(recipe, "--recipe" if by_flag else "recipe")
        given_in["recipe"] = f" in {recipe}"
    if without:
        given_in["no_plugins"] = " by --no-plugin"
    with located(given_in):
        left_out = [*_names("no_plugins", merged.get("no_plugins", ())), *without]
        listed = _names("plugins", merged.get("plugins", ()))
        added = [p for p in expanded.plugins if p not in {*listed, *appended}]
        merged["plugins"] = _with_observers([*listed, *added, *appended], left_out)
    active = {str(merged["workload"]), str(merged["optimizer"]), *merged["plugins"]}
    for owner, key in (path.split(".", 1) for path in implied):
        # A flat key's setting of something that is not active is only recorded.
        if owner not in active:
            del owners[owner][key], given_in[f"{owner}.{key}"]
            if not owners[owner]:
                del owners[owner]
    merged |= {"no_plugins": left_out, "settings": owners}
    known = fields_dict(TrainConfig)
    for key in (k for k in merged if k not in known):
        if key in _owners():
            raise BadInput(f"{key}{given_in[key]}: a mapping of settings is needed")
        hint = nearest(key, [*known, *original_names(), *meanings(), *_owners()])
        raise BadInput(f"unknown key {key!r}{given_in[key]}{hint}")
    return merged, given_in


def _names(key: str, given: Any) -> list[str]:
    """Return what a key that lists names was given, as a list."""
    if not isinstance(given, list | tuple) or not all(isinstance(g, str) for g in given):
        raise BadInput(f"{key}: a list of names is needed, not {given!r}")
    return list(given)


def _with_observers(wanted: list[str], without: list[str]) -> list[str]:
    installed = {e.name for e in entries() if e.kind in HOOK_KINDS}
    observers = [o for o in defaults()["observers"] if o in installed]
    for name in without:
        if name not in {*wanted, *defaults()["observers"]}:
            active = [*wanted, *observers]
            raise BadInput(
                f"no_plugins: {name!r} is not active{nearest(name, active)}: "
                f"active are {', '.join(active) or 'none'}"
            )
        if without.count(name) > 1:
            raise BadInput(f"no_plugins: {name!r} is given twice")
    wanted += [o for o in observers if o not in wanted]
    return [w for w in wanted if w not in without]


def missing_observers() -> list[str]:
    """Return the default observers that are not installed: each is left out with one line."""
    installed = {e.name for e in entries()}
    return [o for o in defaults()["observers"] if o not in installed]


def make(plain: Mapping[str, Any], given_in: dict[str, str] | None = None) -> TrainConfig:
    """Make a TrainConfig of plain data, strictly; messages say where a key was given."""
    given_in = given_in or {}
    # Settings of something that is not active are refused under its name.
    with located({path.partition(".")[0]: how for path, how in given_in.items()} | given_in):
        try:
            config: TrainConfig = build(TrainConfig, plain, "config")
        except BadInput as error:
            message = str(error).removeprefix("config: ").removeprefix("config.")
            raise BadInput(message) from error
    return config


@contextmanager
def located(given_in: Mapping[str, str]) -> Iterator[None]:
    """Add where a key was given to a `BadInput` whose message begins with the key."""
    try:
        yield
    except BadInput as error:
        key = re.match(r"[\w.-]*\w", str(error))
        where = given_in.get(key.group()) if key else None
        if not where:
            raise
        raise BadInput(f"{error} (given{where})") from error
