"""What would stop a sweep hours later, found before it: each finding with what mends it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from attrs import define, field, frozen

from altcore.config import TrainConfig
from altcore.errors import BadInput, Interrupted, described, nearest
from altcore.registry import HOOK_KINDS, find, kind_of, left_out
from altcore.runs import TIMINGS, read_lines
from altcore.sweep.checking import SettingsCheck
from altcore.sweep.estimate import checked_seconds, hardware_of, length_of
from altcore.sweep.expand import check_nothing, jobs_of
from altcore.sweep.placing import check_executors
from altcore.sweep.sweep_file import Measure, SweepFile, check_asks
from altcore.sweep.usage import Usage
from altcore.sweep.values import Values
from altcore.sweep.verification import lacking

FEWEST = 4
"""Steps of a short training, unless a measure is asked for more rarely."""


@frozen(kw_only=True)
class Finding:
    """One line of a check."""

    what: str
    told: str = ""
    remedy: str = ""
    """The command, or its option, that mends it; empty if there is nothing to mend."""

    @property
    def passed(self) -> bool:
        """Whether all is well."""
        return not self.remedy


@define
class Preflight:
    """Checks a sweep, variant by variant."""

    sweep: SweepFile
    told: str
    """How the sweep is given to commands."""
    steps: int | None = None
    """Of each short training; enough to see every measure twice if None."""
    failed: set[str] = field(init=False, factory=set)
    """Variants of which something failed."""
    measured: dict[str, dict[str, Any]] = field(init=False, factory=dict)
    """By variant: the seconds of a whole run, those of a step, and the memory, as measured."""

    def findings(self) -> Iterator[Finding]:
        """Yield what is found, in the order in which it would stop a run.

        Raises:
            BadInput: for a study, whose jobs its own command checks.
        """
        check_asks(self.sweep)
        yield from self._dependencies()
        for variant in self.sweep.variant_names:
            for finding in self._variant(variant):
                if not finding.passed:
                    self.failed.add(variant)
                yield finding

    def _dependencies(self) -> Iterator[Finding]:
        try:
            yield Finding(what="dependencies", told=f"torch {version('torch')}")
        except PackageNotFoundError:
            yield Finding(what="dependencies", told="no torch", remedy="pip install torch")
        for line in left_out(again=True):
            yield Finding(what="dependencies", told=line, remedy="altcore plugins check")
        try:
            check_executors(self.sweep)
        except BadInput as error:
            yield Finding(what="executors", told=str(error), remedy=self._edited(error))

    def _variant(self, variant: str) -> Iterator[Finding]:
        what = f"{variant}: configuration"
        try:
            jobs = jobs_of(self.sweep, check_nothing, only=variant)
        except BadInput as error:
            yield Finding(what=what, told=str(error), remedy=self._edited(error))
            return
        yield Finding(what=what, told=f"{len(jobs)} job{'s' * (len(jobs) != 1)}")
        config = jobs[0].train_config("", {})
        missing = [*_missing(config)]
        for kind, told in missing:
            remedy = f"altcore plugins list --kind {kind}"
            yield Finding(what=f"{variant}: dependencies", told=told, remedy=remedy)
        if missing:
            return
        try:
            jobs_of(self.sweep, SettingsCheck(), only=variant)
        except BadInput as error:
            yield Finding(what=what, told=str(error), remedy=self._edited(error))
            return
        what = f"{variant}: data"
        try:
            config, per_epoch = _built(config)
        except Exception as error:
            if isinstance(error, Interrupted):
                raise
            remedy = self._again(f"--set {config.workload}.data=PATH")
            yield Finding(what=what, told=described(error), remedy=remedy)
            return
        yield Finding(what=what, told=config.workload)
        yield from self._trained(variant, config, per_epoch, [length_of(job) for job in jobs])

    def _trained(
        self,
        variant: str,
        config: TrainConfig,
        per_epoch: Fraction | None = None,
        lengths: Sequence[float] = (1.0,),
    ) -> Iterator[Finding]:
        """Yield what a short training of a variant shows, that of the first of its jobs."""
        from altcore.api import train

        what = f"{variant}: training"
        try:
            intervals = [measure.steps(per_epoch) or 1 for measure in self.sweep.measures]
        except BadInput as error:
            yield Finding(what=what, told=str(error), remedy=self._edited(error))
            return
        enough = self.steps or max([FEWEST, *(2 * each for each in intervals)])
        steps = min(enough, config.max_steps)
        with tempfile.TemporaryDirectory() as folder:
            began, usage = time.perf_counter(), Usage()
            try:
                result = train(shortened(config, steps).evolve(name="check", runs_dir=folder))
            # Whatever ends a run would end each of them.
            except Exception as error:
                if isinstance(error, Interrupted):
                    raise
                yield Finding(what=what, told=described(error), remedy=self._mended(config, error))
                return
            whole = time.perf_counter() - began
            values = Values(result.run_directory)
            taken = step_seconds(values.run)
            step = usual(taken)
            memory = usage.memory
            self.measured[variant] = {
                "seconds": max(0.0, whole - sum(taken)) + step * config.max_steps,
                "step_seconds": step,
                "length": lengths[0],
                "length_seconds": step * config.max_steps / lengths[0],
                "hardware": hardware_of(values.run),
                **memory,
            }
            yield Finding(what=what, told=f"{steps} steps, {1e3 * step:.3g} ms each")
            yield self._memory(f"{variant}: memory", config, memory)
            yield from self._declared(variant, config, max(lengths))
            for measure in self.sweep.measures:
                yield self._measure(f"{variant}: {measure.name}", config, values, measure)

    def _measure(self, what: str, config: TrainConfig, values: Values, measure: Measure) -> Finding:
        lack = lacking(values, [measure]).removeprefix(f"{measure.name}: ")
        if not lack:
            each = "step" if measure.every == 1 else f"{measure.every} steps"
            each = measure.every if isinstance(measure.every, str) else each
            often = f"every {each}" if measure.every else "recorded"
            return Finding(what=what, told=often)
        owner, slash, _ = measure.name.partition("/")
        # A plugin measures at an interval of its own; the engine, on recorded steps.
        key = f"{owner}.interval" if slash else "log_interval"
        remedy = self._again(f"--set {key}={measure.every or 1}")
        if lack == "no value":
            known = {name for line in values.lines for name in line}
            meant = nearest(measure.name, known)
            lack += f" (did you mean {meant}?)" if meant else ""
            if slash and owner not in config.plugins:
                remedy = self._again(f"--set 'plugins=[{owner}]'")
            elif slash:
                remedy = f"altcore plugins info {owner}"
        return Finding(what=what, told=lack, remedy=remedy)

    def _memory(self, what: str, config: TrainConfig, used: dict[str, float]) -> Finding:
        key, whole = "peak_memory_bytes", machine_memory()
        if "peak_gpu_memory_bytes" in used:
            key = "peak_gpu_memory_bytes"
            whole = sys.modules["torch"].cuda.get_device_properties(0).total_memory
        told = f"{used[key] / 1e9:.2f} of {whole / 1e9:.1f} GB"
        if used[key] <= whole:
            return Finding(what=what, told=told)
        remedy = self._again(f"--set {config.workload}.batch_size=N")
        return Finding(what=what, told=told, remedy=remedy)

    def _declared(self, variant: str, config: TrainConfig, longest: float) -> Iterator[Finding]:
        """Yield what a run on a GPU would take beyond what the sweep file declares."""
        known = self.measured[variant]
        seconds = checked_seconds(known, longest)
        for told in self.sweep.declared.passed_by(variant, known, seconds):
            remedy = self._again(f"--set {config.workload}.batch_size=N")
            yield Finding(what=f"{variant}: resources", told=f"a run takes {told}", remedy=remedy)

    def _mended(self, config: TrainConfig, error: Exception) -> str:
        if "memory" in str(error).lower():
            return self._again(f"--set {config.workload}.batch_size=N")
        return self._again("--set KEY=VALUE")

    def _edited(self, error: BadInput) -> str:
        if error.source is None or not error.source.file:
            return self._again("--set KEY=VALUE")
        return f"${{EDITOR:-vi}} +{error.source.line or 1} {error.source.file}"

    def _again(self, option: str) -> str:
        return f"altcore sweep check {self.told} {option}"


def step_seconds(run: Path) -> list[float]:
    """Return the time of each recorded step of a run."""
    return [line["step_time_ms"] / 1e3 for line in read_lines(run / TIMINGS)]


def usual(taken: Sequence[float]) -> float:
    """Return the time of a step that neither warms up nor measures much.

    >>> usual([9.0, 1.0, 1.5, 7.0])
    1.5
    """
    return median(taken[1:] or taken)


def shortened(config: TrainConfig, steps: int) -> TrainConfig:
    """Return a configuration for a few steps, without reporters."""
    plugins = [name for name in config.plugins if kind_of(name) != "reporter"]
    return config.evolve(max_steps=steps, warmup_steps=0, plugins=plugins)


def _missing(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield the kind of each plugin that is not there or does not load, and what is wrong."""
    hooking = [(name, HOOK_KINDS) for name in config.plugins]
    for name, kinds in (
        (config.workload, ("workload",)),
        (config.optimizer, ("optimizer",)),
        *hooking,
    ):
        try:
            find(name, kinds).load()
        except BadInput as error:
            yield kind_of(name) or kinds[0], str(error)


def _built(config: TrainConfig) -> tuple[TrainConfig, Fraction | None]:
    """Build a configuration's workload, with its data.

    Returns the configuration with epochs counted in steps, and the steps of an epoch, if any.
    """
    from altcore.engine import Epoch, build_workload, choose_device, counted_in_steps

    workload = build_workload(config, choose_device(config.device))
    batches: int | None = getattr(workload, "steps_per_epoch", None)
    epoch = batches and Epoch(batches, config.gradient_accumulation_steps).steps
    return counted_in_steps(config), epoch or None


def machine_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
