"""Watching the passes of the model from within."""

from contextlib import contextmanager
from types import FunctionType

import pytest
from attrs import define
from helpers import events
from helpers_plugins import load, make

from altcore import BadInput, DeferredErrors, hookimpl
from altcore.errors import PluginError


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
