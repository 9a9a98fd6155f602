"""The reporter ``progress``: how the run is doing, on standard error while it runs."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import structlog
from attrs import field
from attrs.validators import gt

from altcore.plugin import hookimpl, log, printable, setting
from altcore_reporters.page.words import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from altcore.plugin import Run, Step

REFRESH = 0.25
"""Seconds between redraws of the live bar."""


@attrs.define(eq=False)
class Progress:
    """A live bar on a terminal; elsewhere a plain line now and then, and one at the end.

    If structlog renders JSON, as with ``--log-json``, the lines are messages of the log.

    Shown are the step, the loss, the gradient norm, throughput (items that the workload counts,
    over the last steps, without evaluations and checkpoints), the overflow rate and the stall
    rates. The numbers are those of the last recorded step.
    """

    heartbeat: float = setting(
        10.0, help="seconds between lines if standard error is not a terminal", validator=gt(0)
    )
    console: Any = field(init=False, default=None)
    """A rich Console, which is imported late; standard error unless one was put here before."""
    bar: Any = field(init=False, default=None)
    """A rich Progress, on a terminal."""
    line: Mapping[str, Any] = field(init=False, factory=dict)
    """The last line of metrics."""
    timings: deque[Mapping[str, float]] = field(init=False, factory=lambda: deque(maxlen=50))
    """Those of the last recorded steps."""
    shown_at: float = field(init=False, default=0.0)
    began: tuple[int, float] = field(init=False, default=(0, 0.0))
    """The step at which this session of the run began, and when."""

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Say what is quantized, and open the bar, where there is a terminal for one."""
        # Imported here, so that a run without this reporter does not pay for it.
        from rich.console import Console

        if self.console is None:
            # Not rich's own guess: FORCE_COLOR would send a live bar into a log file.
            is_terminal = _is_terminal(sys.stderr)
            file: Any = _StandardError()
            self.console = Console(file=file, force_terminal=is_terminal)
        self.shown_at = time.monotonic()
        self.began = run.step, self.shown_at
        self._tell(run.quantization.coverage().line)
        if self.console.is_terminal and not (self.console.is_dumb_terminal or _logs_json()):
            self.bar = _bar(self.console)
            self.bar.add_task("", total=run.config.max_steps, completed=run.step, state="")
            self.bar.start()

    @hookimpl
    def pre_backward(self, run: Run, step: Step) -> None:
        """A step has come to its first loss: the ones before it are done."""
        if step.micro == 0:
            self._show(run, step.index - 1)

    @hookimpl
    def on_record(self, metrics: Mapping[str, Any], timings: Mapping[str, float]) -> None:
        """Keep what is shown next."""
        self.line = metrics
        self.timings.append(timings)

    @hookimpl
    def run_end(self, run: Run, summary: Mapping[str, Any]) -> None:
        """Close the bar, whatever happened; without one, say how it ended."""
        if self.bar is not None:
            self._show(run, summary["steps"], force=True)
            self.bar.stop()
            self.bar = None
        elif self.console is not None:
            self._tell(f"{summary['status']} at {self._state(run, summary['steps'])}", self.line)

    def _show(self, run: Run, done: int, force: bool = False) -> None:
        if self.console is None:
            return
        now, wait = time.monotonic(), self.heartbeat if self.bar is None else REFRESH
        if now - self.shown_at < wait and not force:
            return
        self.shown_at = now
        if self.bar is None:
            self._tell(self._state(run, done, self._left(run, done)), self.line)
        else:
            task = self.bar.task_ids[0]
            self.bar.update(task, completed=done, state=", ".join(self._numbers(run)), refresh=True)

    def _tell(self, text: str, line: Mapping[str, Any] | None = None) -> None:
        assert self.console is not None
        if _logs_json():
            own = {key: value for key, value in (line or {}).items() if "/" not in key}
            log.info(text, **own)
            return
        # One line each: wrapped lines would be hard to read in a log, and to search.
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _state(self, run: Run, done: int, left: str = "") -> str:
        total = run.config.max_steps
        return ", ".join([f"step {done}/{total} ({done / total:.0%}{left})", *self._numbers(run)])

    def _left(self, run: Run, done: int) -> str:
        """Return how long the other steps take if they take as long as those of this session."""
        first, began = self.began
        if done <= first:
            return ""
        seconds = (time.monotonic() - began) / (done - first) * (run.config.max_steps - done)
        return f", about {duration(seconds)} left"

    def _numbers(self, run: Run) -> list[str]:
        line, parts = self.line, []
        if "loss" in line:
            parts.append(f"loss {line['loss']:.4f}")
        if "grad_norm" in line:
            parts.append(f"grad_norm {line['grad_norm']:.3g}")
        speed = self.items_per_second()
        if speed is not None:
            parts.append(f"{count(speed)} {run.workload.item}/s")
        if line:
            parts += rates(line)
        return parts

    def items_per_second(self) -> float | None:
        """Return the throughput over the last steps, or None before there is one."""
        if not self.timings:
            return None
        first, last = self.timings[0], self.timings[-1]
        if first is last:
            return last["items_per_second"]
        seconds = last["training_seconds"] - first["training_seconds"]
        items = last["training_items"] - first["training_items"]
        return items / seconds if seconds > 0 else None


def rates(line: Mapping[str, Any]) -> list[str]:
    """Return overflow and stall in words; what cannot be is never shown as 0."""
    overflow, flushed = line.get("overflow_rate"), line.get("flushed_rate")
    if overflow is not None:
        words = [f"overflow {overflow:.2%}"]
    else:
        # Quantizers count what they flush; without them there is nothing to overflow.
        words = ["overflow n/a" if flushed is None else "overflow n/a (amax)"]
    stalls = [(kind, line.get(f"{kind}_stall_rate")) for kind in ("stored", "view")]
    found = [f"{kind} stall {rate:.1%}" for kind, rate in stalls if rate is not None]
    return words + (found or ["stall n/a"])


def count(value: float) -> str:
    """Return a number short enough for a bar.

    >>> count(987.6), count(12345), count(2500000)
    ('988', '12.3k', '2.5M')
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def _logs_json() -> bool:
    last = structlog.get_config()["processors"][-1]
    return isinstance(last, structlog.processors.JSONRenderer)


def _bar(console: Console) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    # The one column that may wrap: on a narrow terminal it takes a second line.
    state = Column(no_wrap=False)
    return Bar(
        MofNCompleteColumn(),
        BarColumn(bar_width=16),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}", markup=False, table_column=state),
        console=console,
        # Drawn from the hooks: a thread of its own would take time from the training.
        auto_refresh=False,
        # Standard output that is piped elsewhere stays there.
        redirect_stdout=_is_terminal(sys.stdout),
    )


class _StandardError:
    """Standard error for rich: what cannot be printed is left out, and never ends the run.

    rich itself would end the process if the reader has gone.
    """

    def __init__(self) -> None:
        # Below a bar that the caller shows, as rich itself writes.
        self._stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def write(self, text: str) -> int:
        with suppress(Exception):  # it may be full or closed, or there is none
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(Exception):
            self._stream.flush()


def _is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; one that is closed is not, nor is None."""
    with suppress(Exception):
        return bool(stream.isatty())
    return False
