"""An optimizer's state that a checkpoint holds is taken by the same optimizer, built anew."""

import pytest
import torch
from torch import nn, optim

import altcore
from altcore.engine.labels import MODEL, parameter_names
from altcore.engine.optimizer_checks import check_layout, check_optimizer, layout_of
from altcore.errors import BadInput, InvalidCheckpoint


def model():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def groups(m, **first):
    return [{"params": m[0].parameters(), **first}, {"params": m[1].parameters()}]


class LowRank(optim.AdamW):
    """Has moments of another shape than its parameters."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["factor"] = torch.ones(3, 5)
            self.state[p]["exp_avg_sq"] = -torch.ones(2)


class Counting(optim.SGD):
    """Has a state of all parameters."""

    def step(self, closure=None):
        self.state["of all"] = {"count": torch.ones(())}
        super().step(closure)


MADE = {
    "a state of all": lambda m: Counting(m.parameters()),
    "amsgrad in one group": lambda m: optim.AdamW(groups(m, amsgrad=True)),
    "momentum in one group": lambda m: optim.RMSprop(groups(m, momentum=0.9)),
    "LBFGS": lambda m: optim.LBFGS(m.parameters(), max_iter=3),
    "Adafactor": lambda m: optim.Adafactor(m.parameters()),
    "a subclass": lambda m: LowRank(m.parameters()),
}


class Complex(nn.Module):
    """Has a complex parameter, whose moments are complex and whose count is not."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x):
        return (x * self.scale).abs()


def test_moments_of_a_complex_parameter_are_taken():
    _, optimizer = stepped(lambda m: optim.AdamW(m.parameters()), Complex())
    state = optimizer.state_dict()
    fresh = optim.AdamW(Complex().parameters())
    check_optimizer(state, fresh)
    state["state"][0]["exp_avg_sq"] = -state["state"][0]["exp_avg_sq"] - 1
    with pytest.raises(InvalidCheckpoint, match="has a negative element"):
        check_optimizer(state, fresh)


def named(model):
    return parameter_names({MODEL: model})


def stepped(make, m=None):
    m = m or model()
    optimizer = make(m)

    def closure():
        optimizer.zero_grad()
        loss = m(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return m, optimizer


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_same_optimizer_takes_its_state(make):
    m, optimizer = stepped(make)
    state = optimizer.state_dict()
    other = model()
    fresh = make(other)
    check_optimizer(state, fresh)
    check_layout(layout_of(state, optimizer, named(m)), state, fresh, named(other))


CHANGED = {
    "a tensor for a rate": lambda g: g.update(lr=torch.tensor(0.1)),
    "a scheduler's key": lambda g: g.update(initial_lr=0.1),
    "another implementation": lambda g: g.update(foreach=False),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("is_saved", [True, False])
def test_groups_may_hold_more_than_the_optimizer_reads(change, is_saved):
    """Of the two, one has what a scheduler or the caller put there."""
    saved, now = optim.AdamW(model().parameters()), optim.AdamW(model().parameters())
    change((saved if is_saved else now).param_groups[0])
    check_optimizer(saved.state_dict(), now)


class Remembering(optim.SGD):
    """Makes something else of its own options as it goes."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, lr, nesterov=False)
        own = {"losses": [], "window": (1.0,), "table": torch.zeros(1), "phase": False, "seen": {}}
        for name, value in own.items():
            self.defaults[name] = self.param_groups[0][name] = value

    def step(self, closure=None):
        super().step(closure)
        group = self.param_groups[0]
        group.update(losses=[*group["losses"], 1.0], window=(*group["window"], 1.0))
        group.update(table=torch.zeros(3), phase=2, nesterov=0)
        group["seen"]["steps"] = 1


def test_options_of_its_own_may_become_something_else(tmp_path):
    """A checkpoint restores them; of torch's own options the kind stays, and both are named."""
    m, optimizer = stepped(lambda m: Remembering(m.parameters()))
    altcore.save_checkpoint(tmp_path, m, optimizer, None, 1)
    other = model()
    fresh = Remembering(other.parameters())
    assert altcore.load_checkpoint(tmp_path, other, fresh, None) == 1
    (was,), (now,) = optimizer.param_groups, fresh.param_groups
    told = ("losses", "window", "phase", "seen", "nesterov")
    assert {key: now[key] for key in told} == {key: was[key] for key in told}
    assert torch.equal(now["table"], was["table"])
    optimizer.param_groups[0]["momentum"] = "much"
    with pytest.raises(InvalidCheckpoint, match=r"momentum is 'much' in .*, and 0 in the"):
        check_optimizer(optimizer.state_dict(), fresh)


def test_an_option_that_was_deleted_is_named_when_it_is_saved(tmp_path):
    """By a manager, which saw it; without one, when it is missed."""
    m = model()
    optimizer = Remembering(m.parameters())
    with altcore.CheckpointManager(tmp_path / "many", m, optimizer) as manager:
        del optimizer.param_groups[0]["window"]
        with pytest.raises(BadInput, match=r"^optimizer: .* group 0 .* has no window any more"):
            manager.save(1)
    altcore.save_checkpoint(tmp_path / "one", m, optimizer, None, 1)
    with pytest.raises(BadInput, match="group 0 of the optimizer has no window in the checkpoint"):
        altcore.load_checkpoint(tmp_path / "one", m, Remembering(m.parameters()), None)


def test_moments_of_parameters_in_other_groups_are_refused():
    """Their shapes are alike."""
    m, optimizer = stepped(lambda m: optim.AdamW([m[0].weight, m[1].weight]))
    state, other = optimizer.state_dict(), model()
    fresh = optim.AdamW([other[1].weight, other[0].weight])
    with pytest.raises(InvalidCheckpoint, match=r"other groups: 0\.weight is where 1\.weight"):
        check_layout(layout_of(state, optimizer, named(m)), state, fresh, named(other))
