"""An optimizer's state comes back to the bit, or what does not is named."""

import pytest
import torch
from torch import nn, optim

import altcore
from altcore import BadInput
from altcore.engine.optimizer_loading import load_optimizer


class Masters(optim.Optimizer):
    """Keeps weights of another type than its parameters, and one state that is a number."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        self.state["count"] = 1
        for p in self.param_groups[0]["params"]:
            master = self.state[p].setdefault("master", p.float())
            p.copy_(master.sub_(p.grad.float(), alpha=0.001))


class Rounding(optim.AdamW):
    """States rounded moments."""

    def state_dict(self):
        state = super().state_dict()
        moments = {
            i: {k: v.half().float() for k, v in e.items()} for i, e in state["state"].items()
        }
        return {**state, "state": moments}


class Forgetting(optim.AdamW):
    """Takes no state."""

    def load_state_dict(self, state):
        pass


def stepped(kind, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Linear(3, 3, dtype=dtype)
    optimizer = kind(model.parameters())
    model(torch.full((2, 3), 0.3, dtype=dtype)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_moments_keep_their_type():
    """Torch gives them that of the parameter, and what is rounded so is lost."""
    _, first = stepped(Masters, torch.bfloat16)
    model, again = stepped(Masters, torch.bfloat16)
    again.step()
    load_optimizer(again, first.state_dict())
    master = again.state[model.weight]["master"]
    (kept, _) = (first.state[p]["master"] for p in first.param_groups[0]["params"])
    assert torch.equal(master, kept)
    assert master.data_ptr() != kept.data_ptr()


def test_an_optimizer_that_states_other_moments_is_refused(tmp_path):
    model, optimizer = stepped(Rounding)
    told = r"^optimizer: the state_dict of the optimizer has other numbers than exp_avg of param"
    with pytest.raises(BadInput, match=told):
        altcore.save_checkpoint(tmp_path, model, optimizer, None, 1)


def test_an_optimizer_that_does_not_take_its_state_is_named(tmp_path):
    model, optimizer = stepped(Forgetting)
    altcore.save_checkpoint(tmp_path, model, optimizer, None, 1)
    model, optimizer = stepped(Forgetting)
    optimizer.state.clear()
    with pytest.raises(BadInput, match=r"^optimizer: it did not take step of parameter 0 .* mend"):
        altcore.load_checkpoint(tmp_path, model, optimizer, None)
