"""A plugin that takes long is named: while it hangs, and at the end if it was slow."""

import re
import sys
import threading
import time

import pytest
from attrs import define
from helpers import events
from helpers_cli import call
from helpers_plugins import make, plugin
from helpers_processes import install, started
from structlog.testing import capture_logs

from altcore import hook_clock, hookimpl, reporters
from altcore.errors import AltcoreError
from altcore.hook_clock import HookClock
from altcore.registry import find
from altcore.signals import Signals


def doze(self, step):
    """Hang for a while."""
    if step.index == 2:
        time.sleep(0.8)


def test_a_hook_that_hangs_is_named_with_its_stack(shelf, start, capsys):
    """While it does, and once; the run goes on when it is over."""
    shelf.install("reporter", "sleepy", make({"post_step": doze}))
    with capture_logs() as logs:
        result = start(["sleepy"], hook_timeout=0.2)
    said = [x["event"] for x in logs if x["event"].startswith("reporter sleepy")]
    assert said == ["reporter sleepy (acme-sleepy 1.2.3) has been in post_step for 0.2 s"]
    stack = capsys.readouterr().err
    assert f'File "{__file__}"' in stack
    assert "time.sleep(0.8)" in stack
    assert result.status == "finished"
    assert not events(result.run_directory, "degraded")


def test_quick_hooks_are_not_named(shelf, start):
    """However many they are."""
    shelf.install("reporter", "quick", make({"post_step": lambda self: None}))
    with capture_logs() as logs:
        start(["quick"], hook_timeout=60)
    assert not [x for x in logs if "quick" in x["event"]]


def told_of(logs, who):
    """Return what somebody has been in for too long, each once."""
    found = (re.match(rf"{who} \(.*?\) has been in (.*) for 0.1 s$", x["event"]) for x in logs)
    return {match[1] for match in found if match}


def test_a_plugin_that_hangs_as_a_run_goes_on_is_named(shelf, start):
    """As it is made, and as its state is tried before the run changes."""
    nap = [0.0]

    @define(eq=False)
    class Slow:
        def __attrs_post_init__(self):
            time.sleep(nap[0])

        @hookimpl
        def run_start(self):
            """Be a reporter."""

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            time.sleep(nap[0])
            raise ValueError("no")  # so that nothing is left but to try it

    shelf.install("reporter", "slow", Slow)
    start(["slow"], name="r", max_steps=1)
    nap[0] = 0.25
    with capture_logs() as logs, pytest.raises(AltcoreError, match="cannot take its state"):
        start.resume("r", max_steps=2, hook_timeout=0.1, strict=True)
    assert told_of(logs, "reporter slow") == {"the construction of its class", "load_state_dict"}


def test_a_workload_that_hangs_is_named(start, monkeypatch):
    """By what it does, in whichever part of the run."""

    def slow_once(own, had):
        def call(*args):
            time.sleep(had.pop() if had else 0)
            return own(*args)

        return call

    cls = find("gpt", ("workload",)).load()
    built = sys.modules[cls.__module__].BuiltGpt
    for owner, doing in ((cls, "build"), (built, "batch"), (built, "loss")):
        monkeypatch.setattr(owner, doing, slow_once(getattr(owner, doing), [0.25]))
    with capture_logs() as logs:
        start(max_steps=1, hook_timeout=0.1)
    assert told_of(logs, "workload gpt") >= {"build", "batch('train', 1, 0)", "loss"}


def test_a_hook_of_the_backward_pass_that_hangs_is_named(shelf, start, capsys):
    """As one that a model or a plugin left there: the stack tells whose it is."""

    def pre_backward(self, step):
        step.loss.register_hook(lambda _: time.sleep(0.3))

    shelf.install("intervention", "left", make({"pre_backward": pre_backward}))
    with capture_logs() as logs:
        start(["left"], max_steps=1, hook_timeout=0.1)
    assert "the model has been in its backward pass for 0.1 s" in [x["event"] for x in logs]
    assert "time.sleep(0.3)" in capsys.readouterr().err


def test_a_report_that_hangs_is_named(shelf, start, capsys, monkeypatch):
    """When `altcore report` renders it, after the run."""

    @define(eq=False)
    class Slow:
        def render(self, runs, out):
            time.sleep(0.3)
            return []

    shelf.install("reporter", "slow", Slow)
    monkeypatch.setattr(reporters, "TIMEOUT", 0.1)
    run = start(max_steps=1, name="r").run_directory
    found = call(capsys, "report", "slow", "r", "--from", run.parent)
    assert found.code == 0
    assert "reporter slow (acme-slow 1.2.3) has been in render for 0.1 s" in found.err
    assert "time.sleep(0.3)" in found.err


def test_slow_plugins_are_named_at_the_end(shelf, start, monkeypatch):
    """With their share of the steps' time, which no record holds."""
    monkeypatch.setattr(hook_clock, "SLOW_SECONDS", 0.3)
    shelf.install("reporter", "sleepy", make({"post_step": doze}))
    with capture_logs() as logs:
        start(["sleepy"])
    (said,) = [x["event"] for x in logs if "of the time of the steps" in x["event"]]
    assert said.startswith("reporter sleepy (acme-sleepy 1.2.3) took ")
    assert 20 < int(said.partition("took ")[2].partition("%")[0]) <= 100


def test_calls_within_calls_are_told_apart():
    """An event that one plugin emits is another one's call."""
    outer, inner = (plugin(make({}), "reporter", name) for name in ("outer", "inner"))
    clock = HookClock()
    clock.enter(outer, "post_step")
    clock.enter(inner, "on_event")
    clock.leave(is_in_step=False)
    assert [(call.who, call.doing) for call in clock.calls] == [(outer, "post_step")]
    clock.leave(is_in_step=True)
    assert clock.seconds.keys() == {outer}
    assert clock.seconds[outer] == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize(
    ("naps", "computed", "told"),
    [
        ([6.0, 0.5, 0.5], 0.0, False),
        ([6.0, 0.5, 0.5, 0.5, 0.5], 0.0, True),
        ([6.0], 5.0, True),
        ([0.5, 0.5, 0.5, 0.5], 0.0, True),
    ],
)
def test_nobody_is_blamed_while_the_process_was_stopped(naps, computed, told, monkeypatch):
    """Time counts from where it went on, and C code that keeps the interpreter busy counts."""
    now, busy = [100.0], [0.0]
    monkeypatch.setattr(hook_clock, "perf_counter", lambda: now[0])
    monkeypatch.setattr(hook_clock, "process_time", lambda: busy[0])
    left = [*naps]

    class Stop:
        def wait(self, interval):
            if not left:
                return True
            now[0] += left.pop(0)
            busy[0] += computed
            return False

    clock = HookClock(timeout=2.0)
    clock.enter("reporter calm", "post_step")
    with capture_logs() as logs:
        clock._watch(Stop(), threading.get_ident(), Signals(ends_process=False))
    said = [x["event"] for x in logs]
    assert ("reporter calm has been in post_step for 2 s" in said) is told
    was_stopped = naps[0] > 1 and not computed
    stop = "the process was stopped for 6 s: nobody is blamed for it"
    assert said.count(stop) == was_stopped


STUCK = """
        import altcore.hook_clock
        altcore.hook_clock.STUCK = 0.5

        @hookimpl
        def post_step(self, step):
            import ctypes
            if step.index == 2:
                ctypes.PyDLL(None).sleep(3)
"""


@pytest.mark.slow
def test_code_that_lets_no_thread_run_is_shown_too(tmp_path, corpus):
    """C code that keeps the interpreter's lock, of which only faulthandler tells."""
    plugin = install(tmp_path / "site", STUCK)
    arguments = ("--steps", "3", "--set", "hook_timeout=0.5", *plugin)
    with started(tmp_path, corpus, *arguments, path=[tmp_path / "site"]) as process:
        _, err = process.communicate(timeout=90)
    assert process.returncode == 0
    assert "Timeout (0:00:00" in err
    assert "acme_hangs.py" in err.partition("Timeout")[2]
