"""Runs in Weights & Biases as records: altcore's own, and those of the original experiments."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from altcore.plugin import EVENTS, BadInput, RunRecord, full_summary, nearest, read_lines

if TYPE_CHECKING:
    from wandb.apis.public import Run as WandbRun

Line = Mapping[str, Any]

SCHEME = "wandb"
ENVIRONMENT = "environment"
"""The key of a run's configuration in W&B that holds its environment.json."""
ADDED = (ENVIRONMENT, "manifold_aware")
"""The keys there that are none of the run's configuration."""

STATUSES = {
    "finished": "finished",
    "crashed": "collapsed",
    "failed": "failed",
    "killed": "interrupted",
    "preempting": "interrupted",
    "preempted": "interrupted",
}
"""The status of a run of the original experiments, by its state in W&B; else it is not over."""

ORIGINAL = {
    "steps": ("steps", "step", "_step"),
    "final_loss": ("final_loss", "loss", "train/loss"),
    "best_loss": ("best_loss", "train/best_loss"),
    "bit_stall_final": ("bit_stall_final", "quantization/bit_stall_rate"),
    "overflow_final": ("overflow_final", "quantization/overflow_rate"),
}
"""Where a value of the summary is in a run of the original experiments, first choice first."""
LOSS = ("loss", "train/loss")
COLUMNS = ("steps", "early", "late", "worst layer", "there")
"""The last columns of a diagnostic's findings, in order: W&B keeps no order of keys."""
RATES = {
    "view_stall_rate": "quantization/bit_stall_rate",
    "overflow_rate": "quantization/overflow_rate",
}
"""What altcore calls a metric of the original experiments, whose weights were quantized views."""


def read_runs(address: str, names: Sequence[str] = ()) -> list[WandbRecord]:
    """Return the records of runs in W&B: those named, or else all of them, oldest first.

    Args:
        address: ``PROJECT`` or ``ENTITY/PROJECT``.
        names: of runs, or their ids.

    Raises:
        BadInput: if a name is not there, or W&B does not answer.
    """
    if not all(address.split("/")) or address.count("/") > 1:
        raise BadInput(f"{address!r} is not PROJECT or ENTITY/PROJECT of W&B")
    import wandb

    either = [{"display_name": {"$in": list(names)}}, {"name": {"$in": list(names)}}]
    with _named_errors(address):
        api = wandb.Api()
        found = list(api.runs(address, {"$or": either} if names else {}, lazy=False))
        known = {text for one in found for text in (one.name, one.id)}
        for name in names:
            if name not in known:
                meant = nearest(name, [one.name for one in api.runs(address)])
                raise BadInput(f"there is no run {name!r} in W&B's {address}", meant=meant)
    return [WandbRecord(one) for one in found]


@contextmanager
def _named_errors(what: str) -> Iterator[None]:
    """Raise the client's errors, which share no type, as `BadInput` that names ``what``."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        problem, hint = " ".join(str(error).split()), ""
        if _is_unanswered(error):
            import wandb

            server = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
            problem = f"{server} did not answer in time, or only with errors"
            hint = "WANDB_HTTP_TIMEOUT=60 lets an answer take a minute"
        raise BadInput(f"{what} cannot be read from W&B: {problem}", hint=hint) from error


def _is_unanswered(error: BaseException) -> bool:
    """Whether the client got no answer from the server, after it asked again and again."""
    while error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "response", error) is None


class WandbRecord(RunRecord):
    """A run as W&B has it. Of the times, it has those of the steps only."""

    def __init__(self, there: WandbRun) -> None:
        super().__init__(there.name or there.id, f"{SCHEME}:{'/'.join(there.path)}")
        self.there, self.url = there, there.url
        given = {k: v for k, v in there.config.items() if not k.startswith("_")}
        self._given = _in_order(given)
        # A value that the run's own summary does not have may be here: that of the last row.
        ended = there.summary_metrics.items()
        known = {k: _in_order(_value(v)) for k, v in ended if v is not None}
        self._ended = {k: v for k, v in known.items() if not _is_nonfinite(v)}
        self._is_original = not {"recipe", "workload"} <= self._given.keys()
        is_own = not self._is_original
        self._is_over = is_own and "status" in self._ended and there.state != "running"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration; of the original experiments, their flat keys."""
        return {k: v for k, v in self._given.items() if k not in ADDED}

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """The keys of environment.json; of another run, W&B's id of it."""
        return self._given.get(ENVIRONMENT) or {"run_id": self.there.id}

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The summary; of a run of the original experiments, what is known of it."""
        keys = full_summary({}).keys()
        if self._is_original:
            known = self._original_summary()
        elif self._is_over:
            known = {k: v for k, v in self._ended.items() if k in keys}
        else:
            # In W&B's summary are the last metrics now, or how an earlier session ended.
            facts = {**self.config, **self.environment}
            known = {k: v for k, v in facts.items() if k in keys}
            known["steps"] = max((line["step"] for line in self.steps), default=0)
        if known.get("format") == "none":
            del known["format"]
        return full_summary({**known, "name": self.name})

    def _original_summary(self) -> dict[str, Any]:
        config = self._given
        is_quantized = config.get("use_fp8", True)
        is_aware = config.get("use_manifold_aware")
        optimizer = "manifold-adamw" if is_aware else "adamw"
        known = {
            "status": STATUSES.get(self.there.state, "unfinished"),
            "format": config.get("fp8_format") if is_quantized else None,
            "optimizer": config.get("optimizer") if is_aware is None else optimizer,
            "bit_stall_of": "view",
            **{key: config.get(key) for key in ("seed", "max_steps")},
            **{key: _first(self._ended, names) for key, names in ORIGINAL.items()},
        }
        if known["best_loss"] is None:
            losses = (_first(line, ("loss",)) for line in self.steps)
            known["best_loss"] = min((x for x in losses if x is not None), default=None)
        known["steps"] = int(known["steps"] or 0)
        return known

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        """The rows in the order of their steps, those logged later last.

        W&B keeps what a resume cut off the record: none of it is after the run's last step.
        """
        last = self._ended.get("steps", math.inf) if self._is_over else math.inf
        with _named_errors(self.source):
            # W&B's cache on disk does not know that a run went on.
            rows = list(self.there.scan_history(use_cache=False))
        known = [
            {k: _value(row[k]) for k in sorted(row, key=_place) if not k.startswith("_")}
            | {"step": int(row.get("step", row["_step"]))}
            for row in sorted(rows, key=lambda row: row["_step"])
        ]
        return [row for row in sorted(known, key=itemgetter("step")) if row["step"] <= last]

    @cached_property
    def metrics(self) -> Sequence[Line]:
        """The lines of steps and of evaluations; what was logged again of a step is its line."""
        lines: dict[tuple[int, bool], dict[str, Any]] = {}
        for row in self._rows:
            line = _as_altcore(row) if self._is_original else row
            if "loss" in line or "val_loss" in line:
                kept = {k: v for k, v in line.items() if k != "step_time_ms"}
                lines[line["step"], "loss" in line] = kept
        return list(lines.values())

    @cached_property
    def timings(self) -> Sequence[Line]:
        """The times of steps."""
        key = "step_time_ms"
        return [{"step": row["step"], key: row[key]} for row in self._rows if key in row]

    @cached_property
    def events(self) -> Sequence[Line]:
        """The lines of events.jsonl, which W&B has when the run is over."""
        with self._files(EVENTS) as folder:
            return read_lines(folder / EVENTS)

    @cached_property
    def reports(self) -> Mapping[str, str]:
        """The Markdown files in reports/, which W&B has when the run is over."""
        with self._files("reports/%.md") as folder:
            found = sorted(folder.glob("reports/*.md"))
            return {f"reports/{file.name}": file.read_text() for file in found}

    @contextmanager
    def _files(self, pattern: str) -> Iterator[Path]:
        """Bring files of the run, by a pattern of SQL, into a folder as long as it is needed."""
        with TemporaryDirectory() as folder:
            with _named_errors(self.source):
                for file in self.there.files(pattern=pattern):
                    file.download(folder, replace=True).close()
            yield Path(folder)


def _first(values: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """Return the first of the values that is a finite number."""
    for name in names:
        value = values.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not _is_nonfinite(value):
            return value
    return None


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _value(value: Any) -> Any:
    """Return W&B's word for a number that is not finite as that number, a histogram as counts."""
    if isinstance(value, dict) and value.get("_type") == "histogram":
        return value["values"]
    words = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return words.get(value, value) if isinstance(value, str) else value


def _in_order(value: Any) -> Any:
    """Return dicts with their keys in order, at every depth."""
    if isinstance(value, Mapping):
        return {k: _in_order(value[k]) for k in sorted(value, key=_place)}
    return [_in_order(v) for v in value] if isinstance(value, list) else value


@cache
def _place(key: str) -> tuple[int, list[str | int]]:
    """Return what a key is sorted by: numbers in it by their value.

    >>> sorted(["h.10", "h.9", "early", "steps"], key=_place)
    ['h.9', 'h.10', 'steps', 'early']
    """
    parts = re.split(r"(\d+)", key)
    last = COLUMNS.index(key) + 1 if key in COLUMNS else 0
    return last, [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _as_altcore(row: Line) -> dict[str, Any]:
    """Return a row of the original experiments with altcore's names beside its own."""
    line = dict(row)
    loss = next((row[name] for name in LOSS if name in row), None)
    if loss is not None:
        line["loss"] = loss
    return line | {own: row[name] for own, name in RATES.items() if name in row}
