"""How a run ended: ``summary.json``, written once at every end and read by everything.

docs/summary.md is the page of this schema. A value that does not apply is null: never NaN, and
never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import asdict, fields, frozen

from altcore.builtin_types import to_json
from altcore.durable import unreadable_named
from altcore.errors import BadInput, UnreadableFile, nearest, shown
from altcore.hooks import build, setting
from altcore.log import warn_once
from altcore.run_files import SUMMARY
from altcore.runs.json_files import DIGEST, is_as_written, read_json, with_digest
from altcore.runs.run_id import run_id_of

RECORDS = "records"
"""A key of the file beside those of `Summary` and its digest: length and SHA-256 of the other files
of the record."""
UNFINISHED = "unfinished"
"""The status of a run that is not over, or was killed: it has no summary.json."""
ENDED = ("finished", "collapsed", "stopped")
"""Every status of a run that came to an end of its own."""
FAILED = "failed"
STATUSES = (*ENDED, "interrupted", FAILED, UNFINISHED)

_LAST_TENTH = "the same over the last tenth of the recorded steps"


@frozen(kw_only=True)
class Summary:
    """The values of a summary; each field's help says what it holds."""

    name: str = setting(help="the run's name")
    directory: str = setting(help="the run's directory")
    run_id: str | None = setting(
        None, help="the run's id, as `environment.json` has it; null in all processes but the first"
    )
    status: str = setting(help=f"{', '.join(STATUSES[:-1])}; {UNFINISHED} while it runs")
    verdict: str = setting("", help="how it went, in one line")
    learned: bool | None = setting(
        None, help="whether the run learned, by the last evaluation; null without any"
    )
    format: str | None = setting(None, help="the format of the run, or those of its recipe")
    first_formats: list[str] = setting(factory=list, help="formats in use when the run began")
    last_formats: list[str] = setting(factory=list, help="formats in use when it ended")
    recipe: str | None = setting(None, help="the recipe's name")
    compute: str | None = setting(None, help="the type of products")
    optimizer: str | None = setting(None, help="the optimizer's name")
    workload: str | None = setting(None, help="the workload's name")
    workload_facts: dict[str, Any] = setting(factory=dict, help="its facts of data and model")
    seed: int | None = setting(None, help="the seed")
    changes: list[dict[str, Any]] = setting(
        factory=list,
        help="what was another when the run went on: by `--allow-change`, or other steps by which "
        "the schedule is another; `step`, `what`, `before`, `now`",
    )
    steps: int = setting(help="steps begun: batches drawn")
    max_steps: int | None = setting(None, help="steps that the run was to make")
    discarded: int | None = setting(None, help="steps without an update")
    epochs: float | None = setting(
        None, help="passes over the training split; null if the workload has no epochs"
    )
    seconds: float | None = setting(
        None, help="wall-clock seconds of training, of all sessions up to the last recorded step"
    )
    step_time_ms: float | None = setting(
        None, help="mean time of a step in milliseconds, without evaluations and checkpoints"
    )
    items_per_second: float | None = setting(None, help="throughput of the steps, over that time")
    item: str | None = setting(None, help="the plural by which an item is called, as `tokens`")
    final_loss: float | None = setting(None, help="the last training loss that is finite")
    final_loss_step: int | None = setting(None, help="its step")
    best_loss: float | None = setting(None, help="the lowest training loss")
    best_loss_step: int | None = setting(None, help="its step")
    val_loss: float | None = setting(None, help="validation loss of the last evaluation")
    val_loss_float32: float | None = setting(
        None, help="the same weights with float32 products, without quantization"
    )
    first_evaluation: dict[str, Any] = setting(
        factory=dict,
        help="the first evaluation; before the first step if the workload states no "
        "`unigram_entropy`, and then without a line in metrics.jsonl",
    )
    monitor: str | None = setting(None, help="the value that decides what is best")
    best_val_loss: float | None = setting(None, help="validation loss at the best evaluation")
    best_step: int | None = setting(None, help="the step of the best evaluation")
    evaluation: dict[str, Any] = setting(
        factory=dict, help="the last evaluation: its line of metrics.jsonl"
    )
    best_evaluation: dict[str, Any] = setting(factory=dict, help="the best evaluation, likewise")
    checkpoints: dict[str, str] = setting(
        factory=dict, help="the checkpoints that the run ended with as `best` and as `latest`"
    )
    failure_step: int | None = setting(
        None, help="step of the first collapse, else of the plugin's Stop, else of the error"
    )
    failure_reason: str | None = setting(None, help="its reason")
    collapses: list[dict[str, Any]] = setting(
        factory=list, help="every collapse: `step`, `cause`, `reason`"
    )
    stopped_by: str | None = setting(None, help="the plugins whose Stop ended the run")
    stop_reason: str | None = setting(None, help="the reason that they gave")
    error: str | None = setting(None, help="the error or signal that ended the run")
    stored_stall_rate: float | None = setting(
        None, help="share of nonzero updates of stored weights that moved nothing, mean of steps"
    )
    stored_stall_final: float | None = setting(None, help=_LAST_TENTH)
    view_stall_rate: float | None = setting(
        None, help="the same of the quantized views of float32 master weights"
    )
    view_stall_final: float | None = setting(None, help=_LAST_TENTH)
    bit_stall_final: float | None = setting(
        None, help="`stored_stall_final` if weights are stored, else `view_stall_final`"
    )
    bit_stall_of: str | None = setting(None, help="which of the two: `stored` or `view`")
    overflow_rate: float | None = setting(
        None, help="share of quantized values that overflowed; null where none can"
    )
    overflow_final: float | None = setting(None, help=_LAST_TENTH)
    underflow_rate: float | None = setting(
        None,
        help="share rounded to below the smallest normal value: a diagnostic's `underflow_share`",
    )
    underflow_final: float | None = setting(None, help=_LAST_TENTH)
    flushed_rate: float | None = setting(
        None, help="share of quantized values that became 0 and had not been"
    )
    flushed_final: float | None = setting(None, help=_LAST_TENTH)
    shifts: list[dict[str, Any]] = setting(
        factory=list, help="changes of format: `step`, `plugin`, `from`, `to`, `reason`"
    )
    findings: dict[str, list[Any]] = setting(
        factory=dict, help="by plugin, the lines and rows of its hook `findings`"
    )
    reports: list[str] = setting(factory=list, help="reports, as paths in the directory")
    degraded: list[str] = setting(factory=list, help="plugins that broke and were disabled")
    parameter_share: float | None = setting(None, help="share of parameters that are quantized")
    flop_share: float | None = setting(
        None, help="share of FLOPs of products with both operands quantized"
    )
    flop_share_by_operand: dict[str, float] = setting(
        factory=dict, help="share of FLOPs with this operand quantized"
    )
    head: str | None = setting(None, help="the output head, if it was found")
    left_out: str | None = setting(None, help="layers that are left in float32")

    def to_plain(self) -> dict[str, Any]:
        """Return the summary as its file holds it: no number that is not finite, at any depth."""
        plain: dict[str, Any] = _without_nonfinite(asdict(self))
        return plain

    def to_file(self, records: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """Return what summary.json holds: the summary, and digests by which a change is found.

        ``records`` are length and SHA-256 of the other files, by name.
        """
        plain: dict[str, Any] = to_json({**self.to_plain(), RECORDS: dict(records)})
        return with_digest(plain)


EVALUATED = ("loss", "loss_float32", "loss_error", "items", "is_whole")
"""What every evaluation has, with ``val_`` before it; the rest are the workload's measures."""
KEYS = tuple(a.name for a in fields(Summary))


def has_summary(path: Path) -> bool:
    """Whether a run's directory has a summary. Raises `UnreadableFile` if that cannot be told."""
    try:
        return read_summary(path) is not None
    except UnreadableFile:
        raise
    except BadInput:
        return False


def read_summary(path: Path) -> Summary | None:
    """Return the summary in a run's directory, None if it has none.

    Raises:
        BadInput: if the file does not fit the schema, or is that of another run.
        UnreadableFile: if the system does not give it out.
    """
    file = path / SUMMARY
    with unreadable_named(file):
        if not file.exists():
            return None
    try:
        plain = read_json(file)
        if not is_as_written(plain):
            warn_once(_changed(file))
        plain = {k: v for k, v in plain.items() if k not in (DIGEST, RECORDS)}
        # A run that was moved is where it is.
        made: Summary = build(Summary, {**plain, "name": path.name, "directory": str(path)})
        _check(made, run_id_of(path))
    except UnreadableFile:
        raise
    except BadInput as error:
        hint = f"altcore train --resume {path.name} writes it again"
        raise BadInput(f"{file} is not a summary of a run: {error}", hint=hint) from error
    return made


def records_in(path: Path) -> dict[str, dict[str, Any]]:
    """Return length and SHA-256 of the files of a run that ended, by name; empty of any other."""
    plain = read_json(path / SUMMARY)
    return plain.get(RECORDS, {}) if is_as_written(plain) else {}


def changed_summary(path: Path) -> str | None:
    """Return that a run's summary does not match its own digest; None if it does, or is none."""
    plain = read_json(path / SUMMARY)
    return _changed(path / SUMMARY) if plain and not is_as_written(plain) else None


def _changed(file: Path) -> str:
    return f"{file} was changed since the run ended: it does not match its digest"


def _check(summary: Summary, run_id: str | None) -> None:
    """Raise `BadInput` for a status that no run has, or the summary of another run."""
    if summary.status not in STATUSES:
        meant = nearest(summary.status, STATUSES)
        raise BadInput(f"{shown(summary.status)} is no status of a run", key="status", meant=meant)
    if None not in (summary.run_id, run_id) and summary.run_id != run_id:
        raise BadInput(f"it is of run {summary.run_id}, and this is run {run_id}", key="run_id")


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _without_nonfinite(v) for k, v in value.items()}
    return [_without_nonfinite(v) for v in value] if isinstance(value, list | tuple) else value
