"""The run and the step, as hooks see them."""

import gc
import weakref

import pytest
import torch
from attrs import define
from helpers import events

from altcore import hookimpl
from altcore.engine import Step


def test_what_is_shared_is_made_once_a_step():
    """By key; every step begins with nothing."""
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    step = Step(1)
    assert [step.shared("a", make), step.shared("a", make), step.shared(("b", 1), make)] == [
        0,
        0,
        1,
    ]
    assert Step(2).shared("a", make) == 2


def test_what_could_not_be_made_is_made_by_the_next():
    """An error belongs to whoever asked."""
    step = Step(1)
    with pytest.raises(ZeroDivisionError):
        step.shared("a", lambda: 1 / 0)
    assert step.shared("a", lambda: 3) == 3


def test_what_is_shared_goes_with_the_step():
    """No memory is held for a step that is over."""

    class Kept:
        pass

    step = Step(1)
    kept = weakref.ref(step.shared("a", Kept))
    assert kept() is not None
    del step
    gc.collect()
    assert kept() is None


def test_a_step_knows_whether_its_loss_was_replaced():
    """Once for each micro-batch it is set by the engine."""
    step = Step(1)
    for step.micro in range(2):
        step.loss = torch.tensor(1.0)
        assert not step.is_loss_replaced
    step.loss = step.loss * 2
    assert step.is_loss_replaced


def test_a_run_is_born_complete(start):
    """Before its first hook it knows its directory, and its events are written and told."""
    engine = start.engine(name="whole")
    assert engine.run.directory == start.runs / "whole"
    engine.run.emit("warning", message="early")
    assert events(engine.run.directory, "warning") == [
        {"step": 0, "event": "warning", "message": "early"}
    ]
    engine.directory.close()


def test_an_event_reaches_the_plugins_from_the_first_on(shelf, start):
    """Even one that is emitted while the engine is being built."""
    seen = []

    @define(eq=False)
    class Listens:
        @hookimpl
        def on_event(self, event):
            seen.append(event["event"])

        @hookimpl
        def run_start(self, run):
            run.emit("warning", message="of its own")

    shelf.install("reporter", "listens", Listens)
    start(["listens"], max_steps=1)
    assert seen[:2] == ["warning", "start"]
    assert seen[-1] == "end"
