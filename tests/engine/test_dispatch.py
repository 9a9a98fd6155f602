"""The dispatcher by itself: who is called, with what, and what becomes of a broken one."""

import signal

import pytest
from attrs import define
from helpers import events, state
from helpers_plugins import Told, make, plugin
from structlog.testing import capture_logs

from altcore import hookimpl
from altcore.engine import Step
from altcore.engine.dispatch import Dispatcher
from altcore.errors import PluginError
from altcore.hooks import NonFinite, hooks_of
from altcore.signals import LeaveNow, handling_signals


def test_hooks_get_the_arguments_they_ask_for():
    """A hook may leave out what it does not need, and name them in any order."""
    got = []

    @define(eq=False)
    class Few:
        @hookimpl
        def run_start(self):
            got.append(())

        @hookimpl
        def on_nan(self, where, run):
            got.append((where, run))

    dispatcher = Dispatcher([plugin(Few)])
    run = Told()
    dispatcher.call("run_start", run=run)
    dispatcher.call("on_nan", run=run, step=Step(1), where=3)
    assert got == [(), (3, run)]
    assert hooks_of(Few) == ["run_start", "on_nan"]


def test_who_returned_what_is_kept():
    """Each result comes with its plugin; None is no opinion."""
    functions = (lambda self: {"x": 1}, lambda self: None, lambda self: {"x": 2})
    plugins = [
        plugin(make({"post_step": f}), name=name) for name, f in zip("abc", functions, strict=True)
    ]
    dispatcher = Dispatcher(plugins)
    step = Step(1)
    assert [(p.name, v) for p, v in dispatcher.call("post_step", run=Told(), step=step)] == [
        ("a", {"x": 1}),
        ("c", {"x": 2}),
    ]
    assert dispatcher.measures("post_step", run=Told(), step=step) == {"a/x": 1, "c/x": 2}


def test_a_disabled_plugin_is_not_called_again():
    """It is told of once, by log and by event, and its needs are needed no more."""
    calls, run = [], Told()

    def fail(self):
        calls.append(1)
        raise ValueError("no")

    @define(eq=False)
    class Broken:
        needs = ("gradients",)
        post_step = hookimpl(fail)

    dispatcher = Dispatcher([plugin(Broken, "diagnostic")])
    assert dispatcher.needs(run, Step(1)) == {"gradients"}
    with capture_logs() as logs:
        for index in (1, 2, 3):
            dispatcher.call("post_step", run=run, step=Step(index))
    assert (len(calls), len(run.events), len(logs)) == (1, 1, 1)
    message = "diagnostic p (acme 1) failed in post_step: ValueError: no"
    assert run.events == [("degraded", {"plugin": "p", "message": message})]
    assert run.degraded == ["p"]
    assert dispatcher.needs(run, Step(4)) == set()
    assert not dispatcher.measures_on(run, Step(4))
    first, told = Dispatcher([plugin(Broken, "diagnostic")]), Told()
    first.disable_broken(told, [{}, dispatcher.boundary.errors])  # as of two ranks
    assert told.events == [("degraded", {"plugin": "p", "message": f"on rank 1 {message}"})]
    assert told.degraded == ["p"]


def test_run_end_reaches_everybody():
    """One that fails at the end does not keep the others from knowing that it is over."""
    run = Told()
    failing = make({"run_end": lambda self, summary: 1 / 0})
    fine = make({"run_end": lambda self, run: run.events.append(1)})
    dispatcher = Dispatcher(
        [plugin(failing, name="a"), plugin(fine, name="b"),
         plugin(failing, name="c"), plugin(fine, "reporter", "d")]
    )  # fmt: skip
    with pytest.raises(PluginError, match=r"intervention a .* failed in run_end: ZeroDivision"):
        dispatcher.call("run_end", run=run, summary={})
    assert run.events == [1, 1]


def test_needs_are_those_of_the_plugins_that_are_due():
    """Snapshots have an interval of their own, everything else the plugin's."""

    @define(eq=False)
    class Needy:
        needs = ("gradients", "snapshots")
        interval: int = 3

    dispatcher = Dispatcher([plugin(Needy)])
    assert [dispatcher.needs(None, Step(s)) for s in (1, 2, 3)] == [
        {"snapshots"}, {"snapshots"}, {"snapshots", "gradients"}
    ]  # fmt: skip


def test_what_was_not_finite_in_words():
    """A loss belongs to no layer: one says where it was met first."""
    assert str(NonFinite("loss", "h.0", "activation@fwd")) == (
        "loss is nan, first met in h.0 (activation@fwd)"
    )
    assert str(NonFinite("loss")) == "loss is nan"
    assert str(NonFinite("gradient", "h.0.weight")) == "gradient of h.0.weight is nan"


def test_a_plugin_may_say_itself_when_it_is_due(shelf, start):
    """By ``is_due``: on other steps its hooks are not called, nothing is captured or recorded."""
    seen = []

    @define(eq=False)
    class Late:
        needs = ("weights_before",)

        @hookimpl
        def is_due(self, step):
            return step.index in (3, 4)

        @hookimpl
        def post_step(self, run, step):
            seen.append((step.index, step.weights_before is not None))
            return {"index": step.index}

    shelf.install("diagnostic", "late", Late)
    result = start(["late"], max_steps=6, log_interval=6)
    assert seen == [(3, True), (4, True)]
    assert [line["step"] for line in result.metrics_history] == [3, 4, 6]


@pytest.mark.parametrize("ask", ["needs", "measures_on"])
def test_an_is_due_that_raises_is_the_plugins_failure(ask):
    """As in a hook."""

    @define(eq=False)
    class Unsure:
        needs = ("gradients",)

        @hookimpl
        def is_due(self, step):
            raise ValueError("when?")

        @hookimpl
        def post_step(self, run, step):
            return None

    broken = plugin(Unsure, "diagnostic")
    assert not getattr(Dispatcher([broken]), ask)(Told(), Step(1))
    assert broken.is_disabled
    with pytest.raises(PluginError, match=r"failed in is_due: ValueError: when\?"):
        getattr(Dispatcher([plugin(Unsure, "intervention")]), ask)(Told(), Step(1))


def leave(self):
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def interrupt(self):
    """Get a SIGINT."""
    signal.raise_signal(signal.SIGINT)


def test_interrupts_pass():
    """A SIGINT in a hook is no plugin's failure; a plugin that raises the same exception fails."""
    dispatcher = Dispatcher([plugin(make({"run_start": interrupt}), "diagnostic")])
    with pytest.raises(KeyboardInterrupt):
        dispatcher.call("run_start", run=Told())
    with handling_signals(), pytest.raises(LeaveNow):
        dispatcher.call("run_start", run=Told())
    raising = plugin(make({"run_start": leave}), "diagnostic")
    with handling_signals():
        Dispatcher([raising]).call("run_start", run=Told())
    assert raising.is_disabled


# --------------------------------------------------------------------------------- state


def stateful(value):
    """A plugin class whose state is ``value``, or raises it."""

    def get(self):
        if isinstance(value, Exception):
            raise value
        return value

    return define(eq=False)(type("S", (), {"state_dict": get, "load_state_dict": lambda *_: None}))


@pytest.mark.parametrize("value", [{"a": {1, 2}}, RuntimeError("no state")])
def test_a_diagnostic_whose_state_cannot_be_saved_is_disabled(shelf, start, value):
    """The checkpoint is written without it, and can be read."""
    shelf.install("diagnostic", "odd", stateful(value))
    run = start(["odd"])
    assert run.status == "finished"
    assert run.summary["degraded"] == ["odd"]
    assert state(run.run_directory)["ranks"][0]["plugins"] == {}
    (told,) = events(run.run_directory, "degraded")
    assert "diagnostic odd (acme-odd 1.2.3) failed in state_dict" in told["message"]


def test_an_intervention_whose_state_cannot_be_saved_stops_the_run(shelf, start):
    """A run that could not be resumed rightly fails closed, at the first checkpoint."""
    shelf.install("intervention", "odd", stateful({"a": {1, 2}}))
    with pytest.raises(PluginError, match=r"intervention odd .* failed in state_dict: state"):
        start(["odd"])


def test_a_state_that_a_plugin_no_longer_takes_is_named():
    """An intervention stops the resume; a diagnostic is disabled."""

    def refuse(self, given):
        raise KeyError("old version")

    cls = define(eq=False)(type("S", (), {"load_state_dict": refuse}))
    with pytest.raises(PluginError, match=r"intervention p .* failed in load_state_dict: KeyError"):
        Dispatcher([plugin(cls)]).load_state_dict(Told(), {"p": {}})
    looker = plugin(cls, "diagnostic")
    Dispatcher([looker]).load_state_dict(Told(), {"p": {}})
    assert looker.is_disabled
    Dispatcher([plugin(cls)]).load_state_dict(Told(), {"other": {}})


def test_a_diagnostic_also_measures_the_first_step(shelf, start):
    """Whatever its interval; an intervention acts on the steps of its interval only."""
    seen = {"looks": [], "acts": []}

    def sparse(name):
        @define(eq=False)
        class Sparse:
            interval: int = 3

            @hookimpl
            def post_backward(self, step):
                seen[name].append(step.index)
                return {"x": 1}

        return Sparse

    shelf.install("diagnostic", "looks", sparse("looks"))
    shelf.install("intervention", "acts", sparse("acts"))
    result = start(["looks", "acts"], max_steps=6, log_interval=6)
    assert seen == {"looks": [1, 3, 6], "acts": [3, 6]}
    assert [line["step"] for line in result.diagnostics_history] == [1, 3, 6]
