"""Loading and checking plugins, and the dispatcher by itself."""

from contextlib import contextmanager
from types import FunctionType

import pluggy
import pytest
from attrs import define, field
from helpers import events, state
from structlog.testing import capture_logs

from altcore import BadInput, DeferredErrors, Format, hookimpl, setting
from altcore.engine import Step
from altcore.engine.dispatch import Dispatcher
from altcore.engine.plugins import Plugin, load_plugins
from altcore.errors import PluginError
from altcore.hooks import HOOKS, NonFinite, hooks_of
from altcore.hooks.specs import hookspec

# --------------------------------------------------------------------- refused when loaded


def load(shelf, start, cls, kind="diagnostic", **settings):
    """Install a class as a plugin and load it as a run would."""
    name = shelf.install(kind, "tried", cls, "acme-tried", "9.9")
    return load_plugins(start.config([name], **{f"tried__{k}": v for k, v in settings.items()}))


def make(hooks, **options):
    """An attrs class with hooks that are plain functions."""
    copies = {n: FunctionType(f.__code__, f.__globals__, n) for n, f in hooks.items()}
    body = {n: hookimpl(**options)(f) for n, f in copies.items()}
    return define(eq=False)(type("Made", (), body))


class Plain:
    """Not an attrs class."""

    @hookimpl
    def run_start(self, run):
        """A hook."""


@define
class Equal:
    """Instances compare by their fields."""

    x: int = 0


@define(eq=False)
class Unmarked:
    """A hook's name without the mark."""

    def post_step(self, run, step):
        """No hook."""


@define(eq=False)
class Misneeds:
    """A need that nobody has."""

    needs = ("gradient",)


def noop(self):
    """Do nothing."""


def wrapper(self):
    """A pluggy wrapper."""
    yield


REFUSED = [
    (Plain, "is not an attrs class: use @define"),
    (Plain(), "is not an attrs class"),
    (lambda: None, "is not an attrs class"),
    (Equal, r"use @define\(eq=False\)"),
    (Unmarked, "post_step is a hook's name but not marked with @hookimpl"),
    (Misneeds, r"there is no need 'gradient' \(did you mean gradients\?\)"),
    (make({"post_stepp": noop}), r"there is no hook 'post_stepp' \(did you mean post_step\?\)"),
    (make({"post_step": noop}, tryfirst=True), "post_step: tryfirst is refused"),
    (make({"post_step": noop}, trylast=True), "post_step: trylast is refused"),
    (make({"post_step": wrapper}, wrapper=True), "post_step: wrapper is refused"),
    (make({"post_step": wrapper}, hookwrapper=True), "post_step: hookwrapper is refused"),
    (make({"elsewhere": noop}, specname="post_step"), "there is no hook 'elsewhere'"),
    (make({"on_eval": noop}, specname="post_step"), "specname is refused"),
    (
        make({"post_step": lambda self, run, stp: None}),
        r"post_step has no argument 'stp' \(did you mean step\?\): it may take run, step",
    ),
    (make({"run_start": lambda self, step: None}), "run_start has no argument 'step'"),
]


@pytest.mark.parametrize(("cls", "says"), REFUSED)
def test_what_cannot_be_a_plugin_is_refused_by_name(shelf, start, cls, says):
    """Before anything is built, with kind, name, distribution and version."""
    with pytest.raises(BadInput, match=rf"diagnostic tried \(acme-tried 9\.9\): .*{says}"):
        load(shelf, start, cls)


def test_a_plugin_that_cannot_be_imported_is_named(shelf, start, tmp_path):
    """The error of the import is told with the distribution that is to blame."""
    (tmp_path / "site" / "acme_broken.py").write_text("raise RuntimeError('no licence')\n")
    info = tmp_path / "site" / "acme_broken-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: acme-broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[altcore.diagnostics]\nbroken = acme_broken:X\n")
    from helpers import forget_installed

    forget_installed()
    with pytest.raises(BadInput, match=r"broken \(acme-broken 0\.1\) .*RuntimeError: no licence"):
        load_plugins(start.config(["broken"]))


def test_one_name_of_two_distributions_is_an_error_when_used(shelf, start):
    """Both are named; as long as nobody uses the name, nothing happens."""
    shelf.install("diagnostic", "twin", make({"run_start": noop}), "acme-one", "1.0")
    shelf.install("reporter", "twin", make({"run_start": noop}), "acme-two", "2.0")
    assert start(max_steps=1).status == "finished"
    with pytest.raises(BadInput, match=r"acme-one 1\.0 \(diagnostic\) and acme-two 2\.0 \(rep"):
        load_plugins(start.config(["twin"]))


def test_installed_is_not_active(shelf, start):
    """A plugin that nobody listed is not even imported."""
    shelf.install("intervention", "sleeper", None)
    run = start(max_steps=1)
    assert run.status == "finished"
    with pytest.raises(BadInput):
        start(["sleeper"], max_steps=1)


def test_settings_are_built_strictly(shelf, start):
    """Formats are resolved, and a wrong setting is named before the run begins."""

    @define(eq=False)
    class Settled:
        to: Format = setting("E5M2", help="where to")
        count: int = setting(3, help="how many")
        state: list = field(factory=list, init=False)

        @hookimpl
        def run_start(self):
            """Do nothing."""

    shelf.install("diagnostic", "settled", Settled)

    def loaded(**keys):
        (plugin,) = load_plugins(start.config(["settled"], **keys))
        return plugin.instance

    assert (loaded().to.name, loaded().count) == ("E5M2", 3)
    assert loaded(settled__to="E4M3", settled__count=5).to.name == "E4M3"
    for keys, says in (
        ({"settled__cuont": 1}, r"settled.*cuont.*did you mean count"),
        ({"settled__count": 1.5}, r"settled\.count: 1\.5 is not a whole number"),
        ({"settled__to": "E4M"}, r"settled\.to: unknown format 'E4M'"),
        ({"settled__state": []}, r"settled.*state"),
    ):
        with pytest.raises(BadInput, match=says):
            loaded(**keys)


@pytest.mark.parametrize("interval", [0, -1, "2"])
def test_an_impossible_interval_is_refused(shelf, start, interval):
    """``interval`` is a whole number of at least 1, whatever the plugin's own field says."""

    @define(eq=False)
    class Timed:
        interval: int = 1

        def __attrs_post_init__(self):
            self.interval = interval

    shelf.install("diagnostic", "timed", Timed)
    with pytest.raises(BadInput, match=r"timed\.interval: .* is not a whole number of at least 1"):
        load_plugins(start.config(["timed"]))


def test_every_hook_is_specified_and_documented():
    """HOOKS is what pluggy knows, in the order of the step, each with its text."""
    from altcore.hooks import specs as hookspecs

    manager = pluggy.PluginManager("altcore")
    manager.add_hookspecs(hookspecs)
    assert set(vars(manager.hook)) - {"_dict"} >= set(HOOKS)
    assert [n for n, f in vars(hookspecs).items() if getattr(f, "altcore_spec", None)] == list(
        HOOKS
    )
    assert all(getattr(hookspecs, h).__doc__ for h in HOOKS)
    assert hookspec.project_name == "altcore"


# ------------------------------------------------------------------------ the dispatcher


def plugin(cls, kind="intervention", name="p"):
    """A plugin as `load_plugins` would give it."""
    return Plugin(name, kind, "acme 1", cls() if isinstance(cls, type) else cls)


class Told:
    """A run, as far as a dispatcher tells it of broken plugins."""

    def __init__(self):
        self.degraded, self.events = [], []

    def emit(self, kind, **data):
        self.events.append((kind, data))


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
    dispatcher.call("run_start", run=1)
    dispatcher.call("on_nan", run=1, step=Step(1), where=3)
    assert got == [(), (3, 1)]
    assert hooks_of(Few) == ["run_start", "on_nan"]


def test_who_returned_what_is_kept():
    """Each result comes with its plugin; None is no opinion."""
    functions = (lambda self: {"x": 1}, lambda self: None, lambda self: {"x": 2})
    plugins = [
        plugin(make({"post_step": f}), name=name) for name, f in zip("abc", functions, strict=True)
    ]
    dispatcher = Dispatcher(plugins)
    step = Step(1)
    assert [(p.name, v) for p, v in dispatcher.call("post_step", run=None, step=step)] == [
        ("a", {"x": 1}),
        ("c", {"x": 2}),
    ]
    assert dispatcher.measures("post_step", run=None, step=step) == {"a/x": 1, "c/x": 2}


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


def test_run_end_reaches_everybody():
    """One that fails at the end does not keep the others from knowing that it is over."""
    ended = []
    failing = make({"run_end": lambda self, summary: 1 / 0})
    fine = make({"run_end": lambda self, summary: summary.append(1)})
    dispatcher = Dispatcher(
        [plugin(failing, name="a"), plugin(fine, name="b"),
         plugin(failing, name="c"), plugin(fine, "reporter", "d")]
    )  # fmt: skip
    with pytest.raises(PluginError, match=r"intervention a .* failed in run_end: ZeroDivision"):
        dispatcher.call("run_end", run=None, summary=ended)
    assert ended == [1, 1]


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


def test_a_plugin_may_watch_the_forward_pass(shelf, start):
    """Every one of a step on which it is due; what it enters is left, whatever happens within."""
    seen = []

    @define(eq=False)
    class Watcher:
        interval: int = 2

        @hookimpl
        @contextmanager
        def watch_forward(self, run, step):
            handle = run.model.register_forward_hook(
                lambda *_: seen.append((step.index, step.micro, step.loss is None))
            )
            yield
            handle.remove()
            seen.append("left")

    shelf.install("diagnostic", "watcher", Watcher)
    start(["watcher"], max_steps=2, gradient_accumulation_steps=2, eval_interval=1)
    assert seen == [(2, 0, True), "left", (2, 1, False), "left"]


def raising(wrap):
    """A diagnostic whose forward hook raises."""

    @define(eq=False)
    class Hooked:
        @hookimpl
        @contextmanager
        def watch_forward(self, run):
            with DeferredErrors() as errors:
                look = errors.guard(self.look) if wrap else self.look
                handle = run.model.register_forward_hook(look)
                try:
                    yield
                finally:
                    handle.remove()

        def look(self, *_):
            raise ValueError("no")

    return Hooked


def test_an_error_inside_the_model_names_the_plugin(shelf, start):
    """The pass cannot be finished then."""
    shelf.install("diagnostic", "hooked", raising(wrap=False))
    message = r"diagnostic hooked \(acme-hooked .*\) failed in the forward pass: ValueError: no"
    with pytest.raises(PluginError, match=message):
        start(["hooked"], max_steps=1)


def test_an_error_that_is_deferred_disables_the_plugin(shelf, start):
    """What looks on with care harms nobody; the model's own errors stay what they are."""
    shelf.install("diagnostic", "hooked", raising(wrap=True))
    result = start(["hooked"], max_steps=2)
    assert result.summary["degraded"] == ["hooked"]
    assert result.metrics_history[-1]["step"] == 2


def test_a_watcher_is_told_of_the_models_error(shelf, start, monkeypatch):
    """It does not go on as if the pass was over, and takes no error's place."""
    told = []

    def fail(self, model, batch):
        raise ValueError("of the model")

    @define(eq=False)
    class Watcher:
        @hookimpl
        @contextmanager
        def watch_forward(self):
            try:
                yield
            except ValueError as error:
                told.append(str(error))
                raise KeyError("of its own") from error
            told.append("over")

    monkeypatch.setattr("altcore_workloads.gpt.BuiltGpt.loss", fail)
    shelf.install("intervention", "watcher", Watcher)
    with pytest.raises(ValueError, match="of the model"):
        start(["watcher"], max_steps=1)
    assert told == ["of the model"]


def test_the_models_own_error_is_no_plugins(shelf, start, monkeypatch):
    def fail(self, model, batch):
        raise ValueError("of the model")

    monkeypatch.setattr("altcore_workloads.gpt.BuiltGpt.loss", fail)
    shelf.install("diagnostic", "hooked", raising(wrap=True))
    with pytest.raises(ValueError, match="of the model"):
        start(["hooked"], max_steps=1)


WATCHES = {
    "unmarked": (
        define(eq=False)(type("Unmarked", (), {"watch_forward": lambda self, run: None})),
        "watch_forward is a hook's name but not marked with @hookimpl",
    ),
    "asks for more": (
        make({"watch_backward": lambda self, run, stop: None}),
        r"watch_backward has no argument 'stop' \(did you mean step\?\)",
    ),
    "is due": (
        define(eq=False)(type("Due", (), {"is_due": lambda self, step: True})),
        "is_due is a hook's name but not marked with @hookimpl",
    ),
}


@pytest.mark.parametrize(("cls", "message"), WATCHES.values(), ids=WATCHES)
def test_watches_are_checked_like_every_hook(shelf, start, cls, message):
    """They are rows of the same contract."""
    with pytest.raises(BadInput, match=message):
        load(shelf, start, cls)


@pytest.mark.parametrize(
    ("hook", "returned", "says"),
    [
        ("watch_forward", 3, "it returned int, not a context manager or None"),
        ("watch_backward", {}, "it returned dict, not a context manager or None"),
        ("is_due", None, "it returned NoneType, not True or False"),
        ("is_due", 1, "it returned int, not True or False"),
    ],
)
def test_watches_and_is_due_return_what_they_must(shelf, start, hook, returned, says):
    """A return of another type disables a diagnostic, as that of any hook does."""

    @define(eq=False)
    class Wrong:
        pass

    setattr(Wrong, hook, hookimpl(FunctionType((lambda self: returned).__code__, {}, hook, None,
                                               (lambda: returned).__closure__)))  # fmt: skip
    shelf.install("diagnostic", "wrong", Wrong)
    result = start(["wrong"], max_steps=1)
    (said,) = events(result.run_directory, "degraded")
    assert f"failed in {hook}: {says}" in said["message"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_watcher_that_raises_is_disabled(shelf, start, when):
    """It is a diagnostic like any other: the run goes on, and says so."""

    @define(eq=False)
    class Broken:
        @hookimpl
        @contextmanager
        def watch_forward(self, run, step):
            if when == "before":
                raise ValueError("no")
            yield
            raise ValueError("no")

    shelf.install("diagnostic", "broken", Broken)
    result = start(["broken"], max_steps=3)
    assert result.metrics_history[-1]["step"] == 3
    assert result.summary["degraded"] == ["broken"]
    (said,) = events(result.run_directory, "degraded")
    assert "failed in watch_forward: ValueError: no" in said["message"]


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


def test_interrupts_pass():
    """KeyboardInterrupt in a hook is no plugin's failure."""

    def leave(self):
        raise KeyboardInterrupt

    dispatcher = Dispatcher([plugin(make({"run_start": leave}), "diagnostic")])
    with pytest.raises(KeyboardInterrupt):
        dispatcher.call("run_start", run=None)


# --------------------------------------------------------------------------------- state


def stateful(value):
    """A plugin class whose state is ``value``, or raises it."""

    def get(self):
        if isinstance(value, Exception):
            raise value
        return value

    return define(eq=False)(type("S", (), {"state_dict": get}))


@pytest.mark.parametrize("value", [{"a": {1, 2}}, RuntimeError("no state")])
def test_a_diagnostic_whose_state_cannot_be_saved_is_disabled(shelf, start, value):
    """The checkpoint is written without it, and can be read."""
    shelf.install("diagnostic", "odd", stateful(value))
    run = start(["odd"])
    assert run.status == "finished"
    assert run.summary["degraded"] == ["odd"]
    assert state(run.run_directory)["plugins"] == {}
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
