"""The reporter ``progress``: a live bar on a terminal, a plain line now and then elsewhere."""

import io
import sys
from types import SimpleNamespace

import pytest
from helpers_streams import FAILURES, Broken
from rich.console import Console

import altcore
from altcore.engine import Step
from altcore.hooks import build
from altcore_reporters import progress
from altcore_reporters.progress import Progress, rates

COVERED = "quantized: 93.3% of parameters"
RUN = SimpleNamespace(
    step=0,
    config=SimpleNamespace(max_steps=100, gradient_accumulation_steps=2),
    workload=SimpleNamespace(item="tokens"),
    quantization=SimpleNamespace(coverage=lambda: SimpleNamespace(line=COVERED)),
)
LINE = {
    "step": 1,
    "loss": 2.5,
    "grad_norm": 0.12345,
    "overflow_rate": None,
    "flushed_rate": 0.1,
    "stored_stall_rate": 0.75,
    "view_stall_rate": None,
}
NUMBERS = "loss 2.5000, grad_norm 0.123, 100 tokens/s, overflow n/a (amax), stored stall 75.0%"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


def shown(clock, console, seconds, steps=30, waits=0.0, **settings):
    """Run ``steps`` steps of ``seconds`` each; returns what was written."""
    plugin = build(Progress, settings, "progress")
    plugin.console = console
    plugin.run_start(RUN)
    for index in range(1, steps + 1):
        for micro in range(2):
            plugin.pre_backward(RUN, Step(index, micro=micro))
        spent = {"training_seconds": seconds * index, "training_items": 100 * index}
        line = {**LINE, "step": index}
        plugin.on_record(line, {"items_per_second": 100 / seconds, **spent})
        # Evaluations and checkpoints take time, too.
        clock.now += seconds + waits
    plugin.run_end(RUN, {"status": "finished", "steps": steps})
    covered, _, rest = console.file.getvalue().partition("\n")
    assert covered == COVERED
    return rest


def test_a_heartbeat_where_there_is_no_terminal(clock):
    """Thirty steps of a second are two lines at ten-second intervals and one at the end.

    Two micro-batches of 50 tokens in a second are 100 tokens/s. No line carries a control code.
    """
    written = shown(clock, Console(file=io.StringIO(), force_terminal=False), seconds=1.0)
    assert written.splitlines() == [
        f"step 10/100 (10%, about 1 min 30 s left), {NUMBERS}",
        f"step 20/100 (20%, about 1 min 20 s left), {NUMBERS}",
        f"finished at step 30/100 (30%), {NUMBERS}",
    ]


@pytest.mark.parametrize("stderr", [*map(Broken, FAILURES), None], ids=[*FAILURES, "none"])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_lines_that_cannot_be_printed_are_left_out(stderr, is_terminal, clock, monkeypatch):
    """They cost neither the reporter nor the run."""
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progress, "_is_terminal", lambda stream: is_terminal and stream is stderr)
    monkeypatch.setattr(sys, "stdout", None)
    plugin = build(Progress, {}, "progress")
    plugin.run_start(RUN)
    assert (plugin.bar is not None) == is_terminal
    clock.now += 60
    plugin.pre_backward(RUN, Step(1, micro=0))
    plugin.run_end(RUN, {"status": "finished", "steps": 1})


def test_the_throughput_is_that_of_the_steps(clock):
    """Evaluations and checkpoints between them do not count, as they do not in the summary."""
    console = Console(file=io.StringIO(), force_terminal=False)
    written = shown(clock, console, seconds=1.0, steps=9, waits=9.0)
    assert len(written.splitlines()) == 9
    assert written.count(" 100 tokens/s,") == 9


def test_fast_steps_are_not_lines(clock):
    """A thousand steps within the heartbeat are one line, at the end."""
    console = Console(file=io.StringIO(), force_terminal=False)
    assert len(shown(clock, console, seconds=0.001, steps=1000).splitlines()) == 1


def test_the_heartbeat_is_a_setting(clock):
    """Every five seconds, if asked."""
    console = Console(file=io.StringIO(), force_terminal=False)
    written = shown(clock, console, seconds=1.0, heartbeat=5.0)
    assert len(written.splitlines()) == 6


def test_a_live_bar_on_a_terminal(clock):
    """The bar shows the same numbers, is drawn in place, and gives the cursor back."""
    console = Console(file=io.StringIO(), force_terminal=True, width=130)
    written = shown(clock, console, seconds=1.0)
    assert "30/100" in written
    assert NUMBERS in written
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert written.count(hide) == written.count(show) == 1
    assert written.index(hide) < written.index(show)


def test_redraws_are_limited(clock):
    """A thousand steps in a second redraw the bar a handful of times."""
    console = Console(file=io.StringIO(), force_terminal=True, width=130)
    assert shown(clock, console, seconds=0.001, steps=1000).count("loss") < 10


def test_a_narrow_terminal_keeps_the_step(clock):
    """On 60 columns the numbers wrap; the step is not cut."""
    written = shown(clock, Console(file=io.StringIO(), force_terminal=True, width=60), seconds=1.0)
    assert "30/100" in written


def test_the_end_is_survived_at_any_point(clock):
    """After an error nothing may have begun, no step recorded, or the end be told twice."""
    summary = {"status": "failed", "steps": 0}
    Progress().run_end(RUN, summary)
    plugin = Progress()
    plugin.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    plugin.run_start(RUN)
    plugin.run_end(RUN, summary)
    assert plugin.bar is None
    assert "\x1b[?25h" in plugin.console.file.getvalue()
    plugin.run_end(RUN, summary)


def test_it_writes_to_standard_error_and_is_plain_in_a_log(monkeypatch, capsys):
    """Standard output is left to results; no variable turns a log into a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    plugin = Progress()
    plugin.run_start(RUN)
    plugin.run_end(RUN, {"status": "interrupted", "steps": 7})
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{COVERED}\ninterrupted at step 7/100 (7%)\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({}, ["overflow n/a", "stall n/a"]),
        ({"flushed_rate": 0.0}, ["overflow n/a (amax)", "stall n/a"]),
        ({"overflow_rate": 0.0, "flushed_rate": 0.0}, ["overflow 0.00%", "stall n/a"]),
        (
            {"overflow_rate": 0.25, "stored_stall_rate": 1.0, "view_stall_rate": 0.0},
            ["overflow 25.00%", "stored stall 100.0%", "view stall 0.0%"],
        ),
    ],
)
def test_what_cannot_be_is_never_zero(line, words):
    """Overflow that cannot happen, and stall that was not measured, are n/a; a measured 0 is 0."""
    assert rates(line) == words


def test_a_loss_that_is_not_a_number_is_shown(clock):
    """The line goes on through NaN."""
    plugin = Progress()
    plugin.console = Console(file=io.StringIO(), force_terminal=False)
    plugin.run_start(RUN)
    plugin.on_record({**LINE, "loss": float("nan")}, {"items_per_second": 7.0})
    plugin.run_end(RUN, {"status": "collapsed", "steps": 3})
    assert "collapsed at step 3/100 (3%), loss nan, " in plugin.console.file.getvalue()
    assert " 7 tokens/s, " in plugin.console.file.getvalue()


def test_in_a_run(tmp_path, capsys):
    """A run that is not watched ends with one line on standard error."""
    config = {"gpt.size": "tiny", "max_steps": 2, "eval_steps": 1, "runs_dir": str(tmp_path)}
    result = altcore.train({**config, "format": "E4M3"})
    lines = [x for x in capsys.readouterr().err.splitlines() if "finished at step" in x]
    assert len(lines) == 1
    assert f"loss {result.final_loss:.4f}" in lines[0]
    assert "tokens/s, overflow n/a (amax), view stall" in lines[0]
