"""The buffers of a model: watched for NaN and infinity, and put back after a discarded step."""

import math

import pytest
import torch
from attrs import define, field
from helpers import checkpoints, events, state
from torch import nn

import altcore
from altcore import Rollback, SkipStep, hookimpl
from altcore.engine import resuming
from altcore.engine.buffers import Buffers
from altcore.engine.snapshots import Snapshot
from altcore.engine.weights import WeightCheck
from altcore.hooks import NonFinite


class Normed(nn.Module):
    """Predicts bytes; with running statistics, and a mask that is infinite from the start."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(256, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 256)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, ids):
        return self.head(self.norm(self.embed(ids).transpose(1, 2)).transpose(1, 2))


@define(eq=False)
class Spoil:
    """Puts a value into a buffer at step 2, before its update or after, and looks at all."""

    value: float = math.nan
    hook: str = "pre_step"
    seen: list = field(init=False, factory=list)

    def spoil(self, run, step, hook):
        if (step.index, hook) == (2, self.hook):
            run.model.norm.running_var[3] = self.value

    @hookimpl
    def is_due(self, run, step):
        LOOKED.append([b.clone() for b in run.model.buffers()])
        return True

    @hookimpl
    def pre_backward(self, run, step):
        if (step.index, self.hook) == (2, "loss"):
            step.loss = step.loss * self.value
        return SkipStep(reason="a test") if (step.index, self.hook) == (2, "skip") else None

    @hookimpl
    def pre_step(self, run, step):
        self.spoil(run, step, "pre_step")

    @hookimpl
    def post_step(self, run, step):
        self.spoil(run, step, "post_step")


LOOKED = []
"""The buffers as each step begins."""


@pytest.fixture
def spoiled(shelf, start):
    """Return a function that trains with `Spoil`; gives the run's directory."""
    shelf.install("intervention", "spoil", Spoil)

    def train(hook, value, **keys):
        LOOKED.clear()
        torch.manual_seed(0)
        keys = {"max_steps": 4, "checkpoint_interval": 1, "spoil__hook": hook, **keys}
        config = start.config(["spoil"], name="r", spoil__value=value, **keys)
        return altcore.train(config, model=Normed()).run_directory

    return train


def found(run):
    return [(e["step"], e["what"], e["layer"], e["arose"]) for e in events(run, "nan")]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_buffer_that_a_forward_pass_spoils_is_named_and_put_back(spoiled, value):
    """The step is discarded before the optimizer, and the next one is a healthy one."""
    run = spoiled("pre_step", value, max_checkpoints=9)
    assert found(run) == [(2, "buffer", "norm.running_var", None)]
    assert [*map(torch.equal, LOOKED[1], LOOKED[2])] == [True] * 4
    assert not torch.equal(LOOKED[2][1], LOOKED[3][1])
    regular = [name for name in checkpoints(run) if name.startswith("step")]
    assert regular == [f"step-0000000{step}" for step in range(5)]
    for name in regular:
        assert torch.isfinite(state(run, name)["model"]["norm.running_var"]).all()
    assert not torch.isfinite(state(run, "anomaly_00000002")["model"]["norm.running_var"]).all()


@pytest.mark.parametrize("hook", ["loss", "skip"])
def test_a_discarded_step_leaves_no_trace_in_buffers(spoiled, hook):
    """Whatever the reason; the count of batches is put back, too."""
    run = spoiled(hook, math.nan)
    assert [where for _, where, *_ in found(run)] == ["loss"] * (hook == "loss")
    assert [*map(torch.equal, LOOKED[1], LOOKED[2])] == [True] * 4
    assert [int(buffers[3]) for buffers in LOOKED] == [0, 1, 1, 2]


def test_a_buffer_that_is_spoiled_between_steps_is_in_no_regular_checkpoint(spoiled):
    """As a weight is not; the event names the step after which it was so."""
    run = spoiled("post_step", math.inf)
    assert found(run) == [(s, "buffer", "norm.running_var", 2) for s in (2, 3, 4)]
    assert [n for n in checkpoints(run) if n.startswith("step")][-1] == "step-00000001"


@pytest.mark.parametrize(("arose", "since"), [(None, ""), (2, " since step 2")])
def test_a_buffer_is_named_in_text(arose, since):
    """As reasons of actions and reports tell of it."""
    where = NonFinite("buffer", "norm.running_var", value=math.inf, arose=arose)
    assert str(where) == f"buffer norm.running_var is inf{since}"


def test_without_buffers_nothing_is_kept():
    model = nn.Linear(2, 2)
    check = WeightCheck(model)
    check.buffers.keep()
    assert (check.buffers.places, check.buffers.by_type, check.watched) == ({}, [], {})
    assert torch.equal(check.norm(), torch.cat([p.flatten() for p in model.parameters()]).norm())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_buffers_that_the_model_replaces_are_put_back():
    """Also one that was not set, and those of a scripted module."""
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(2)), nn.Module())
    model[1].register_buffer("seen", torch.zeros(2))
    model[1].register_buffer("cache", None)
    buffers = Buffers(model)
    before = model[1].seen
    buffers.keep()
    model[0](torch.randn(4, 2))
    model[1].seen, model[1].cache = torch.ones(3), torch.ones(1)
    buffers.put_back()
    assert model[1].seen is before
    assert model[1].cache is None
    assert torch.equal(model[0].running_mean, torch.zeros(2))
    assert int(model[0].num_batches_tracked) == 0


def test_buffers_that_appear_are_put_back():
    """They go if the first step that made them is discarded, and are watched from then on."""
    model = nn.Linear(2, 2)
    buffers = Buffers(model)
    buffers.keep()
    model.register_buffer("cache", torch.zeros(2))
    buffers.put_back()
    assert not hasattr(model, "cache")
    model.register_buffer("cache", torch.zeros(2))
    buffers.keep()
    model.cache += 1
    buffers.put_back()
    assert torch.equal(model.cache, torch.zeros(2))


def test_a_mask_that_a_model_makes_later_may_be_infinite():
    """It takes another shape than its place had."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.empty(0))
    check = WeightCheck(model)
    model.mask = torch.tensor([0.0, -math.inf])
    assert check.judge(float(check.norm()), 1) is None
    assert math.isfinite(check.norm())


@define(eq=False)
class Back:
    """Rolls back once."""

    needs = ("snapshots",)

    @hookimpl
    def pre_step(self, run, step):
        return Rollback(steps=1, reason="a test") if step.index == 3 else None


def test_a_model_with_an_infinite_mask_can_roll_back(shelf, start):
    """The mask was so when the run was built, so that snapshots are none the worse."""
    shelf.install("intervention", "back", Back)
    config = start.config(["back"], max_steps=3, snapshot_interval=1)
    run = altcore.train(config, model=Normed()).run_directory
    assert [e["to"] for e in events(run, "rollback")] == [2]


def test_a_snapshot_is_judged_by_what_is_watched():
    """A mask is not; weights, frozen ones too, and running statistics are."""
    model = Normed()
    model.embed.weight.requires_grad_(False)
    watched, kept = WeightCheck(model).names(), model.state_dict()
    for name, is_watched in {
        "embed.weight": True,
        "mask": False,
        "head.weight": True,
        "norm.running_var": True,
    }.items():
        spoiled = {**kept, name: kept[name] + math.inf}
        assert Snapshot(1, spoiled, {}, {}, {}, watched).is_finite() != is_watched


class Means(nn.Module):
    """Keeps a mean of its input by one way of writing it, in a buffer that no state has."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.line = way, nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2), persistent=False)

    def forward(self, x):
        if self.training:
            new = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            WAYS[self.way](self, new)
        return self.line(x - self.mean)


def set_data(model, new):
    model.mean.data = new


WAYS = {
    "in place": lambda model, new: model.mean.copy_(new),
    "another tensor": lambda model, new: setattr(model, "mean", new),
    "data": set_data,
    "data in place": lambda model, new: model.mean.data.copy_(new),
    "set_": lambda model, new: model.mean.set_(new),
}


def rows(split, step, micro):
    drawn = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
    return drawn * math.nan if step in NAN else drawn


NAN = set()
"""The steps whose batches are no numbers."""


def squared(model, batch):
    return (model(batch) - 1).square().mean()


@pytest.mark.parametrize("way", WAYS)
def test_a_discarded_step_puts_back_whatever_way_a_buffer_was_written(start, way, monkeypatch):
    """One bad batch costs one step."""
    NAN.add(2)
    try:
        config = start.config(["skip-nonfinite"], name="r", max_steps=5)
        run = altcore.train(config, model=Means(way), data=rows, loss=squared)
    finally:
        NAN.clear()
    assert [e["step"] for e in events(run.run_directory, "nan")] == [2]


@pytest.mark.parametrize("way", WAYS)
def test_a_resume_has_it_whatever_way_it_was_written(start, way):
    own = {"data": rows, "loss": squared}
    keys = {"min_lr_ratio": 1.0, "checkpoint_interval": 2}
    whole = altcore.train(start.config(name="w", max_steps=5, **keys), model=Means(way), **own)
    altcore.train(start.config(name="r", max_steps=2, **keys), model=Means(way), **own)
    config = resuming.resumed("r", str(start.runs), max_steps=5)
    again = altcore.train(config, resume="r", model=Means(way), **own)
    assert again.final_loss == whole.final_loss
    ends = [state(run.run_directory)["model"]["line.weight"] for run in (whole, again)]
    assert torch.equal(*ends)


def test_a_rollback_takes_away_a_buffer_that_came_later():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    q = altcore.quantize_model(model, {})
    snapshot = Snapshot.take(1, model, optimizer, q, [])
    model.register_buffer("cache", torch.ones(2), persistent=False)
    snapshot.restore(optimizer, q)
    assert not dict(model.named_buffers())


class Grows(nn.Module):
    """Its buffer takes other memory in every evaluation."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x):
        if not self.training:
            self.cache.data = torch.zeros(len(self.cache) + 1)
        return self.line(x)


def test_a_buffer_that_grows_in_an_evaluation_is_put_back(start):
    config = start.config(name="r", max_steps=4, eval_interval=1)
    model = Grows()
    run = altcore.train(config, model=model, data=rows, loss=squared)
    assert run.steps_completed == 4
    assert model.cache.shape == (1,)
