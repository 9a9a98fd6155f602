"""Studies from Python: `explain` and `compare` as functions, whose answers show themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from attrs import field, frozen
from torch import nn

from altcore.errors import DEFAULT
from altcore.study import (
    SHOWN,
    Entrants,
    Options,
    Own,
    default_recipe,
    load_answer,
    run_compare,
    run_explain,
)
from altcore.yaml_files import read_mapping

Config = Mapping[str, Any] | str | Path | None


@frozen
class Answer:
    """What a study found."""

    found: dict[str, Any] = field(repr=False)
    """All that the .json file holds beside its digest; ``about`` says how it was found."""
    file: Path
    """The .json file in the study's folder. What reporters made of it lies beside it."""

    def __str__(self) -> str:
        """The answer in words and tables, or the .json if no reporter has rendered it."""
        rendered = self.file.with_suffix(SHOWN)
        return (rendered if rendered.is_file() else self.file).read_text(encoding="utf-8")

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        is_rendered = self.file.with_suffix(SHOWN).is_file()
        return str(self) if is_rendered else f"```json\n{self}```"


class StudyOptions(TypedDict, total=False):
    """The options that `explain` and `compare` take, each by its name."""

    seeds: int
    """Runs of each arm, paired with the float32 twin by seed; 5 by default."""
    within: float
    """The largest gap to the twin that counts as training, in the unit of the loss; 0.05 by
    default."""
    rates: Sequence[float] | None
    """Factors of the learning rate: one fixes it, several are the grid. By default the best one of
    each arm is searched for."""
    null: bool
    """Whether the null arm runs, which says how small a gap can be detected; True by default."""
    budget: float | None
    """Minutes for all runs together; decides the steps."""
    name: str | None
    """Of the study's folder; a later call may add to it."""
    executor: str
    """Where runs are made: ``local``, in this process, by default; ``local:2`` is two processes."""
    all_seeds: bool
    """Whether no arm stops before its last seed; by default one does once its verdict is settled.
    """
    model: nn.Module | Callable[[], nn.Module] | None
    """Takes the place of the workload's model: each run trains a copy of it. A function makes one
    for each run, with the random states of its seed."""
    data: str | Path | Callable[..., Any] | None
    """Takes the place of the workload's data, as `altcore.train` takes it: a path, or a function
    ``(split, step, micro) -> batch``. A parameter ``seed`` of the function gets the run's."""
    loss: Callable[[nn.Module, Any], Any] | None
    """Takes the place of the workload's loss, as `altcore.train` takes it."""
    folder: str | Path
    """Holds the studies; ``studies`` by default."""


def explain(config: Config = None, **options: Unpack[StudyOptions]) -> Answer:
    """Find out where training breaks in a format, as ``altcore explain`` does.

    Args:
        config: keys of all runs, as a mapping or a YAML file; ``format`` is the one in question,
            and ``recipe`` says where it is used: by default everywhere that it can be.
        options: as in `StudyOptions`, each by its name.

    Raises:
        BadInput: before anything is written.
        AltcoreError: if a run fails. Finished runs are kept, and the same call goes on.
    """
    given = _options(config, options)
    keys = {} if given.file is None else read_mapping(given.file, "config")
    keys |= {key: value for key, value, _ in given.overrides}
    if "recipe" not in keys:
        given = _options(config, options, recipe=default_recipe(keys.get("format")))
    return _answer(*run_explain(given))


def compare(
    formats: Sequence[str] = (),
    recipes: Sequence[str] = ("master",),
    optimizers: Sequence[str] = (),
    config: Config = None,
    *,
    roundings: Sequence[str] = (),
    plugins: Sequence[str] = ("none",),
    arms: Mapping[str, str] | None = None,
    ablate: Mapping[str, str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    against: str | None = None,
    metric: str = "train",
    **options: Unpack[StudyOptions],
) -> Answer:
    """Compare formats, recipes and optimizers on identical batches, as ``altcore compare`` does.

    Args:
        formats: names, or .yaml files.
        recipes: names, or .yaml files, of recipes that each format is put into.
        optimizers: as ``NAME`` or ``NAME:KEY=VALUE``; by default that of the configuration.
        config: other keys of all runs, as a mapping or a YAML file.
        roundings: as ``ROUNDING`` or ``ROLE=ROUNDING``; by default what the recipes say.
        plugins: as ``NAME`` or ``NAME:KEY=VALUE``, besides those of all runs, or ``none``.
        arms: further recipes by the names that they shall have, ``none`` for float32.
        ablate: recipes by name that also run without each of their ingredients.
        settings: keys of the configuration by the name of the arm that has them.
        against: the arm, or the format, recipe, rounding, optimizer or plugin, to hold others
            against.
        metric: ``train``, the loss of the last steps, or ``val``, that of the last evaluation.
        options: as of `explain`.

    Raises:
        BadInput: before anything is written.
        AltcoreError: if a run fails. Finished runs are kept, and the same call goes on.
    """
    given = _options(config, options)
    entrants = Entrants(
        formats=formats,
        recipes=recipes,
        roundings=roundings,
        optimizers=optimizers,
        plugins=plugins,
        arms=arms or {},
        ablate=ablate or {},
        settings=settings or {},
        against=against,
        metric=metric,
    )
    return _answer(*run_compare(given, entrants))


def read_answer(file: str | Path) -> Answer:
    """Return the answer that a study wrote, by the path of its .json file or of a rendering.

    Raises:
        BadInput: if there is none.
    """
    path = Path(file).with_suffix(".json")
    return Answer(load_answer(path), path)


def _options(config: Config, given: StudyOptions, **defaults: Any) -> Options:
    keys = config if isinstance(config, Mapping) else {}
    file = None if config is None or isinstance(config, Mapping) else str(config)
    overrides = [(key, value, None) for key, value in keys.items()]
    more = [(key, value, DEFAULT) for key, value in defaults.items()]
    rest: dict[str, Any] = {**given}
    own = {name: rest.pop(name) for name in ("model", "data", "loss") if name in rest}
    if isinstance(own.get("data"), str | Path):
        overrides.append(("data", str(own.pop("data")), None))
    return Options(file, [*overrides, *more], own=Own(**own), **rest)


def _answer(found: dict[str, Any], folder: Path) -> Answer:
    return Answer(found, folder / f"{found['about']['page']}.json")
