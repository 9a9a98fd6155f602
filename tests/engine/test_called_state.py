"""What a loss or batches of the caller's own keep in variables is named."""

import functools
import itertools
from typing import ClassVar

import pytest
import torch
from attrs import define
from helpers import events
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore.engine.as_built import AsBuilt
from altcore.engine.called_state import untrained, variables_in
from altcore.engine.hidden_state import changed_in
from altcore_workloads.gpt import Gpt

SEEN = {"steps": 0}


def by_global(model, batch):
    SEEN["steps"] += 1


def by_attribute(model, batch):
    by_attribute.steps = getattr(by_attribute, "steps", 0) + 1


def by_default(model, batch, seen=[]):  # noqa: B006 # that is what is tested
    seen.append(1)


def in_closure():
    steps = 0

    def loss(model, batch):
        nonlocal steps
        steps += 1

    return loss


class Curriculum:
    """Counts its calls, and those of all of its class."""

    total = 0

    def __init__(self):
        self.steps = 0

    def __call__(self, model, batch):
        self.steps += 1
        Curriculum.total += 1


class Center(nn.Module):
    """Keeps a mean in a buffer of a part, and a count beside it."""

    def __init__(self):
        super().__init__()
        self.part, self.count = nn.Module(), 0
        self.part.register_buffer("mean", torch.zeros(()))

    def forward(self, model, batch):
        self.count += 1
        self.part.mean += 1


class Whole(nn.Module):
    """Calls a part, whose code keeps what it does."""

    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, model, batch):
        self.part()


class Part(nn.Module):
    def forward(self):
        SEEN["steps"] += 1


def called(model, batch, function):
    function(model, batch)


STATE = {
    "a global": (lambda: by_global, ["SEEN"]),
    "an attribute": (lambda: by_attribute, ["steps"]),
    "a default": (lambda: by_default, ["seen"]),
    "a closure": (in_closure, ["steps"]),
    "within torch's wrapper": (lambda: torch.no_grad()(in_closure()), ["steps"]),
    "an object": (Curriculum, ["total", "steps"]),
    "a method": (lambda: Curriculum().__call__, ["total", "steps"]),
    "a partial one": (lambda: functools.partial(by_default, seen=[]), ["seen"]),
    "an argument": (lambda: functools.partial(called, function=in_closure()), ["steps"]),
    "a module": (Center, ["count", "mean"]),
    "a module's part": (Whole, ["SEEN"]),
}


@pytest.mark.parametrize("kind", STATE)
def test_variables_of_a_function_are_known(kind):
    """Those that change, by name; and none if the function says that they are no state."""
    make, names = STATE[kind]
    loss = make()
    before = variables_in({"loss": loss, "data": None}, ())
    assert changed_in(before, variables_in({"loss": loss}, ())) == []
    loss(None, None)
    now = variables_in({"loss": loss}, ())
    assert changed_in(before, now) == [f"{name} of loss" for name in names]


def counting(how):
    """Return a module of a class that keeps a count in variables of this function."""
    count, steps = [], 0

    def helper():
        count.append(1)

    class Counting(nn.Module):
        def forward(self):
            nonlocal steps
            if how == "steps":
                steps += 1
            elif how == "helper":
                helper()
            elif how == "property":
                _ = self.counted
            elif how == "global":
                SEEN["steps"] += 1
            else:
                getattr(self, how)()

        def default(self, seen=[]):  # noqa: B006 # that is what is tested
            seen.append(1)

        @staticmethod
        def static():
            count.append(2)

        @classmethod
        def of_class(cls):
            count.append(3)

        @property
        def counted(self):
            count.append(4)

    return Counting()


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("steps", "steps of Counting.forward"),
        ("helper", "count of Counting.forward"),
        ("global", "SEEN of Counting.forward"),
        ("default", "seen of Counting.default"),
        ("static", "count of Counting.forward"),
        ("of_class", "count of Counting.forward"),
        ("property", "count of Counting.forward"),
    ],
)
def test_variables_of_methods_are_known(how, named):
    """As of a class that a function makes; and none if the class says that they are no state."""
    module = counting(how)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1)
    built = AsBuilt({"the model": module}, {"the optimizer": optimizer})
    assert built.hidden() == []
    module()
    assert built.hidden() == [named]
    type(module).not_state = (named.partition(" ")[0],)
    assert built.hidden() == []


def test_a_function_may_say_what_is_no_state():
    loss = in_closure()
    loss.not_state = ("steps",)
    assert variables_in({"loss": loss}, ()) == {}


def test_who_gets_gradients_and_is_never_trained_is_named():
    """Not the model, nor a teacher that gets none, nor what the optimizer has."""
    model, teacher, part, free = (nn.Linear(2, 2) for _ in range(4))
    weight = torch.ones((), requires_grad=True)
    optimizer = torch.optim.SGD([*model.parameters(), *part.parameters()], lr=0.1)
    held = {"free": free}

    def loss(model, batch):
        y = part(model(batch)) + held["free"](batch) * weight
        return (y - teacher(batch).detach()).square().mean()

    assert untrained(loss, model, optimizer) == untrained(None, model, optimizer) == []
    loss(model, torch.ones(1, 2)).backward()
    assert untrained(loss, model, optimizer) == ["held", "weight"]


class Bytes(nn.Module):
    """Predicts bytes, with a hook that counts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, 8)
        calls = []
        self.embed.register_forward_hook(lambda *_: calls.append(1))

    def forward(self, ids):
        return self.embed(ids)


class Uncertain(nn.Module):
    """A loss with a weight that nobody trains."""

    def __init__(self):
        super().__init__()
        self.weight, self.steps = nn.Parameter(torch.ones(())), 0

    def forward(self, model, batch):
        self.steps += 1
        return model(batch).square().mean() * self.weight


def test_a_run_names_them_in_its_record_and_on_the_screen(start):
    """Once each."""
    batches = itertools.count()

    def data(split, step, micro):
        return torch.full((2,), next(batches) % 256)

    config = start.config(checkpoint_interval=1, format="none")
    with capture_logs() as logs:
        run = altcore.train(config, model=Bytes(), data=data, loss=Uncertain()).run_directory
    hidden, idle = (event["message"] for event in events(run, "warning"))
    assert hidden.startswith(
        "calls of the hook Bytes.__init__.<locals>.<lambda> on module embed, batches of the "
        "function data, steps of the function loss: state of the run that no checkpoint has"
    )
    assert idle.startswith("weight of the function loss: no optimizer trains it. Make it a part of")
    assert [x["event"] for x in logs if x["event"] in (hidden, idle)] == [hidden, idle]


TOLD = []


def helper():
    helper.calls = getattr(helper, "calls", 0) + 1


@define(eq=False)
class ByGlobal:
    @altcore.hookimpl
    def pre_step(self, run, step):
        TOLD.append(step.index)


@define(eq=False)
class ByHelper:
    @altcore.hookimpl
    def pre_step(self, run, step):
        helper()


@define(eq=False)
class Stated(ByGlobal):
    def state_dict(self):
        return {"told": [*TOLD]}

    def load_state_dict(self, state):
        TOLD[:] = state["told"]


@define(eq=False)
class WithoutState(ByGlobal):
    not_state: ClassVar = ("TOLD",)


@pytest.mark.parametrize(
    ("plugin", "kind", "named"),
    [
        (ByGlobal, "intervention", ["TOLD of ByGlobal.pre_step"]),
        (ByHelper, "intervention", ["calls of ByHelper.pre_step"]),
        (Stated, "intervention", []),
        (WithoutState, "intervention", []),
        (ByGlobal, "diagnostic", []),  # changes nothing that a resume could lose
    ],
)
def test_what_hooks_of_a_plugin_keep_in_globals_is_named(start, shelf, plugin, kind, named):
    """A resume begins it anew; it trains on other gradients then."""
    TOLD.clear()
    vars(helper).pop("calls", None)
    shelf.install(kind, "keeps", plugin)
    run = start(["keeps"], name="r", max_steps=3, checkpoint_interval=2).run_directory
    told = [e["message"] for e in events(run, "warning")]
    found = [x.partition(": ")[0] for x in told if "no checkpoint has" in x]
    assert found == named


class Built:
    """A workload whose batches follow from the calls before."""

    def __init__(self, base):
        self.base = base

    def __getattr__(self, name):
        return getattr(self.base, name)

    def batch(self, split, step, micro):
        TOLD.append(step)
        return self.base.batch(split, step, micro)


class Drawing(Gpt):
    def build(self, seed, device):
        return Built(super().build(seed, device))


def test_what_a_workload_keeps_in_globals_is_named(start, shelf, corpus):
    shelf.install("workload", "draws", Drawing)
    keys = {"size": "tiny", "n_layer": 1, "data": str(corpus), "batch_size": 2, "block_size": 8}
    run = start(
        name="r", workload="draws", max_steps=2, **{f"draws__{k}": v for k, v in keys.items()}
    ).run_directory
    told = [e["message"] for e in events(run, "warning")]
    assert any(x.startswith("TOLD of Built.batch: state of the run") for x in told)
