"""Tensors of a model that share their memory, and did not when they were saved; or the reverse."""

import pytest
import torch
from helpers import state
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore.engine.as_built import AsBuilt
from altcore.engine.labels import MODEL
from altcore.engine.snapshots import Snapshot


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 3)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.update(x)
        return self.line(x) + self.target()


class FromOne(Line):
    """Two buffers begin as one tensor."""

    is_persistent = True

    def __init__(self):
        super().__init__()
        zeros = torch.zeros(3)
        self.register_buffer("mean", zeros, persistent=self.is_persistent)
        self.register_buffer("square", zeros, persistent=self.is_persistent)

    def update(self, x):
        self.mean = 0.9 * self.mean + x.mean(0)
        self.square = 0.9 * self.square + x.square().mean(0)

    def target(self):
        return self.mean - 2 * self.square


class NotPersistent(FromOne):
    is_persistent = False


class OfWeight(Line):
    """A buffer begins as a view of a weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("slow", self.line.weight.detach()[1])

    def update(self, x):
        self.slow = 0.9 * self.slow + 0.1 * self.line.weight[0]

    def target(self):
        return self.slow


class Teacher(Line):
    """A frozen weight begins in the memory of a trained one."""

    def __init__(self):
        super().__init__()
        self.slow = nn.Linear(3, 3).requires_grad_(False)
        self.slow.weight.data = self.line.weight.data

    def update(self, x):
        self.slow.weight.data = 0.9 * self.slow.weight + 0.1 * self.line.weight

    def target(self):
        return self.slow.weight.sum(0)


class Late(Line):
    """One tensor takes the place of two, which are written to as one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("own", torch.zeros(1))
        self.register_buffer("other", None)

    def update(self, x):
        if self.other is None:
            self.own = self.other = torch.zeros_like(x[0])
        self.own += x.mean(0)

    def target(self):
        return 0 if self.other is None else self.other


class Kept(Line):
    """Two buffers are one tensor, and stay so."""

    def __init__(self):
        super().__init__()
        zeros = torch.zeros(3)
        self.register_buffer("own", zeros)
        self.register_buffer("other", zeros)

    def update(self, x):
        self.own += x.mean(0)

    def target(self):
        return self.other


class Part(Line):
    """A frozen weight becomes the transposed one of another, once."""

    def __init__(self):
        super().__init__()
        self.slow = nn.Linear(3, 3, bias=False).requires_grad_(False)
        self.slow.weight.zero_()

    def update(self, x):
        if not self.slow.weight.any():
            self.slow.weight.data = self.line.weight.data.t()

    def target(self):
        return self.slow.weight.sum(0)


MODELS = (FromOne, NotPersistent, OfWeight, Teacher, Late, Kept, Part)


def data(split, step, micro):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))


def loss(model, batch):
    return (model(batch) - 1).square().mean()


def step(model, optimizer, index):
    optimizer.zero_grad()
    loss(model, data("train", index, 0)).backward()
    optimizer.step()


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", MODELS)
def test_a_loop_goes_on_as_if_it_had_never_stopped(tmp_path, kind):
    model = kind()
    optimizer = sgd(model)
    manager = altcore.CheckpointManager(tmp_path, model, optimizer)
    for i in range(4):
        step(model, optimizer, i)
        if i == 1:
            manager.save(2)
    manager.close()
    again = kind()
    optimizer, own = sgd(again), [*again.parameters()]
    altcore.load_checkpoint(tmp_path, again, optimizer, None)
    assert all(p is q for p, q in zip(own, again.parameters(), strict=True))
    for i in range(2, 4):
        step(again, optimizer, i)
    assert same(model, again)


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_goes_on_as_if_it_had_never_stopped(start, kind):
    def train(name, steps, **more):
        keys = {"checkpoint_interval": 2, "warmup_steps": 0, "min_lr_ratio": 1.0}
        config = start.config(name=name, max_steps=steps, **keys)
        done = altcore.train(config, model=kind(), data=data, loss=loss, **more)
        return done.final_loss, state(done.run_directory)["model"]

    (whole, weights), _ = train("w", 4), train("r", 2)
    part, own = train("r", 4, resume="r")
    assert part == whole
    assert all(torch.equal(x, own[name]) for name, x in weights.items())
    given = {"model": kind(), "data": data, "loss": loss}
    made = altcore.load("r", runs_dir=start.runs, checkpoint="latest", **given)
    assert all(torch.equal(x, weights[name]) for name, x in made.model.state_dict().items())


def test_a_model_that_shares_with_another_in_a_loop_is_split_from_it(tmp_path):
    def build():
        model, teacher = Line(), nn.Linear(3, 3)
        teacher.weight.data = model.line.weight.data
        return model, teacher

    model, teacher = build()
    teacher.weight.data = torch.ones(3, 3)
    altcore.save_checkpoint(tmp_path, model, sgd_of(model), None, 1, also={"teacher": teacher})
    new, other = build()
    altcore.load_checkpoint(tmp_path, new, sgd_of(new), None, also={"teacher": other})
    assert same(model, new)
    assert same(teacher, other)


def sgd_of(model):
    return torch.optim.SGD(model.line.parameters(), 0.1)


def test_a_rollback_gives_each_buffer_what_it_had():
    model = FromOne()
    optimizer = sgd(model)
    q = altcore.quantize_model(model, {})
    model.mean, model.square = torch.ones(3), torch.zeros(3)
    snapshot = Snapshot.take(1, model, optimizer, q, [])
    model.mean = model.square
    snapshot.restore(optimizer, q)
    assert model.mean.tolist() == [1, 1, 1]
    assert model.square.tolist() == [0, 0, 0]


def test_what_shares_memory_as_no_restore_can_make_it_is_named():
    """It is no part of the first one."""
    model = Line()
    built = AsBuilt({MODEL: model}, {})
    assert not built.hidden()
    model.line.weight.data = (whole := torch.zeros(12))[3:].view(3, 3)
    model.line.bias.data = whole[1:4]
    assert built.hidden() == ["memory of line.bias"]


class Sharing(torch.optim.Optimizer):
    """Moves its own state, which is the weight."""

    def step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("own", p.detach()).sub_(p.grad)


def test_a_loop_is_told_of_a_state_of_its_optimizer_that_is_a_weight(tmp_path):
    model = Line()
    optimizer = Sharing(model.line.parameters(), {})
    manager = altcore.CheckpointManager(tmp_path, model, optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with capture_logs() as logs:
        manager.save(1)
    (log,) = logs
    assert log["names"] == ["memory of own of line.weight", "memory of own of line.bias"]


def test_a_restored_gradient_is_the_part_of_a_memory_that_it_was(tmp_path):
    """The loop clears all of it at once."""
    model, flat = nn.Linear(3, 3), torch.ones(12)
    optimizer = sgd(model)
    for p, part in zip(model.parameters(), flat.split([9, 3]), strict=True):
        p.grad = part.view_as(p)
    altcore.save_checkpoint(tmp_path, model, optimizer, None, 1)
    flat.zero_()
    altcore.load_checkpoint(tmp_path, model, optimizer, None)
    assert flat.tolist() == [1] * 12


def test_a_restored_option_that_is_a_tensor_is_the_one_that_the_loop_holds(tmp_path):
    model = nn.Linear(3, 3)
    rate, other = torch.tensor(0.1), torch.tensor(0.3)
    groups = [{"params": [p], "lr": rate} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    altcore.save_checkpoint(tmp_path / "one", model, optimizer, None, 1)
    optimizer.param_groups[1]["lr"] = other
    altcore.save_checkpoint(tmp_path / "two", model, optimizer, None, 1)
    rate.fill_(0.7)
    other.fill_(0.7)
    altcore.load_checkpoint(tmp_path / "two", model, optimizer, None)
    assert [group["lr"] for group in optimizer.param_groups] == [rate, other]
    assert (rate, other) == (torch.tensor(0.1), torch.tensor(0.3))
    optimizer.param_groups[1]["lr"] = rate
    altcore.load_checkpoint(tmp_path / "one", model, optimizer, None)
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    altcore.load_checkpoint(tmp_path / "two", model, optimizer, None)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1, 0.3])
