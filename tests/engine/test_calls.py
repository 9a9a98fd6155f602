"""Whatever code of plugins raises is caught and has its name."""

import os
import signal
import sys
from types import ModuleType

import pytest
from attrs import define
from helpers import events
from helpers_cli import TINY, call
from helpers_crashes import forked
from helpers_plugins import Told, make, plugin

from altcore import hookimpl
from altcore.engine.calls import Boundary
from altcore.errors import BadInput, PluginError
from altcore.runs import METRICS, read_lines


class Odd(BaseException):
    """An exception that nobody expects."""


LEAVING = [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), StopIteration(), Odd("!")]
"""What ``except Exception`` does not catch, and what generators mistake for their own end."""


def raising(error):
    """A function that raises, whatever it is given."""

    def leave(*_, **__):
        raise error

    return leave


def in_hook(hook, error):
    """A class whose hook raises."""

    def fail(self):
        raise error

    fail.__name__ = hook
    return define(eq=False)(type("Leaves", (), {hook: hookimpl(fail)}))


@pytest.mark.parametrize("error", LEAVING, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "hook", ["run_start", "is_due", "watch_forward", "post_backward", "on_event", "run_end"]
)
def test_an_observer_may_raise_anything(shelf, start, hook, error):
    """It is disabled and named; the run finishes."""
    shelf.install("diagnostic", "leaves", in_hook(hook, error))
    result = start(["leaves"], max_steps=2)
    assert result.status == "finished"
    assert result.summary["degraded"] == ["leaves"]
    (said,) = events(result.run_directory, "degraded")
    expected = f"failed in {hook}: {type(error).__name__}"
    assert "diagnostic leaves (acme-leaves 1.2.3)" in said["message"]
    assert expected in said["message"]


@pytest.mark.parametrize("error", LEAVING, ids=lambda e: type(e).__name__)
def test_an_intervention_may_raise_anything(shelf, start, error):
    """The run fails, says so in its summary, and names the plugin."""
    shelf.install("intervention", "leaves", in_hook("pre_step", error))
    named = rf"intervention leaves \(acme-leaves 1.2.3\) failed in pre_step: {type(error).__name__}"
    with pytest.raises(PluginError, match=named):
        start(["leaves"], name="r")
    (end,) = events(start.runs / "r", "end")
    assert end["status"] == "failed"


@pytest.mark.parametrize("error", LEAVING, ids=lambda e: type(e).__name__)
def test_a_class_may_raise_anything_when_it_is_made(shelf, start, error):
    """Nothing is written then."""

    @define(eq=False)
    class Made:
        def __attrs_post_init__(self):
            raise error

    shelf.install("diagnostic", "made", Made)
    with pytest.raises(BadInput, match=f"made: it cannot be made: {type(error).__name__}"):
        start(["made"])
    assert not start.runs.exists()


@pytest.mark.parametrize("error", LEAVING, ids=lambda e: type(e).__name__)
def test_a_module_may_raise_anything_when_it_is_imported(shelf, start, error, monkeypatch):
    """The entry point is named."""

    class Raises(ModuleType):
        def __getattr__(self, name):
            raise error

    shelf.install("diagnostic", "imported", None)
    (module,) = [m for m in sys.modules.values() if getattr(m, "thing", 0) is None]
    monkeypatch.setitem(sys.modules, module.__name__, Raises(module.__name__))
    named = rf"diagnostic imported \(acme-imported 1.2.3\) cannot be loaded: {type(error).__name__}"
    with pytest.raises(BadInput, match=named):
        start(["imported"])


@pytest.mark.parametrize("error", LEAVING, ids=lambda e: type(e).__name__)
def test_a_state_may_raise_anything(shelf, start, error):
    """The checkpoint is written without it; a run that goes on goes on without it."""

    class Keeps:
        def state_dict(self):
            if is_broken:
                raise error
            return {}

        def load_state_dict(self, state):
            raise error

    is_broken = True
    shelf.install("reporter", "keeps", define(eq=False)(Keeps))
    start(["keeps"], name="r", max_steps=1)
    is_broken = False
    start(["keeps"], name="s", max_steps=1)
    start.resume("s", max_steps=2)
    for name, method in (("r", "state_dict"), ("s", "load_state_dict")):
        (said,) = events(start.runs / name, "degraded")
        assert f"reporter keeps (acme-keeps 1.2.3) failed in {method}: " in said["message"]
        assert type(error).__name__ in said["message"]


@pytest.mark.parametrize("error", LEAVING, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["loss", "batch"])
def test_a_workload_may_raise_anything(start, monkeypatch, where, error):
    """It is named with what it was doing."""
    monkeypatch.setattr(f"altcore_workloads.gpt.BuiltGpt.{where}", raising(error))
    named = rf"workload gpt .* failed in {where}.*: {type(error).__name__}"
    with pytest.raises(PluginError, match=named):
        start(name="r")


@pytest.mark.parametrize("error", LEAVING, ids=lambda e: type(e).__name__)
def test_an_optimizer_may_raise_anything(start, monkeypatch, error):
    """It is named, too."""
    monkeypatch.setattr("torch.optim.AdamW.step", raising(error))
    with pytest.raises(PluginError, match=f"optimizer adamw .* step: {type(error).__name__}"):
        start(name="r")


def test_a_sigint_in_a_hook_is_nobodys_failure(shelf, start):
    """The step is finished, and the run leaves after a checkpoint."""

    def interrupt(self, step):
        signal.raise_signal(signal.SIGINT)

    shelf.install("intervention", "asks", make({"pre_step": interrupt}))
    with pytest.raises(BaseException, match="SIGINT: left after a checkpoint"):
        start(["asks"], name="r", max_steps=3)


@pytest.mark.parametrize("code", [0, None, 3])
def test_the_command_never_ends_quietly(shelf, corpus, capsys, tmp_path, monkeypatch, code):
    """sys.exit in code that nobody guards is a failure, whatever code it was to end with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("altcore.engine.evaluating.Evaluating.evaluate", raising(SystemExit(code)))
    arguments = ("--data", corpus, "--steps", 1, "--name", "r")
    outcome = call(capsys, "train", *TINY, *arguments)
    assert outcome.code == 1
    assert f"sys.exit({code}) was called in {__file__}, line" in outcome.message


@pytest.mark.parametrize("error", [EOFError("no data"), KeyboardInterrupt()])
def test_what_looks_like_an_interrupt_and_is_none_is_a_failure(capsys, monkeypatch, error):
    """Click takes an end of file for Ctrl-C."""
    monkeypatch.setattr("altcore.cli.plugins.entries", raising(error))
    monkeypatch.setattr("signal.getsignal", lambda number: None)
    outcome = call(capsys, "plugins", "list")
    assert outcome.code == 1
    assert type(error).__name__ in outcome.message


@pytest.mark.parametrize("ends", ["returns", "exits"])
@pytest.mark.parametrize(
    ("kind", "hook"), [("diagnostic", "post_step"), ("intervention", "pre_step")]
)
def test_a_forked_child_that_comes_back_leaves_the_run_to_its_parent(
    shelf, start, capfd, kind, hook, ends
):
    """It names the plugin, writes nothing, and changes nothing that would be put back."""
    codes = []

    def fork(self, step):
        if step.index != 2:
            return
        child = os.fork()
        if child:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        elif ends == "exits":
            sys.exit(0)

    def train():
        run = start(["forks"], name="r", check_observers=True)
        assert codes == [1]
        assert run.summary["degraded"] == []
        assert [line["step"] for line in read_lines(run.run_directory / METRICS)] == [1, 2, 3, 3]

    fork.__name__ = hook
    shelf.install(kind, "forks", define(eq=False)(type("Forks", (), {hook: hookimpl(fork)})))
    assert forked(train) == 0  # or a child that is not stopped would run these tests as well
    text = f"altcore: {kind} forks (acme-forks 1.2.3) forked in {hook}, and its child came back"
    assert capfd.readouterr().err.count(text) == 1


def test_events_that_on_event_emits_are_told_to_the_others(shelf, start):
    """Not to those whose on_event runs: two that answer each other come to an end."""
    heard = []

    def answering(name):
        def on_event(self, run, event):
            heard.append((name, event["event"]))
            if event["event"] in ("start", "ping", "pong"):
                run.emit(name)

        return define(eq=False)(type("Answers", (), {"on_event": hookimpl(on_event)}))

    for name in ("ping", "pong"):
        shelf.install("diagnostic", name, answering(name))
    run = start(["ping", "pong"], max_steps=1)
    assert run.summary["degraded"] == []
    told = [e["event"] for e in events(run.run_directory)]
    assert told[: told.index("checkpoint")] == ["start", "ping", "pong", "pong", "ping"]
    assert ("ping", "pong") in heard
    assert ("ping", "ping") not in heard


def test_what_fails_in_a_full_stack_is_told_further_out():
    """Where there is no room to tell of it, the plugin counts as not told."""

    class Full(Told):
        def _write_event(self, kind, **data):
            if not self.events:
                self.events.append("full")
                raise RecursionError
            super()._write_event(kind, **data)

    boundary, run, loud = Boundary(), Full(), plugin(object, "diagnostic")
    with pytest.raises(RecursionError):
        boundary.settle(loud, "on_event", run, ValueError("inner"))
    assert (loud.is_disabled, run.degraded) == (False, [])
    boundary.settle(loud, "on_event", run, RecursionError("outer"))
    assert (loud.is_disabled, run.degraded) == (True, ["p"])
    assert [kind for kind, _ in run.events[1:]] == ["degraded"]
