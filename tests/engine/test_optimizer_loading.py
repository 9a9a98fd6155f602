"""An optimizer's state comes back to the bit, or what does not is named."""

import copy
from collections import UserDict

import pytest
import torch
from attrs import define
from helpers import metrics_bytes, weights_sha256
from torch import nn, optim

import altcore
from altcore import BadInput, CheckpointManager, hookimpl
from altcore.engine.optimizer_loading import load_optimizer, placed
from altcore.engine.snapshots import Snapshot
from altcore.errors import PluginError


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


def test_a_learning_rate_that_is_a_tensor_stays_on_its_device():
    """A captured graph reads it there; a device that every machine has stands for a GPU."""
    _, first = stepped(optim.SGD)
    _, again = stepped(optim.SGD)
    first.param_groups[0]["lr"] = torch.tensor(0.1)
    again.param_groups[0]["lr"] = torch.tensor(0.2, device="meta")
    load_optimizer(again, first.state_dict())
    assert again.param_groups[0]["lr"].device.type == "meta"


def test_options_of_several_tensors_stay_on_their_device():
    """At every depth; one that was never there is not known to be of a device."""
    _, first = stepped(optim.Adam)
    _, again = stepped(optim.Adam)
    first.param_groups[0] |= {"betas": (torch.tensor(0.8), torch.tensor(0.9)), "new": torch.ones(1)}
    again.param_groups[0]["betas"] = tuple(torch.tensor(0.5, device="meta") for _ in range(2))
    load_optimizer(again, first.state_dict())
    assert [beta.device.type for beta in again.param_groups[0]["betas"]] == ["meta", "meta"]
    assert again.param_groups[0]["new"].device.type == "cpu"


def test_a_state_of_all_parameters_goes_to_their_device():
    """But for the bytes of a generator; what the optimizer has already stays where it is."""
    _, first = stepped(optim.SGD)
    first.state["all"] = {
        "sums": [torch.ones(2), torch.ones(3)],
        "generator": torch.Generator().get_state(),
        "n": 3,
    }
    again = optim.SGD(nn.Linear(3, 3, device="meta").parameters())
    state = placed(first.state_dict(), again)["state"]["all"]
    assert [x.device.type for x in state["sums"]] == ["meta", "meta"]
    assert (state["generator"].device.type, state["n"]) == ("cpu", 3)
    again.state["all"] = {"sums": [torch.zeros(2), torch.zeros(3, device="meta")]}
    state = placed(first.state_dict(), again)["state"]["all"]
    assert [x.device.type for x in state["sums"]] == ["cpu", "meta"]


def test_a_state_in_a_mapping_of_its_own_kind_is_found():
    """What an optimizer keeps it in is its own affair."""
    _, first = stepped(optim.SGD)
    _, again = stepped(KeepsMappings)
    p = first.param_groups[0]["params"][0]
    first.state[p] = {"sums": {"a": torch.ones(2)}}
    load_optimizer(again, first.state_dict())
    (own,) = again.state.values()
    assert (type(own["sums"]), own["sums"]["a"].tolist()) == (UserDict, [1, 1])


class KeepsMappings(optim.SGD):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for entry in self.state.values():
            entry["sums"] = UserDict(entry["sums"])


class Nested(optim.Optimizer):
    """Keeps float32 sums in a list and a count in a dict, as Shampoo does, of bfloat16 weights."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                count = torch.tensor(2**24)
                state |= {"sums": [torch.zeros(p.shape)], "in": {"counts": (count,)}}
            state["sums"][0].mul_(0.9).add_(p.grad.float())
            state["in"]["counts"][0].add_(1)
            p.sub_((state["sums"][0] * 0.1).to(p.dtype))


@pytest.mark.parametrize("by", [CheckpointManager, Snapshot], ids=["a restore", "a rollback"])
def test_states_at_every_depth_keep_their_types(tmp_path, by):
    """By torch, those in a list or a dict get the type of the parameter, counts too."""
    model, optimizer = stepped(Nested, torch.bfloat16)
    before = copy.deepcopy(optimizer.state_dict()["state"][0])
    if by is CheckpointManager:
        with CheckpointManager(tmp_path, model, optimizer) as manager:
            manager.save(1)
        model, optimizer = stepped(Nested, torch.bfloat16)
        with CheckpointManager(tmp_path, model, optimizer) as manager:
            manager.restore()
    else:
        q = altcore.quantize_model(model, {})
        taken = Snapshot.take(1, model, optimizer, q, [])
        optimizer.step()
        taken.restore(optimizer, q)
    after = optimizer.state_dict()["state"][0]
    assert after["sums"][0].dtype == torch.float32
    assert torch.equal(after["sums"][0], before["sums"][0])
    assert type(after["in"]["counts"]) is tuple
    assert after["in"]["counts"][0].dtype == torch.int64
    assert after["in"]["counts"][0] == before["in"]["counts"][0] == 2**24 + 1


def test_a_moment_in_a_list_that_is_not_finite_is_no_state_to_go_on_from(tmp_path):
    model, optimizer = stepped(Nested)
    optimizer.state[model.weight]["sums"][0][0] = torch.nan
    with CheckpointManager(tmp_path, model, optimizer) as manager:
        assert manager.save(1).name.startswith("anomaly")


@pytest.mark.parametrize("needed", [(), ("snapshots",)])
def test_a_run_whose_optimizer_has_another_order_goes_on_bit_for_bit(shelf, start, needed):
    """One that takes parameters from a set has another order in each process."""
    orders, left = [1, 1, -1, 1], [2, 4]

    @define(eq=False)
    class OfSets:
        def build(self, named_parameters, grid_of):
            order = orders.pop(0)
            named = dict(named_parameters)
            decayed = [p for p in named.values() if p.dim() > 1][::order]
            others = [p for p in named.values() if p.dim() < 2][::order]
            groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
            return optim.AdamW(groups, lr=0.0)

    @define(eq=False)
    class Crashing:
        needs = needed

        @hookimpl
        def pre_step(self, run, step):
            if left and left[0] == step.index and run.directory.name == "r":
                left.pop(0)
                raise RuntimeError

    shelf.install("optimizer", "sets", OfSets)
    shelf.install("intervention", "crashing", Crashing)
    keys = {"optimizer": "sets", "checkpoint_interval": 1, "max_steps": 5, "snapshot_interval": 1}
    whole = start(["crashing"], name="whole", **keys).run_directory
    with pytest.raises(PluginError):
        start(["crashing"], name="r", **keys)
    with pytest.raises(PluginError):
        start.resume("r")
    run = start.resume("r").run_directory
    assert weights_sha256(run) == weights_sha256(whole)
    assert metrics_bytes(run) == metrics_bytes(whole)
