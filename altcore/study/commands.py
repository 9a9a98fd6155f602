"""The studies as commands: prepare, announce the cost, run, write the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import evolve

from altcore.api import layers_of
from altcore.builtin_types import duration
from altcore.config import Override, TrainConfig, defaults
from altcore.errors import DEFAULT, BadInput, located
from altcore.estimates import student
from altcore.formats import BlockFormat
from altcore.hooks import format_or_none
from altcore.registry import entries
from altcore.runs import as_name, recipe_label
from altcore.study import answer, cautions
from altcore.study.arm_recipes import format_and_recipe
from altcore.study.arms import Arm, factorial, frozen_control
from altcore.study.compare import Comparison
from altcore.study.contenders import Entrants, contenders, same_runs
from altcore.study.differences import pairs
from altcore.study.explain import Explanation
from altcore.study.identity import plain
from altcore.study.keys import format_key
from altcore.study.measures import VAL_STEPS
from altcore.study.null_arm import null_arm
from altcore.study.options import Options
from altcore.study.own_keys import own_keys
from altcore.study.rates import Curve
from altcore.study.record import Question, agreed_steps, claim, held, read
from altcore.study.repeat import to_repeat
from altcore.study.runner import Runner
from altcore.study.setup import Cost, base_config, prepare, steps_within
from altcore.yaml_files import is_yaml_file, read_mapping

READING = "reading the data and the model"


def default_recipe(fmt: str | None) -> str:
    """Return the recipe of a study that names none: the format everywhere that it can be."""
    # Anything else is refused with the rest of the configuration.
    with suppress(BadInput):
        return "master" if isinstance(format_or_none(fmt), BlockFormat) else "full"
    return "full"


def run_explain(options: Options) -> tuple[dict[str, Any], Path]:
    """Explain where a recipe breaks; return the answer and its folder."""
    student()  # without scipy there would be no answer
    config, sources = base_config(
        options.file, options.overrides, defaults()["observers"], options.own
    )
    with located(sources):
        return _explain(options, config)


def _explain(options: Options, config: TrainConfig) -> tuple[dict[str, Any], Path]:
    options.doing(READING)
    layers, ties, described = layers_of(config, **options.own.parts(config.seed))
    plan = config.make_recipe().resolve(layers)
    if not any(any(casts.values()) for casts in plan.values()):
        raise BadInput("there is nothing to explain: the recipe quantizes nothing")
    full = factorial(plan)
    if config.format is not None:
        label, called = config.format.name, format_key(config.format)
    else:
        used = {c.format.name for casts in plan.values() for c in casts.values() if c}
        label, called = f"{', '.join(sorted(used))} ({config.recipe_name})", recipe_label(config)
    name = options.name or f"explain-{called}-{config.workload}".lower()
    seeds = [config.seed + i for i in range(options.seeds)]
    runner = _runner(options, name, config, described)
    null = null_arm(layers) if options.null else None
    study = Explanation(
        runner,
        plan,
        seeds,
        options.within,
        ties,
        options.schedule,
        given_rates=options.rates,
        null=null,
    )
    arms = [frozen_control(plan), *full.values()]
    rows = len(full) - 1  # all but the twin
    asked = {"format": label, "recipe": config.recipe_name}
    with held(runner.folder), runner.lasting():
        begun = _begin(options, runner, "explain", asked, arms, study.runs_at_most, seeds, rows)
        study.watch = watching(runner.base)
        found = study.explain()
        nulls = [found["null"]] if "null" in found else []
        about = {**asked, **facts(runner, begun, rows, study.runs.curves, options, nulls)}
        about["cautions"] += cautions.about_runs_of_twins({"the float32 twin": study.runs.twins})
        about |= to_repeat(begun.command, options, runner.base, asked, runner.folder, runner.facts)
        whole = {"about": about, **found}
        written = answer.write(runner.folder, whole, options.tell)
    return written, runner.folder


def run_compare(options: Options, entrants: Entrants) -> tuple[dict[str, Any], Path]:
    """Compare the arms that are asked for; return the rows and their folder."""
    student()  # without scipy there would be no answer
    if entrants.metric == "val" and "eval_steps" not in {key for key, _, _ in options.overrides}:
        more = [("eval_steps", VAL_STEPS, DEFAULT), *options.overrides]
        options = evolve(options, overrides=more)
    config, sources = base_config(
        options.file, options.overrides, defaults()["observers"], options.own
    )
    with located(sources):
        return _compare(options, config, entrants)


def _compare(
    options: Options, config: TrainConfig, entrants: Entrants
) -> tuple[dict[str, Any], Path]:
    options.doing(READING)
    layers, _, described = layers_of(config, **options.own.parts(config.seed))

    def configure(plugins: Sequence[str], own: Sequence[Override]) -> TrainConfig:
        given = {key for key, _, _ in own}
        others = [override for override in options.overrides if override[0] not in given]
        overrides, observers = [*others, *own], defaults()["observers"]
        return base_config(options.file, overrides, observers, options.own, plugins)[0]

    arms = contenders(config, layers, entrants, configure)
    pairs(arms, entrants.against)  # a name that is none is found before anything runs
    same = cautions.about_same_runs(same_runs(arms))
    for caution in same:
        options.tell(f"caution: {caution}")
    keys = {arm.optimizer: own_keys(config, configure, arm.optimizer) for arm in arms}
    called = "-".join(dict.fromkeys(arm.start.called for arm in arms))
    name = options.name or as_name(f"compare-{called}").lower()
    seeds = [config.seed + i for i in range(options.seeds)]
    runner = _runner(options, name, config, described)
    null = null_arm(layers) if options.null else None
    given = entrants.against, options.schedule, entrants.metric, options.rates, null
    study = Comparison(runner, arms, seeds, options.within, keys, *given)
    asked = entrants.to_plain()
    rows = len(arms)
    trained = sorted(study.arms().values(), key=lambda arm: arm.key == arms[-1].key)
    with held(runner.folder), runner.lasting():
        tried = trained[:-1]
        most = study.runs_at_most
        begun = _begin(options, runner, "compare", asked, trained, most, seeds, rows, tried)
        found = study.compare()
        nulls = [twin["null"] for twin in found["twins"].values() if "null" in twin]
        known = facts(runner, begun, rows, study.runs.curves, options, nulls)
        known["cautions"] += same + cautions.about_twins(found["twins"], len(seeds))
        known["cautions"] += cautions.about_validation(entrants.metric, found["validation"])
        known["cautions"] += cautions.about_runs_of_twins(study.twins)
        known |= to_repeat(begun.command, options, runner.base, asked, runner.folder, runner.facts)
        about = {**asked, **known}
        whole = {"about": about, **found}
        written = answer.write(runner.folder, whole, options.tell)
    return written, runner.folder


def _runner(
    options: Options, name: str, config: TrainConfig, described: Mapping[str, Any]
) -> Runner:
    return Runner(
        options.folder / name,
        config,
        options.tell,
        facts=described,
        doing=options.doing,
        executor=options.executor,
        own=options.own,
    )


def watching(config: TrainConfig) -> dict[str, Any]:
    """Return the keys that activate the full arm's diagnostics, if these are installed."""
    installed = {e.name for e in entries()}
    wanted = {k: v for k, v in defaults()["explain"].items() if k in installed}
    often = max(1, config.max_steps // 40)
    settings = {k: {**v, "interval": often} for k, v in wanted.items()}
    plugins = [*config.plugins, *(k for k in wanted if k not in config.plugins)]
    return {"plugins": tuple(plugins), "settings": {**config.settings, **settings}}


def facts(
    runner: Runner,
    begun: Question,
    rows: int,
    curves: Mapping[str, Curve],
    options: Options,
    nulls: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the facts that every study states about its runs.

    ``rows``: of its first table; ``curves``: how the learning rate was chosen, by arm; ``nulls``:
    the rows of null arms.
    """
    config, metric = runner.base, metric_of(begun.command, begun.asked)
    return {
        "command": begun.command,
        "page": begun.page,
        "seeds": list(begun.seeds),
        "looks": {str(seeds): share for seeds, share in options.shares.items()},
        "within": begun.within,
        "rates": begun.rates,
        "recipe_files": dict(begun.recipes),
        "workload": options.own.called(config.workload),
        "optimizer": config.optimizer,
        "settings": plain(config.settings),
        "plugins": list(config.plugins),
        "steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "compute": config.compute,
        "cautions": [
            *cautions.before_running(config.max_steps, options.shares, rows, metric),
            *cautions.about_rates(curves),
            *cautions.about_chaos(nulls, begun.within),
            *cautions.about_runs(runner.made_again),
            *cautions.about_platforms(runner.identities),
        ],
        "altcore": version("altcore"),
        "torch": version("torch"),
    }


def metric_of(command: str, asked: Mapping[str, Any]) -> str:
    """Return the loss that a question compares; `explain` asks about the training loss alone."""
    return str(asked["metric"]) if command == "compare" else "train"


def _begin(
    options: Options,
    runner: Runner,
    command: str,
    asked: Mapping[str, Any],
    arms: Sequence[Arm],
    runs: int,
    seeds: Sequence[int],
    rows: int,
    tried: Sequence[Arm] = (),
) -> Question:
    """Fix the number of steps, announce the cost, and write down the question.

    The last of ``arms`` is the most expensive one; ``rows`` are those of the first table; ``tried``
    are trained for a step. In a folder that was asked before, this waits for the first run that
    has to be made, unless the number of steps hangs on it.
    """
    config = runner.base
    asked = plain({**asked, "budget": options.budget, "config": config.to_plain()})
    known, steps = read(runner.folder), config.max_steps
    agreed = None if options.budget is None else agreed_steps(known, command, asked)
    measure = partial(prepare, config, runner, arms, tried)
    is_needed = not known or (options.budget is not None and agreed is None)
    cost = measure() if is_needed else None
    if agreed is not None:
        steps = agreed
    elif options.budget is not None and cost is not None:
        steps = min(steps, steps_within(cost, options.budget, runs))
    warmup_steps = min(config.warmup_steps, max(1, steps // 10))
    runner.base = config.evolve(max_steps=steps, warmup_steps=warmup_steps)
    _announce(options, runner, cost or measure, runs, is_begun=bool(known))
    for caution in cautions.before_running(steps, options.shares, rows, metric_of(command, asked)):
        options.tell(f"caution: {caution}")
    question = Question(
        command=command,
        asked=dict(asked),
        arms={arm.key: runner.digest_of(arm) for arm in arms},
        seeds=seeds,
        within=options.within,
        rates=options.rates,
        steps=steps,
    )
    return claim(runner.folder, known, question, recipe_files(options, asked))


def _announce(
    options: Options, runner: Runner, cost: Cost | Callable[[], Cost], runs: int, *, is_begun: bool
) -> None:
    """Tell what the study takes, and set how often runs save a checkpoint.

    A ``cost`` that is not known is measured before the first run that has to be made.
    """
    told = f"at most {runs} runs of {runner.base.max_steps} steps"
    less = ", less those that are finished" if is_begun else ""
    into = f"; into {runner.folder}"

    def follow(cost: Cost, into: str = "") -> None:
        base = runner.base
        interval = base.checkpoint_interval or cost.steps_between_checkpoints
        runner.base = base.evolve(checkpoint_interval=interval)
        whole = f"about {duration(cost.of(runs, base.max_steps))}{less}"
        each = f"{cost.step:.3f} s a step and {cost.start:.1f} s a run"
        options.tell(f"{told}, {whole}: {each}{into}")

    if isinstance(cost, Cost):
        follow(cost, into)
    else:
        options.tell(f"{told}{less}{into}")
        runner.prepare = lambda: follow(cost())


def recipe_files(options: Options, asked: Mapping[str, Any]) -> list[str]:
    """Return the paths of recipes that are files."""
    if "recipes" in asked:
        named = [*asked["arms"].values(), *asked["ablate"].values()]
        given = [*asked["recipes"], *(format_and_recipe(text)[1] for text in named)]
    else:
        held = {} if options.file is None else read_mapping(options.file, "config")
        given = [{**held, **{key: value for key, value, _ in options.overrides}}.get("recipe")]
    return [r for r in given if is_yaml_file(r)]
