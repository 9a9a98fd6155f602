"""Runs of a study: each arm trained once for a seed and a learning rate, and never twice.

A run is identified by the digest of its identity, with which its name ends. A finished run is
read from its directory, so an interrupted study continues. An interrupted run is repeated. Another
recipe, format or data makes another run.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from altcore.api import train
from altcore.builtin_types import duration
from altcore.config import LONGEST_NAME, TrainConfig
from altcore.errors import AltcoreError
from altcore.formats import digest
from altcore.runs import ENDED, EVENTS, METRICS, compare, identity_in, read_lines, summary_of
from altcore.study.arms import Arm
from altcore.study.identity import identity

DIVERGED = ("nan_patience", "diverged")
"""Causes of a collapse that mean that the loss left."""
FACTORS_OF_RATE = (1 / 3, 1.0, 3.0)
"""Learning rates that each contender is tried at, as multiples of the given one."""
DIGITS = 12
"""Of a digest in a run's name."""
IDENTITY = "identity.json"
"""The file of a run that holds what the digest is of."""
TAIL = 0.1
"""Share of the steps at the end over which losses are compared."""


@frozen
class Outcome:
    """The outcome of an arm's run."""

    losses: tuple[float, ...] = field(repr=False)
    """Training losses by step; shorter than the study's steps if the run ended early."""
    diverged: bool
    entropy: float | None
    """The unigram entropy of the data, where the workload states it."""
    lines: tuple[Mapping[str, Any], ...] = field(repr=False)
    """The lines of metrics, diagnostics included."""
    learned: bool | None = None
    """Whether it learned, by the verdict of its summary."""

    def tail(self, steps: int) -> float:
        """Return the mean loss of the last tenth, or infinity if the run diverged."""
        part = self.losses[-tail_length(steps) :]
        return math.inf if self.diverged or not part else math.fsum(part) / len(part)


def tail_length(steps: int) -> int:
    """Return how many steps at the end are compared."""
    return max(1, math.ceil(TAIL * steps))


def gap(outcome: Outcome, reference: Outcome, steps: int) -> float:
    """Return the mean of the per-batch loss differences over the last tenth of the steps.

    A diverged run counts with the unigram entropy. If there is none, or the twin is not below it,
    it counts with the reference's first loss.
    """
    count = tail_length(steps)
    base = reference.losses[-count:]
    if not outcome.diverged:
        differences = (a - b for a, b in zip(outcome.losses[-count:], base, strict=True))
        return math.fsum(differences) / count
    mean = math.fsum(base) / count
    censored = outcome.entropy
    if censored is None or censored <= mean:
        censored = reference.losses[0]
    return censored - mean


@define
class Runner:
    """Trains arms below one folder."""

    folder: Path
    base: TrainConfig
    """Of every run: workload, steps, learning rate; float32 unless it says otherwise."""
    tell: Callable[[str], None] = print
    planned: int = 0
    """Runs that are still thought to come, for the time left."""
    facts: Mapping[str, Any] = field(factory=dict)
    """What the workload says of itself, its data included."""
    doing: Callable[[str], None] = lambda _: None
    """Takes what is being done, which nobody needs to read later."""
    files: dict[str, str] = field(init=False, factory=dict)
    """Digests of the files that the settings name, as the study met them."""
    seen: dict[int, Mapping[str, Any]] = field(init=False, factory=dict)
    """The identity of the first run of each seed."""
    done: int = field(init=False, default=0)
    seconds: list[float] = field(init=False, factory=list)
    """What the runs of this session took."""

    def run(self, arm: Arm, seed: int, rate: float = 1.0, **keys: Any) -> Outcome:
        """Train an arm, or read its earlier outcome. ``rate`` multiplies the learning rate."""
        config = self._config(arm, seed, rate, keys)
        known_by = self._identity(config)
        short = digest(known_by)[:DIGITS]
        path = next((self.folder / "runs").glob(f"*-{short}"), None)
        if path is not None and not _is_whole(path, config.max_steps):
            shutil.rmtree(path)
            path = None
        if path is None:
            end = f"-s{seed}-lr{rate:.3g}-{short}".replace(".", "_")
            path = self._train(config, arm.key[: LONGEST_NAME - len(end)] + end)
            self._check_data(path, seed)
            text = json.dumps(known_by, indent=1)
            (path / IDENTITY).write_text(text + "\n", encoding="utf-8")
        self.planned = max(0, self.planned - 1)
        return outcome(path, self.base.max_steps)

    def digest_of(self, arm: Arm) -> str:
        """Return the digest that identifies an arm, for all seeds."""
        return digest(self._identity(self._config(arm, 0, 1.0, {})))

    def _config(self, arm: Arm, seed: int, rate: float, keys: Mapping[str, Any]) -> TrainConfig:
        return self.base.evolve(
            **{
                "format": None,
                "recipe": arm.recipe(),
                "freeze": arm.freeze,
                "seed": seed,
                "learning_rate": self.base.learning_rate * rate,
                **arm.keys,
                **keys,
            }
        )

    def _identity(self, config: TrainConfig) -> dict[str, Any]:
        found = identity(config, self.facts)
        for name, now in found["files"].items():
            if self.files.setdefault(name, now) != now:
                raise AltcoreError(
                    f"{name} changed while the study ran, and runs cannot be compared: the same "
                    "command begins new ones beside them"
                )
        return found

    def _check_data(self, path: Path, seed: int) -> None:
        """Raise `AltcoreError` if a run saw other data than an earlier one; the run is removed.

        Data that only their first batch is known by are those of its seed.
        """
        now = identity_in(path)
        first = self.seen.setdefault(seed, now)
        changes = [c for c in compare(first, now) if c.kind in ("data", "world_size")]
        if changes:
            shutil.rmtree(path)
            told = "; ".join(map(str, changes))
            raise AltcoreError(
                f"the data changed while the study ran, and runs cannot be compared: {told}: the "
                "same command begins new ones beside them"
            )

    def _train(self, config: TrainConfig, name: str) -> Path:
        left = f"; at most {duration(self._left())} left" if self.seconds else ""
        self.doing(f"run {self.done + 1} of at most {self.done + self.planned}: {name}{left}")
        began = time.perf_counter()
        train(config.evolve(name=name, runs_dir=str(self.folder / "runs")))
        self.seconds.append(time.perf_counter() - began)
        self.done += 1
        self.tell(f"{name}: {self.seconds[-1]:.0f} s; at most {duration(self._left())} left")
        return self.folder / "runs" / name

    def _left(self) -> float:
        """Return the seconds that the planned runs take, if they take as long as those so far."""
        return self.planned * math.fsum(self.seconds) / len(self.seconds)

    def best_rate(self, arm: Arm, seed: int) -> float:
        """Return the factor of the learning rate at which the arm ends with the lowest loss.

        Uses ``seed``, which no result may use. If every rate diverges, returns the lowest.
        """
        tails = {
            rate: self.run(arm, seed, rate).tail(self.base.max_steps) for rate in FACTORS_OF_RATE
        }
        return min(tails, key=lambda rate: tails[rate])


def outcome(path: Path, steps: int) -> Outcome:
    """Read the outcome of a run from its directory."""
    lines = [x for x in read_lines(path / METRICS) if "loss" in x]
    losses = tuple(_number(x["loss"]) for x in lines)
    causes = {e.get("cause") for e in read_lines(path / EVENTS) if e.get("event") == "collapse"}
    finite = all(map(math.isfinite, losses[-tail_length(steps) :]))
    early = len(losses) < steps
    summary = summary_of(path)
    entropy = summary["workload_facts"].get("unigram_entropy")
    diverged = early or not finite or bool(causes & set(DIVERGED))
    return Outcome(losses, diverged, entropy, tuple(lines), summary["learned"])


def _is_whole(path: Path, steps: int) -> bool:
    """Return whether a run ended and its record is complete."""
    status = summary_of(path)["status"]
    lines = sum("loss" in x for x in read_lines(path / METRICS))
    return status in ENDED and (status != "finished" or lines == steps)


def _number(value: Any) -> float:
    """Return a loss from metrics.jsonl, where nan and inf are words."""
    return float(value) if value is not None else math.nan
