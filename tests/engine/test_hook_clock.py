"""A plugin that takes long is named: while it hangs, and at the end if it was slow."""

import time

import pytest
from helpers import events
from helpers_plugins import make, plugin
from helpers_processes import install, started
from structlog.testing import capture_logs

from altcore.engine import hook_clock
from altcore.engine.hook_clock import HookClock


def doze(self, step):
    """Hang for a while."""
    if step.index == 2:
        time.sleep(0.8)


def test_a_hook_that_hangs_is_named_with_its_stack(shelf, start, capsys):
    """While it does, and once; the run goes on when it is over."""
    shelf.install("reporter", "sleepy", make({"post_step": doze}))
    with capture_logs() as logs:
        result = start(["sleepy"], hook_timeout=0.2)
    said = [x["event"] for x in logs if "has been in" in x["event"]]
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
    assert [call[:2] for call in clock.calls] == [(outer, "post_step")]
    clock.leave(is_in_step=True)
    assert clock.seconds.keys() == {outer}
    assert clock.seconds[outer] == pytest.approx(0, abs=0.5)


STUCK = """
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
