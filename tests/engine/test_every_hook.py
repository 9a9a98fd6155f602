"""Every hook of every kind of plugin fails in every way: it is named, and nothing else is harmed.

The run is a toy that calls every hook: its second step is not finite, which is a collapse at once,
after which an intervention lets it go on.
"""

import time
from contextlib import contextmanager

import pytest
import torch
from attrs import define, field
from helpers import events, weights_sha256
from structlog.testing import capture_logs
from torch import nn

from altcore import ScaleLearningRate, hookimpl
from altcore.errors import BadInput, PluginError
from altcore.hooks import HOOKS, WATCHING
from altcore.runs import summary_of


@define(eq=False)
class Toy:
    """A workload that takes no time."""

    def build(self, seed, device):
        return BuiltToy(nn.Linear(4, 4))


@define(eq=False)
class BuiltToy:
    model: nn.Module
    items_per_batch: int = 4
    item: str = "rows"
    facts: dict = field(factory=dict)

    def batch(self, split, step, micro):
        return torch.full((4, 4), torch.nan if (split, step) == ("train", 2) else 1.0)

    def loss(self, model, batch):
        return model(batch).square().mean()


@define(eq=False)
class GoesOn:
    """An intervention with an opinion on the collapse: without one the run would stop there."""

    @hookimpl
    def on_collapse(self, evidence):
        return ScaleLearningRate(0.5, reason="go on")


KEYS = {
    "workload": "toy",
    "max_steps": 4,
    "nan_patience": 1,
    "eval_interval": 2,
    "checkpoint_interval": 3,
}
KINDS = ("intervention", "diagnostic", "reporter")
STATE = ("state_dict", "load_state_dict")
CONTEXTS = tuple(f"{part} {hook}" for hook in WATCHING for part in ("entering", "leaving"))
ERRORS = {
    "raises": RuntimeError("broken"),
    "exits": SystemExit(0),
    "interrupts": KeyboardInterrupt(),
}
RETURNS = object()
"""What no hook may return."""


def places(kind):
    """Return where the engine calls a plugin of this kind."""
    own = [hook for hook in HOOKS if kind != "intervention" or hook != "findings"]
    return [*own, *CONTEXTS, *STATE]


def cells(*kinds, faults):
    """Return every case: kind, place and fault. What `load_state_dict` returns nobody looks at."""
    return [
        pytest.param(kind, place, fault, id=f"{kind}-{place.replace(' ', '-')}-{fault}")
        for kind in kinds
        for place in places(kind)
        for fault in faults
        if fault != "returns" or place not in (*CONTEXTS, "load_state_dict")
    ]


def plugin_with(place, act):
    """Return a class that does something in one place, and measures, so that it finds something."""
    part, _, hook = place.rpartition(" ")

    def call(self):
        return act()

    @contextmanager
    def watch(self):
        if part == "entering":
            act()
        yield
        if part == "leaving":
            act()

    def measure(self):
        return {"one": 1.0}

    body = {"post_backward": hookimpl(measure)}
    if hook in STATE:
        body |= {name: lambda self, state=None: {} for name in STATE}
        body[hook] = lambda self, state=None: act()
    else:
        function = watch if part else call
        function.__name__ = hook
        body[hook] = hookimpl(function)
    return define(eq=False)(type("Faulty", (), body))


@pytest.fixture
def train(shelf, start, monkeypatch):
    """Return a function that trains the toy with a plugin that acts in one place."""
    monkeypatch.setattr("altcore.runs.provenance._git", lambda: None)
    shelf.install("workload", "toy", Toy)
    shelf.install("intervention", "goes-on", GoesOn)

    def train(kind, place, act, **keys):
        shelf.install(kind, "faulty", plugin_with(place, act))
        given = {**KEYS, **keys}
        if place == "load_state_dict":
            start(["goes-on", "faulty"], name="r", **{**given, "max_steps": 1})
            return start.resume("r", max_steps=given["max_steps"])
        return start(["goes-on", "faulty"], name="r", **given)

    return train


@pytest.fixture(scope="module")
def weights():
    """The weights that a run has without any fault, once one has made them."""
    return {}


def fault_of(name):
    """Return a function that makes a fault."""

    def act(*_):
        if name == "returns":
            return RETURNS
        raise ERRORS[name]

    return act


def hook_of(place):
    """Return the hook by which a place is named."""
    return place.rpartition(" ")[2]


def said_of(kind, place, fault):
    """Return how an error of a plugin begins."""
    type_name = "PluginError" if fault == "returns" else type(ERRORS[fault]).__name__
    return f"{kind} faulty (acme-faulty 1.2.3) failed in {hook_of(place)}: ", type_name


FAULTS = (*ERRORS, "returns")


@pytest.mark.parametrize(("kind", "place", "fault"), cells("diagnostic", "reporter", faults=FAULTS))
def test_an_observer_that_fails_is_disabled(train, start, weights, kind, place, fault):
    """It is named in the record, which ends as it does without it."""
    result = train(kind, place, fault_of(fault))
    assert result.status == "finished"
    assert result.summary["degraded"] == ["faulty"]
    (told,) = events(result.run_directory, "degraded")
    expected, type_name = said_of(kind, place, fault)
    assert told["message"].startswith(expected)
    assert (type_name in told["message"]) == (fault != "returns")
    if place != "load_state_dict":  # a run that was longer than planned has another schedule
        if not weights:
            plain = start(["goes-on"], name="plain", **KEYS)
            weights["plain"] = weights_sha256(plain.run_directory)
        assert weights_sha256(result.run_directory) == weights["plain"]


@pytest.mark.parametrize(
    ("kind", "place", "fault"), cells("diagnostic", "reporter", faults=["exits"])
)
def test_under_strict_an_observer_that_fails_ends_the_run(train, start, kind, place, fault):
    """As an intervention does."""
    check_failed(train, start, kind, place, fault, strict=True)


@pytest.mark.parametrize(("kind", "place", "fault"), cells("intervention", faults=FAULTS))
def test_an_intervention_that_fails_ends_the_run(train, start, kind, place, fault):
    """With exit code 1, its name in the error, and an end in the record."""
    check_failed(train, start, kind, place, fault)


def check_failed(train, start, kind, place, fault, **keys):
    """Check that a run fails by a fault, and says so."""
    is_going_on = place == "load_state_dict"
    with pytest.raises(BadInput if is_going_on else PluginError) as caught:
        train(kind, place, fault_of(fault), **keys)
    expected, type_name = said_of(kind, place, fault)
    if is_going_on:  # nothing is written: the run has not begun to go on
        expected = f"{kind} faulty (acme-faulty 1.2.3) cannot take its state: {type_name}"
        assert expected in str(caught.value)
        return
    assert str(caught.value).startswith(expected)
    assert caught.value.exit_code == 1
    assert events(start.runs / "r", "end")
    assert summary_of(start.runs / "r")["status"] == "failed"


@pytest.mark.parametrize(("kind", "place", "fault"), cells(*KINDS, faults=["hangs"]))
def test_a_call_that_hangs_is_named(train, capsys, kind, place, fault):
    """With its stack, while it does; nothing else comes of it."""
    named = f"{kind} faulty (acme-faulty 1.2.3) has been in {hook_of(place)} for 0.02 s"

    def is_told():
        return any(entry["event"] == named for entry in logs)

    def hang(*_):
        deadline = time.monotonic() + 60
        while not is_told() and time.monotonic() < deadline:
            time.sleep(0.002)
        return True if place == "is_due" else {} if place == "state_dict" else None

    with capture_logs() as logs:
        result = train(kind, place, hang, hook_timeout=0.02)
    assert is_told()
    assert "time.sleep(0.002)" in capsys.readouterr().err
    assert result.status == "finished"
    assert result.summary["degraded"] == []
