"""The start of a study: its configuration, the model's layers, and its cost."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from attrs import frozen

from altcore.api import train
from altcore.builtin_types import digits
from altcore.config import Override, TrainConfig, load_with_sources
from altcore.engine import counted_in_steps
from altcore.errors import DEFAULT, BadInput, Source, located
from altcore.runs import read_lines
from altcore.study.arms import Arm, twin
from altcore.study.outcome import Outcome, outcome_of
from altcore.study.own import NOTHING, Own
from altcore.study.runner import Runner
from altcore.sweep import Job
from altcore.yaml_files import read_mapping

PILOT_STEPS = 6
CHECKPOINTS_SHARE = 0.01
"""Share of a run's time that checkpoints in its course may take."""
FEWEST_STEPS = 50
"""A budget that leaves fewer is refused."""
QUIET: dict[str, Any] = {
    "compute": "float32",
    "eval_interval": 0,
    "checkpoint_interval": 0,
    "max_checkpoints": 2,
}
"""Keys of every run of a study, unless the user gives others: the training loss, and at its end one
evaluation, over as many batches as in any run, which says whether it learned. How often it saves a
checkpoint follows from what a step costs."""


def base_config(
    file: str | None,
    overrides: Sequence[Override],
    observers: Sequence[str],
    own: Own = NOTHING,
    plugins: Sequence[str] = (),
) -> tuple[TrainConfig, Mapping[str, Source | None]]:
    """Return the configuration that every run of a study shares, without epochs, and its sources.

    ``plugins`` are appended to those of the configuration. A study changes the number of steps, and
    runs differ in nothing that their epochs could say. ``own`` is what the caller passed in, whose
    data know of no epochs. What the file says goes before overrides that are defaults.
    """
    given = {key: value for key, value, _ in overrides}
    quiet: list[Override] = [(k, v, DEFAULT) for k, v in QUIET.items() if k not in given]
    with located({"config": Source(flag="--config")}):
        held = {} if file is None else read_mapping(file, "config")
        left_out = {**held, **given}.get("no_plugins") or ()
        others = [name for name in observers if name not in left_out]
        asked = [o for o in (*quiet, *overrides) if o[2] is not DEFAULT or o[0] not in held]
        config, sources = load_with_sources(file, asked, plugins, without=others)
    with located(sources):
        if config.log_interval != 1:
            raise BadInput(
                "a study compares losses step by step, so its runs record each",
                key="log_interval",
                part=str(config.log_interval),
                hint="set it to 1",
            )
        return counted_in_steps(config, own.parts(config.seed).get("data")), sources


@frozen
class Cost:
    """The measured cost of a run."""

    start: float
    """Seconds before the first step and after the last."""
    step: float
    """Seconds a step."""

    @property
    def steps_between_checkpoints(self) -> int:
        """So many that checkpoints take a hundredth of a run: each is quicker than its start."""
        return max(1, math.ceil(self.start / CHECKPOINTS_SHARE / self.step))

    def of(self, runs: int, steps: int) -> float:
        """Return how many seconds so many runs take."""
        return runs * (self.start + steps * self.step)

    def steps_in(self, seconds: float, runs: int) -> int:
        """Return how many steps each run may have."""
        return math.floor((seconds / runs - self.start) / self.step)


def prepare(
    config: TrainConfig,
    runner: Runner,
    arms: Sequence[Arm],
    tried: Iterable[Arm] = (),
) -> Cost:
    """Find out by short runs what would end the study later, and what its last arm costs.

    None is made for what runs in the study's folder answer: that an arm can run, and that seeds
    differ.

    Args:
        config: of all runs.
        runner: of the study.
        arms: the arms that are known by now; the last one is the most expensive.
        tried: those of them that are trained for a step.
    """
    runner.doing("making a step of each arm")
    check_arms(config, [arm for arm in tried if not runner.accepted(arm)], runner.own)
    runner.doing("checking that seeds differ")
    if not any(_seeds_differ(runner.accepted(arm)) for arm in arms if not arm.casts):
        check_seeds(config, runner.own)
    runner.doing("measuring what a step costs")
    return measure_cost(config, arms[-1], runner.own)


def _seeds_differ(runs: Iterable[tuple[Job, Outcome]]) -> bool:
    """Return whether two runs that differ in their seed alone are not the same."""
    first: dict[float, Outcome] = {}  # by learning rate
    return any(
        first.setdefault(job.factors["learning_rate"], outcome).losses != outcome.losses
        for job, outcome in runs
    )


def measure_cost(config: TrainConfig, arm: Arm, own: Own = NOTHING) -> Cost:
    """Measure the cost of a run, by a few steps of the most expensive arm.

    The second of two runs counts, since the first one of a process also loads and compiles.
    """
    _pilot(config, arm, own)
    pilot = _pilot(config, arm, own)
    return Cost(
        max(0.0, pilot.seconds - math.fsum(pilot.steps)), median(pilot.steps[1:] or pilot.steps)
    )


def check_arms(config: TrainConfig, arms: Iterable[Arm], own: Own = NOTHING) -> None:
    """Train each arm for a step: what cannot run is found before the first run, not hours later."""
    for arm in arms:
        _pilot(config, arm, own, steps=1)


def check_seeds(config: TrainConfig, own: Own = NOTHING) -> None:
    """Raise `BadInput` if another seed changes nothing: there would be no intervals.

    The twin is trained for two steps with two seeds, and all that their lines say is compared: a
    model whose last layer begins with zeros has the same first loss on all data.
    """
    seeds = config.seed, config.seed + 1
    made = [config.evolve(seed=seed, eval_steps=1) for seed in seeds]
    one, other = (_pilot(config, twin(), own, steps=2).outcome for config in made)
    if one.lines == other.lines and all(map(math.isfinite, one.losses)):
        raise BadInput(
            f"every seed would be the same run: seeds {seeds[0]} and {seeds[1]} have the same "
            "losses, to the bit",
            key="seeds",
            hint="the model or the data must follow the seed",
        )


@frozen
class Pilot:
    """A short run."""

    seconds: float
    """Of all of it."""
    steps: Sequence[float]
    """The seconds of each step."""
    outcome: Outcome


def _pilot(config: TrainConfig, arm: Arm, own: Own, steps: int = PILOT_STEPS) -> Pilot:
    """Train an arm for a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = train(
            config.evolve(
                name="pilot",
                runs_dir=folder,
                format=None,
                recipe=arm.recipe(),
                max_steps=steps,
                **{"warmup_steps": 0, **arm.keys},
            ),
            **own.parts(config.seed),
        )
        whole = time.perf_counter() - began
        lines = read_lines(result.run_directory / "timings.jsonl")
        times = [x["step_time_ms"] / 1e3 for x in lines]
        return Pilot(whole, times, outcome_of(result.run_directory, steps))


def steps_within(cost: Cost, minutes: float, runs: int) -> int:
    """Return the steps that a budget allows each run. Raises `BadInput` if these are too few."""
    steps = cost.steps_in(60 * minutes, runs)
    if steps < FEWEST_STEPS:
        least = cost.of(runs, FEWEST_STEPS) / 60
        raise BadInput(
            f"--budget {digits(minutes)}: {runs} runs would have {max(steps, 0)} steps each: give "
            f"at least {math.ceil(least)} minutes, or fewer --seeds or a smaller model"
        )
    return steps
