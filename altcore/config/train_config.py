"""The checked configuration of a run.

Everything is validated before anything is built or written. An error names the key, where it was
given, and what would be right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from attrs import evolve, fields_dict, frozen
from attrs.validators import and_ as both
from attrs.validators import ge, gt, in_, le, lt, optional

from altcore.config.epochs import (
    IN_STEPS,
    Unasked,
    given_twice,
    refuse_both,
    without_uncounted,
)
from altcore.config.original_keys import compound_keys, renamed_keys, shared_keys
from altcore.errors import BadInput, Source, keyed, located, nearest, shown, with_article
from altcore.formats import AnyFormat, check_digests, origins_recorded
from altcore.hooks import build, builtin_fields, format_or_none, setting, to_plain
from altcore.recipes import Recipe, name_of, read_recipe, self_contained
from altcore.registry import HOOK_KINDS, Entry, entries
from altcore.yaml_files import load_yaml, without_sources

_SHARE = both(ge(0.0), le(1.0))
_POSITIVE = both(gt(0.0), lt(math.inf))


@cache
def defaults() -> dict[str, Any]:
    """Return the contents of defaults.yaml."""
    text = (files("altcore.config") / "defaults.yaml").read_text()
    return dict(without_sources(load_yaml(text, Source("defaults.yaml"))))


@frozen(kw_only=True, field_transformer=builtin_fields)
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
    shared_amax: bool = setting(
        False, help="scale by the amax over all processes: a message a tensor"
    )
    freeze: tuple[str, ...] = setting(
        (), help="layers, by pattern, whose matrices keep their first values", converter=tuple
    )
    compile: bool = setting(False, help="compile the model between its quantized layers")
    activation_checkpointing: bool = setting(
        False, help="keep only the inputs of the model's blocks, and compute the rest again"
    )
    device: str = setting("auto", help="auto, cpu, cuda or cuda:N")
    plugins: tuple[str, ...] = setting((), help="active plugins, in order", converter=tuple)
    no_plugins: tuple[str, ...] = setting(
        (), help="plugins and default observers left out", converter=tuple
    )
    strict: bool = setting(False, help="stop when a diagnostic or reporter breaks")
    check_observers: bool = setting(
        False, help="check every call of diagnostics and reporters for what it changes"
    )
    hook_timeout: float = setting(
        60.0,
        help="seconds after which a plugin's hook is reported, with its stack",
        validator=_POSITIVE,
    )
    rank_timeout: float | None = setting(
        None,
        help="seconds for which one process of several waits for another; torch's own if null",
        validator=optional(_POSITIVE),
    )
    name: str | None = setting(None, help="the run's name; made from format and recipe if null")
    label: str | None = setting(
        None, help="name of the run's directory if it has no `name`; runs may share one"
    )
    project: str | None = setting(None, help="the project that the run belongs to, for the record")
    tags: tuple[str, ...] = setting((), help="words for the record", converter=tuple)
    runs_dir: str = setting("runs", help="folder of the run directories")
    seed: int = setting(
        42, help="decides weights, batches and rounding", validator=both(ge(0), lt(2**63))
    )
    max_steps: int = setting(factory=lambda: Unasked(300), help="steps of the run", validator=ge(1))
    epochs: float | None = setting(
        None, help="epochs of the run, in place of `max_steps`", validator=optional(_POSITIVE)
    )
    learning_rate: float = setting(1e-3, help="peak learning rate", validator=_POSITIVE)
    schedule: str = setting(
        "cosine",
        help="how the learning rate falls: cosine, constant, linear, wsd or cosine-full",
        validator=in_(("cosine", "constant", "linear", "wsd", "cosine-full")),
    )
    min_lr_ratio: float = setting(
        0.1, help="final learning rate, as a share of the peak", validator=_SHARE
    )
    decay_share: float = setting(
        0.2, help="share of the steps over which schedule wsd falls", validator=_SHARE
    )
    warmup_steps: int = setting(
        factory=lambda: Unasked(30), help="steps of linear warm-up", validator=ge(0)
    )
    warmup_epochs: float | None = setting(
        None,
        help="epochs of linear warm-up, in place of `warmup_steps`",
        validator=optional(both(ge(0), lt(math.inf))),
    )
    gradient_accumulation_steps: int = setting(1, help="micro-batches in a step", validator=ge(1))
    grad_clip: float = setting(
        1.0, help="largest gradient norm, after the clippers; 0 is off", validator=ge(0)
    )
    log_interval: int = setting(1, help="steps between lines of metrics", validator=ge(1))
    eval_interval: int = setting(
        factory=lambda: Unasked(100),
        help="steps between evaluations; 0 is only at the end",
        validator=ge(0),
    )
    evals_per_epoch: int | None = setting(
        None, help="evaluations in an epoch, in place of `eval_interval`", validator=optional(ge(1))
    )
    eval_steps: int = setting(
        8, help="batches of an evaluation, unless the validation split is finite", validator=ge(1)
    )
    monitor: str = setting("val_loss", help="value of an evaluation that says which one is best")
    monitor_mode: str | None = setting(
        None,
        help="whether the best is the lowest (min) or the highest (max); null is for losses",
        validator=optional(in_(("min", "max"))),
    )
    checkpoint_interval: int = setting(
        100, help="steps between checkpoints; 0 is only at the end", validator=ge(0)
    )
    max_checkpoints: int = setting(3, help="regular checkpoints kept", validator=ge(2))
    keep_best: int = setting(
        1, help="further best checkpoints kept as weights only", validator=ge(0)
    )
    snapshot_interval: int = setting(
        10, help="steps between snapshots for rollback", validator=ge(1)
    )
    max_snapshots: int = setting(5, help="snapshots kept in memory", validator=ge(1))
    nan_patience: int = setting(
        10, help="consecutive non-finite steps that are a collapse", validator=ge(1)
    )
    bit_stall_threshold: float = setting(
        0.5, help="stall rate that is a collapse if the loss stands still", validator=_SHARE
    )
    stall_window: int = setting(
        100, help="steps over which stall and loss are judged", validator=ge(4)
    )
    overflow_threshold: float = setting(
        0.01, help="overflow rate above which the run warns", validator=_SHARE
    )
    dead_neuron_threshold: float = setting(
        1e-8, help="a layer's gradient is dead if its root mean square is smaller", validator=ge(0)
    )
    dead_neuron_window: int = setting(
        100,
        help="steps of a dead gradient that are a collapse if the loss stands still",
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
    format_origins: dict[str, str] = setting(
        factory=dict, help="the distributions that name the formats of format_digests"
    )
    steps_per_epoch: int | None = setting(
        None, help="steps of an epoch, for the record: those that were computed with"
    )
    changes: tuple[dict[str, Any], ...] = setting(
        (),
        help="what was another when the run went on, for the record: accepted by --allow-change, "
        "or other steps by which the schedule is another",
        converter=tuple,
    )
    settings: dict[str, dict[str, Any]] = setting(
        factory=dict, help="settings of plugins, workload and optimizer, by name"
    )

    def __attrs_post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name, "name")
        if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?))?", self.device):
            raise BadInput(f"{shown(self.device)} is not auto, cpu, cuda or cuda:N", key="device")
        for entry in entries() if keys_among(self.active) else ():
            if entry.name in self.active:
                check_is_no_key(entry)
        if self.compile and self.activation_checkpointing:
            hint = "compiled graphs choose by themselves what is computed again"
            raise BadInput("does not go with compile", key="activation_checkpointing", hint=hint)
        for name in self.plugins:
            if self.plugins.count(name) > 1:
                raise BadInput(f"{name} is listed twice", key="plugins", item=name)
        for key, steps in IN_STEPS.items() if self.steps_per_epoch is None else ():
            if getattr(self, key) is not None and not isinstance(getattr(self, steps), Unasked):
                raise given_twice(key)
        for owner in self.settings:
            if owner not in self.active:
                raise _inactive(owner, self.active)
        self.make_recipe()
        with keyed("format_digests"):
            check_digests(self.format_digests)

    @classmethod
    def from_plain(
        cls, plain: Mapping[str, Any], sources: Mapping[str, Source | None] | None = None
    ) -> TrainConfig:
        """Make a configuration of plain keys and values, strictly.

        Args:
            plain: as `to_plain` writes it.
            sources: where each key, or ``OWNER.setting``, was given.

        Raises:
            BadInput: with the key, and its source if that is known.
        """
        # Settings of something that is not active are refused under its name.
        owners = {path.partition(".")[0]: source for path, source in (sources or {}).items()}
        origins = plain.get("format_origins")
        known = origins if isinstance(origins, Mapping) else {}
        with located({**owners, **(sources or {})}), origins_recorded(known):
            made: TrainConfig = build(cls, refuse_both(plain, sources or {}))
        return made

    @property
    def active(self) -> tuple[str, ...]:
        """Names whose settings count: workload, optimizer and plugins."""
        return (self.workload, self.optimizer, *self.plugins)

    @property
    def direction(self) -> str:
        """What the best value of `monitor` is: min or max."""
        return self.monitor_mode or "min"

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return the settings of a plugin, workload or optimizer: those that are given, and those
        that are keys of the run as well.
        """
        shared = {setting: getattr(self, key) for setting, key in shared_keys(name).items()}
        return {**shared, **self.settings.get(name, {})}

    def make_recipe(self) -> Recipe:
        """Return the recipe, with the run's format in it."""
        return read_recipe(self.recipe, self.format or "none")

    @property
    def recipe_name(self) -> str:
        """The recipe's name: that of its file, or ``given``, if it names itself nothing else."""
        return name_of(self.recipe)

    def to_plain(self) -> dict[str, Any]:
        """Return the configuration as a file holds it; loading it gives the same run."""
        plain = {key: to_plain(getattr(self, key)) for key in fields_dict(TrainConfig)}
        plain["format"] = plain["format"] or "none"
        return without_uncounted(plain)

    def evolve(self, **changes: Any) -> TrainConfig:
        """Return a changed copy."""
        return evolve(self, **changes)


LONGEST_NAME = 100
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


def check_name(name: str, key: str) -> str:
    """Return ``name`` if it is a name and no path; `BadInput` of ``key`` otherwise."""
    if not NAME.fullmatch(name) or ".." in name:
        raise BadInput(
            f"{shown(name)} is not a name",
            key=key,
            hint="letters, digits, dot, dash and underscore, "
            f"{LONGEST_NAME} at most, beginning with a letter or digit",
        )
    return name


def _inactive(owner: str, active: Iterable[str]) -> BadInput:
    """Return the error of settings whose owner this run does not use."""
    known = owners()
    if owner in known:
        kind = known[owner]
        return BadInput(
            f"settings are given for {with_article(kind)} that is not active",
            key=owner,
            hint=f"add {'--plugin' if kind in HOOK_KINDS else f'--{kind}'} {owner}",
        )
    if owner in fields_dict(TrainConfig):
        return BadInput("a key with one value, which has no settings of its own", key=owner)
    return BadInput(
        "there is no such key, plugin, workload or optimizer",
        key=owner,
        meant=nearest(owner, [*fields_dict(TrainConfig), *known, *active]),
    )


def as_cost(value: float, direction: str) -> float:
    """Return the value whose lowest is the best one, given that of `TrainConfig.direction`."""
    return value if direction == "min" else -value


OWNER_KINDS = (*HOOK_KINDS, "workload", "optimizer")
"""The kinds whose plugins have settings, which are given under their names."""


def owners() -> dict[str, str]:
    """Return the names that may have settings, and the kind of each."""
    return {e.name: e.kind for e in entries() if e.kind in OWNER_KINDS}


def keys_among(names: Iterable[str]) -> set[str]:
    """Return the names that are keys of a configuration, those of the original files included."""
    own = ("preset", "data", *renamed_keys(), *compound_keys())
    return {*fields_dict(TrainConfig), *own}.intersection(names)


def check_is_no_key(entry: Entry) -> None:
    """Raise `BadInput` if settings under the plugin's name would be the value of a key."""
    if entry.kind in OWNER_KINDS and keys_among([entry.name]):
        raise BadInput(
            f"{entry.kind} {entry.name} ({entry.origin}) has the name of a key of the "
            "configuration, and its settings cannot be told from that key",
            hint="a plugin needs a name of its own",
        )
