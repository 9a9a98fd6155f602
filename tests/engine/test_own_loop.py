"""What a checkpoint of a loop of one's own holds, and in which contexts it is written and read."""

import re

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.optim.swa_utils import AveragedModel

import altcore
from altcore import BadInput, CheckpointManager


class Growing(nn.Linear):
    """A layer one of whose buffers appears, and one grows, as it trains."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("table", torch.ones(1))

    def forward(self, x):
        if self.training and not hasattr(self, "cache"):
            self.register_buffer("cache", torch.zeros(1))
        if self.training:
            self.cache = torch.cat([self.cache, self.cache[-1:] + 1])
            self.table = torch.cat([self.table, self.table])
        return super().forward(x) * (self.cache.sum() + self.table.sum())


class Loop:
    """A small loop."""

    def __init__(self, optimizer=torch.optim.AdamW, model=nn.Linear):
        torch.manual_seed(0)
        self.model = model(3, 3)
        self.optimizer = optimizer(self.model.parameters(), lr=0.01)

    def train(self, steps=1):
        for _ in range(steps):
            loss = self.model(torch.ones(2, 3)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return self.model.weight.detach().clone()


def test_a_loop_is_told_of_other_arithmetic(tmp_path, monkeypatch):
    """It goes on, and its bits may differ; who evaluates is not told."""
    loop = Loop()
    with CheckpointManager(tmp_path, loop.model, loop.optimizer) as manager:
        manager.save(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    with capture_logs() as logs:
        altcore.load_checkpoint(tmp_path, loop.model, None, None)
        assert not logs
        altcore.load_checkpoint(tmp_path, loop.model, loop.optimizer, None)
    (told,) = logs
    assert re.search("bits may differ .* threads was [0-9]+ and is 99", told["event"])


def test_a_loop_goes_on_with_the_buffers_that_came_and_grew(tmp_path):
    """A model that was built with another one is another model."""
    loop, again, other = (Loop(model=Growing) for _ in range(3))
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    loop.train(2)
    manager.save(2)
    manager.close()
    assert CheckpointManager(tmp_path, again.model, again.optimizer).restore() == 2
    assert torch.equal(again.train(2), loop.train(2))
    other.model.table = torch.ones(5)
    with pytest.raises(BadInput, match=r"^model: .* the shape of table is \[4\], .* \[5\]"):
        altcore.load_checkpoint(tmp_path, other.model, other.optimizer, None)


def test_a_checkpoint_that_is_a_link_is_not_passed_by(tmp_path):
    """Nor written through: it may have been moved to another disk."""
    loop, folder = Loop(), tmp_path / "own"
    manager = CheckpointManager(folder, loop.model, loop.optimizer)
    for step in (1, 2):
        manager.save(step)
    (folder / "step-00000002").rename(tmp_path / "elsewhere")
    (folder / "step-00000002").symlink_to(tmp_path / "elsewhere")
    given = (loop.model, loop.optimizer, None)
    for function in (
        manager.restore,
        lambda: manager.save(3),
        lambda: altcore.load_checkpoint(folder, *given),
        lambda: altcore.load_checkpoint(folder / "step-00000002", *given),
    ):
        with pytest.raises(BadInput, match=r"step-00000002 is a symbolic link, and no checkpoint"):
            function()


def meta():
    return torch.device("meta")


@pytest.mark.parametrize("context", [torch.inference_mode, meta])
def test_checkpoints_are_the_same_in_any_context(context, tmp_path):
    """The optimizer goes on as if they were written and read in none."""
    loop, again = Loop(), Loop()
    loop.train()
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    with context():
        manager.save(1, value=1.0)
        manager.close()
        assert manager.latest() == manager.best()
        assert altcore.load_checkpoint(tmp_path, again.model, again.optimizer, None) == 1
    assert torch.equal(again.train(), loop.train())


def test_a_model_of_inference_mode_is_only_evaluated(tmp_path):
    """Torch would refuse to train it, when the loop goes on."""
    loop = Loop()
    loop.train()
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1)
    with torch.inference_mode():
        again = Loop()
    with pytest.raises(BadInput, match=r"^model: it was made under torch\.inference_mode"):
        altcore.load_checkpoint(tmp_path, again.model, again.optimizer, None)
    altcore.load_checkpoint(tmp_path, again.model, None, None)
    assert torch.equal(again.model.weight, loop.model.weight)


def test_a_model_on_meta_is_not_restored_into(tmp_path):
    loop = Loop()
    loop.train()
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1)
    with meta():
        again = Loop()
    with pytest.raises(BadInput, match=r"^model: weight is on the device meta"):
        altcore.load_checkpoint(tmp_path, again.model, None, None)


def test_a_weight_that_was_trained_is_not_frozen_in_silence(tmp_path):
    """Nor the other way round; evaluation asks nothing of it."""
    loop, again = Loop(), Loop()
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1)
    again.model.bias.requires_grad_(False)
    altcore.load_checkpoint(tmp_path, again.model, None, None)
    told = "bias was trained when the checkpoint was written, and is frozen"
    with pytest.raises(BadInput, match=told):
        altcore.load_checkpoint(tmp_path, again.model, again.optimizer, None)


def test_a_part_that_only_evaluates_goes_on_evaluating(tmp_path):
    """As frozen statistics do; who restores for an evaluation, or saved in one, keeps its mode."""

    def model(*sizes):
        return nn.Sequential(nn.Linear(*sizes), nn.Dropout(), nn.BatchNorm1d(3))

    def modes(loop):
        return [m.training for m in loop.model.modules()]

    def restored(loop):
        altcore.load_checkpoint(tmp_path, loop.model, loop.optimizer, None)
        return modes(loop)

    loop, again, other = (Loop(model=model) for _ in range(3))
    loop.model[2].eval()
    other.model[1].eval()
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1)
    assert restored(again) == restored(other) == [True, True, True, False]
    again.model.eval()
    assert restored(again) == [False] * 4
    loop.model.eval()
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 1)
    with capture_logs() as logs:
        assert restored(other) == [True, True, True, False]
    assert logs[0]["event"].startswith("the model was in evaluation mode when it was saved")


class Lookahead(torch.optim.SGD):
    """Keeps slow weights, and a count, beside its state."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.count, self.slow = 0, {}

    def step(self):
        super().step()
        self.count += 1
        for p in self.param_groups[0]["params"]:
            self.slow.setdefault(p, p.detach().clone())


class Whole(Lookahead):
    """Says all of it."""

    def state_dict(self):
        return {**super().state_dict(), "count": self.count}


def told_of(logs):
    told = [line for line in logs if "state that no checkpoint has" in line["event"]]
    assert all(name in line["event"] for line in told for name in line["names"][:8])
    return [line["names"] for line in told]


def test_numbers_that_an_optimizer_keeps_beside_its_state_are_told(tmp_path):
    """Once by a manager, which knows what they were; its own state_dict is trusted."""
    loop, whole = Loop(Lookahead), Loop(Whole)
    manager = CheckpointManager(tmp_path / "a", loop.model, loop.optimizer)
    slow = "slow of the optimizer"
    with capture_logs() as logs:
        manager.save(0)
        for step in (1, 2):
            loop.train()
            manager.save(step)
        altcore.save_checkpoint(tmp_path / "b", loop.model, loop.optimizer, None, 2)
    assert told_of(logs) == [[slow, "count of the optimizer"], [slow]]
    with capture_logs() as logs:
        whole.train()
        altcore.save_checkpoint(tmp_path / "c", whole.model, whole.optimizer, None, 2)
    assert told_of(logs) == []


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_is_not_kept_is_told_once(name, tmp_path):
    """By its class, by a manager and without one; parts of one are not told beside it."""
    loop = Loop()
    made = SCHEDULERS[name](loop.optimizer)
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    with capture_logs() as logs:
        for step in (0, 1):
            manager.save(step)
        altcore.save_checkpoint(tmp_path / "a", loop.model, loop.optimizer, None, 0)
    assert told_of(logs) == [[f"a learning-rate scheduler ({name})"]] * 2
    manager.close()
    with capture_logs() as logs:
        also = {"plan": made}
        CheckpointManager(tmp_path / "b", loop.model, loop.optimizer, also=also).save(0)
    assert told_of(logs) == []


class OwnPlan:
    """A scheduler that is not torch's, and holds the groups alone."""

    def __init__(self, optimizer):
        self.groups = optimizer.param_groups
        for group in self.groups:
            group["initial_lr"] = group["lr"]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_kept_scheduler_hides_no_other_one(tmp_path):
    """Nor does a name; those of every optimizer that is kept are looked for, late ones, too."""
    loop, other = Loop(), Loop()
    loop.optimizer = torch.optim.SGD([loop.model.weight], lr=0.1)
    head = torch.optim.SGD([loop.model.bias], lr=0.1)
    lr_scheduler.StepLR(other.optimizer, 1)
    warm, plan = lr_scheduler.LinearLR(loop.optimizer), lr_scheduler.CosineAnnealingLR(head, 9)
    also = {"schedule": head, "sched": warm}
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer, also=also)
    with capture_logs() as logs:
        manager.save(0)
        late = lr_scheduler.ReduceLROnPlateau(loop.optimizer)
        manager.save(1)
        manager.also = {**also, "cycle": Pair(plan, late)}
        manager.save(2)
    told = [f"a learning-rate scheduler ({n})" for n in ("CosineAnnealingLR", "ReduceLROnPlateau")]
    assert told_of(logs) == [told[:1], told]


def test_a_scheduler_of_somebody_else_is_known_by_its_traces(tmp_path):
    """It is kept if what is kept holds the groups of the optimizer."""
    loop = Loop()
    plan = OwnPlan(loop.optimizer)
    for also in ({}, {"plan": plan}):
        with capture_logs() as logs:
            given = (loop.model, loop.optimizer, None, 0)
            altcore.save_checkpoint(tmp_path / str(len(also)), *given, also=also)
        assert told_of(logs) == [["a learning-rate scheduler (initial_lr)"]] * (not also)


def test_hooks_that_come_late_are_told(tmp_path):
    """On a module, a parameter or the optimizer: a loop that goes on is without."""
    loop = Loop()
    loop.model.register_forward_hook(lambda *_: None)
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    loop.model.register_forward_pre_hook(lambda *_: None)
    loop.model.weight.register_hook(lambda grad: grad * 2)
    loop.optimizer.register_step_pre_hook(lambda *_: None)
    with capture_logs() as logs:
        manager.save(0)
    assert told_of(logs) == [["hooks of the model", "hooks of the optimizer", "hooks of weight"]]


def test_what_earlier_hooks_keep_is_told(tmp_path):
    """Unless it is kept with the rest, by itself or in what is."""
    loop = Loop()
    calls, kept, whole = [], AveragedModel(loop.model), Pair()
    whole.held = []
    loop.model.register_forward_hook(lambda *_: calls.append(1))
    loop.optimizer.register_step_post_hook(lambda *_: kept.update_parameters(loop.model))
    loop.optimizer.register_step_post_hook(lambda *_: whole.held.append(1))
    also = {"average": kept, "whole": whole}
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer, also=also)
    with capture_logs() as logs:
        loop.train()
        manager.save(1)
    where = f"{test_what_earlier_hooks_keep_is_told.__qualname__}.<locals>.<lambda>"
    assert told_of(logs) == [[f"calls of the hook {where} on the model"]]


def test_an_optimizer_that_was_replaced_is_told(tmp_path):
    """The one that the manager has keeps its moments, and moves nothing."""
    loop = Loop()
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    with capture_logs() as logs:
        loop.train()
        manager.save(1)
        manager.restore()
        manager.save(1)
        with torch.no_grad():
            loop.model.weight += 1
        manager.save(2)
        loop.optimizer = torch.optim.RMSprop(loop.model.parameters(), lr=0.1)
        loop.train()
        manager.save(3)
    assert told_of(logs) == [
        ["the optimizer that moves the weights: it is not the manager's"],
        [
            "the optimizer RMSprop of weight, bias: name it in also, or make a new manager if it "
            "took the place of the manager's"
        ],
    ]


@pytest.mark.parametrize("kept", ["nowhere", "in also", "by its own manager", "not in turn"])
def test_an_optimizer_of_another_model_that_steps_in_turn_is_told(tmp_path, kept):
    """As that of a discriminator; of two loops, each keeps its own."""
    loop, other = Loop(), Loop()
    also = {"D": other.model, "its optimizer": other.optimizer} if kept == "in also" else {}
    manager = CheckpointManager(tmp_path / "a", loop.model, loop.optimizer, also=also)
    if kept == "by its own manager":
        own = CheckpointManager(tmp_path / "b", other.model, other.optimizer)
    with capture_logs() as logs:
        for step in range(1, 5):
            loop.train()
            if kept != "not in turn" or step == 1:
                other.train()
            manager.save(step)
            if kept == "by its own manager":
                own.save(step)
    missed = "the optimizer AdamW of 2 parameters that no module of the loop has: name both in also"
    assert told_of(logs) == ([[missed]] if kept == "nowhere" else [])


class Pair:
    """Two optimizers as one, with a state of both."""

    def __init__(self, *both):
        self.both = both

    def state_dict(self):
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dict(self, state):
        for optimizer, own in zip(self.both, state, strict=True):
            optimizer.load_state_dict(own)


def test_a_second_optimizer_of_the_model_is_named_unless_it_is_kept(tmp_path):
    """By a manager and without one; not one of another model, or that is gone."""
    loop, other = Loop(), Loop()
    loop.optimizer = torch.optim.SGD([loop.model.weight], lr=0.1)
    head, gone = torch.optim.AdamW([loop.model.bias]), torch.optim.Adagrad([loop.model.bias])
    given = (loop.model, loop.optimizer)
    kept = {"a": {}, "b": {"head": head}, "c": {"pair": Pair(head)}}
    managers = [CheckpointManager(tmp_path / x, *given, also=kept[x]) for x in kept]
    gone.step()
    del gone
    with capture_logs() as logs:
        for step in (1, 2):
            loop.train()
            head.step()
            other.train()
            for manager in managers:
                manager.save(step)
        altcore.save_checkpoint(tmp_path / "d", *given, None, 1)
        altcore.save_checkpoint(tmp_path / "d", *given, None, 1, also=kept["c"])
    keep = "the optimizer AdamW of bias: name it in also"
    remake = ", or make a new manager if it took the place of the manager's"
    assert told_of(logs) == [[keep + remake], [keep]]


def test_a_manager_of_a_model_that_nobody_trains_says_so(tmp_path):
    """As one whose model was made again in a notebook, unless it is frozen. Gradients may come."""
    loop, frozen = Loop(), Loop()
    frozen.model.requires_grad_(requires_grad=False)
    stale = "neither the weights nor the gradients of the manager's model changed since"
    for made, told in ((loop, [[1, 2], [6, 7], [7, 8]]), (frozen, [])):
        manager = CheckpointManager(tmp_path / str(len(told)), made.model, made.optimizer)
        with capture_logs() as logs:
            for step in (1, 2, 3, 3):
                manager.save(step)
            if made is loop:
                made.train()
                for step in (4, 5, 6):
                    made.model(torch.ones(1, 3)).sum().backward()
                    manager.save(step)
                manager.save(7)
                manager.restore()
                manager.save(8)
        assert [x["steps"] for x in logs if x["event"].startswith(stale)] == told


@pytest.mark.parametrize("when", ["never", "before", "after"])
def test_a_compiled_model_is_the_one_within(when, tmp_path):
    """Quantized before it is compiled, or afterwards: its checkpoint is one of the plain model."""
    loop, again = Loop(), Loop()
    whole, q, q_again = loop.model, None, None
    if when == "before":
        q = altcore.quantize_model(whole, "E4M3", head=None)
    loop.model = torch.compile(whole, backend="eager")
    if when == "after":
        q = altcore.quantize_model(loop.model, "E4M3", head=None)
    if when != "never":
        q_again = altcore.quantize_model(again.model, "E4M3", head=None)
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer, q)
    with capture_logs() as logs:
        loop.train()
        manager.save(1)
    assert told_of(logs) == []
    assert altcore.load_checkpoint(tmp_path, again.model, again.optimizer, q_again) == 1
    assert torch.equal(again.train(), loop.train())


def test_modules_of_another_kind_are_named_when_the_weights_fit(tmp_path):
    """Whether it is trained or evaluated; what makes no difference is none."""

    def made(act, p):
        return nn.Sequential(nn.Linear(2, 2), act, nn.Dropout(p))

    model = made(nn.ReLU(), 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    altcore.save_checkpoint(tmp_path, model, optimizer, None, 1)
    with capture_logs() as logs:
        altcore.load_checkpoint(tmp_path, model, optimizer, None)
        altcore.load_checkpoint(tmp_path, made(nn.ReLU(inplace=True), 0.1), None, None)
        assert logs == []
        altcore.load_checkpoint(tmp_path, made(nn.GELU(), 0.5), None, None)
    told = "1 was ReLU(), and is GELU(approximate='none'), 2 was Dropout(p=0.1), and is "
    assert [x["modules"] for x in logs] == [f"{told}Dropout(p=0.5)"]


def test_the_best_checkpoint_is_looked_for_again_if_it_is_removed(tmp_path, monkeypatch):
    """As the loop of another process does when it has a better one."""
    loop = Loop()
    with CheckpointManager(tmp_path, loop.model, loop.optimizer, max_checkpoints=1) as manager:
        manager.save(1, value=2.0)
        read = altcore.checkpoints.read_checkpoint

        def read_too_late(path):
            monkeypatch.undo()
            loop.train()
            manager.save(2, value=1.0)
            return read(path)

        monkeypatch.setattr(altcore.checkpoints, "read_checkpoint", read_too_late)
        with capture_logs() as logs:
            assert manager.best().name == "step-00000002"
    assert logs == []


def test_a_closed_manager_watches_no_optimizer(tmp_path):
    """And so does one that is gone; its next save watches anew."""
    loop = Loop()
    hooks, before = _global_optimizer_post_hooks, {*_global_optimizer_post_hooks}
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    manager.close()
    assert hooks.keys() <= before
    loop.train()
    with capture_logs() as logs:
        manager.save(1)
    assert (len(hooks.keys() - before), told_of(logs)) == (1, [])
    del manager
    assert hooks.keys() <= before


# ------------------------------------------------------------------------- what else a loop keeps


class Planned(Loop):
    """Accumulates gradients over two steps, by the plan of a scheduler, and averages weights."""

    def __init__(self):
        super().__init__()
        plan = lr_scheduler.MultiStepLR(self.optimizer, [1, 2, 3], gamma=0.5)
        self.also = {"plan": plan, "average": AveragedModel(self.model)}

    def train(self, micro_steps):
        for micro in micro_steps:
            self.model(torch.ones(2, 3)).square().mean().backward()
            if micro % 2:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.also["plan"].step()
                self.also["average"].update_parameters(self.model)
        return [x.clone() for m in (self.model, self.also["average"]) for x in m.parameters()]


def test_a_loop_that_is_saved_between_two_steps_goes_on_as_it_was(tmp_path):
    """With its gradients so far, and with what was said to be kept."""
    whole, first, again = Planned(), Planned(), Planned()
    expected = whole.train(range(6))
    first.train(range(3))
    altcore.save_checkpoint(tmp_path, first.model, first.optimizer, None, 3, also=first.also)
    again.train(range(1))
    loaded = (tmp_path, again.model, again.optimizer, None)
    assert altcore.load_checkpoint(*loaded, also=again.also) == 3
    assert all(map(torch.equal, again.train(range(3, 6)), expected))
    assert again.also["plan"].last_epoch == 3
    first.optimizer.zero_grad()
    altcore.save_checkpoint(tmp_path, first.model, first.optimizer, None, 3, also=first.also)
    altcore.load_checkpoint(*loaded, also=again.also)
    assert again.model.weight.grad is None


class Tracked:
    """Keeps the best value so far, and what it was given."""

    def __init__(self):
        self.kept = {"best": torch.tensor(torch.inf), "past": [torch.zeros(1)]}

    def state_dict(self):
        return self.kept

    def load_state_dict(self, state):
        self.kept = state


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["average", "moment", "past"])
def test_what_else_a_loop_keeps_is_finite(part, number, tmp_path):
    """Weights and moments, as those of its model; other tensors may be infinite, but not NaN.

    The same holds with a manager and without.
    """
    loop, average, other, second = Loop(), AveragedModel(nn.Linear(1, 1)), Tracked(), Loop()
    average.register_buffer("mask", torch.zeros(1))
    second.train()
    also = {"average": average, "tracked": other}
    also |= {"model": second.model, "second": second.optimizer}
    given = (tmp_path / "b", loop.model, loop.optimizer, None)
    manager = CheckpointManager(tmp_path / "a", *given[1:], also=also)
    average.mask.fill_(-torch.inf)
    assert manager.save(1).name == "step-00000001"
    moments = next(iter(second.optimizer.state.values()))
    held, label = {
        "average": (average.module.weight.data, "module.weight of also.average"),
        "moment": (moments["exp_avg"], "exp_avg of also.second's parameter weight of also.model"),
        "past": (other.kept["past"][0], "past.0 of also.tracked"),
    }[part]
    held.fill_(number)
    if part == "past" and number == torch.inf:
        assert manager.save(2).name == "step-00000002"
        altcore.save_checkpoint(*given, 2, also=also)
        other.kept = {"best": torch.zeros(()), "past": [torch.zeros(1)]}
        assert altcore.load_checkpoint(*given, also=also) == manager.restore() == 2
        return
    with capture_logs() as logs:
        assert manager.save(2).name == "anomaly_00000002"
    assert logs[0]["first"] == label
    with pytest.raises(BadInput, match=f"{re.escape(label)} is not finite after step 2"):
        altcore.save_checkpoint(*given, 2, also=also)
    assert manager.restore() == 1
    assert manager.save(4).name == "step-00000004"


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("start", [0.0, torch.nan])
def test_a_buffer_that_no_state_dict_has_is_not_nan(start, dtype, tmp_path):
    """Unless it was before training."""
    loop = Loop()
    cache = torch.full((2,), start, dtype=dtype)
    loop.model.register_buffer("cache", cache, persistent=False)
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    assert manager.save(1).name == "step-00000001"
    cache[0] = torch.nan
    with capture_logs() as logs:
        saved = manager.save(2).name
    assert saved == ("anomaly_00000002" if start == 0 else "step-00000002")
    assert [log["first"] for log in logs if "first" in log] == ["buffer cache"] * (start == 0)


class Interrupted(torch.optim.SGD):
    """Calls something in the middle of its step."""

    then = bool

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)
            Interrupted.then()


@pytest.mark.parametrize("where", ["within", "after"])
def test_half_a_step_is_told(where, tmp_path, monkeypatch):
    """A handler of signals saves within a step, or somebody after an interrupted one."""
    loop = Loop(Interrupted)
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer)
    loop.train()
    with capture_logs() as logs:
        manager.save(1)
    assert not logs

    def interrupt():
        if where == "within":
            manager.save(2)
        raise KeyboardInterrupt

    with capture_logs() as logs:
        with monkeypatch.context() as patch:
            patch.setattr(Interrupted, "then", interrupt)
            with pytest.raises(KeyboardInterrupt):
                loop.train()
        if where == "after":
            manager.save(2)
    said = "saved within a step of Interrupted, or after one that"
    assert [said in log["event"] for log in logs].count(True) == 1
    with capture_logs() as logs:
        manager.restore()
        loop.train()
        manager.save(3)
    assert not any("within a step" in log["event"] for log in logs)


def test_what_is_nan_before_training_may_stay_so(tmp_path):
    """Only a manager that was made before knows of it."""
    loop, other = Loop(), Tracked()
    other.kept["best"].fill_(torch.nan)
    manager = CheckpointManager(tmp_path, loop.model, loop.optimizer, also={"tracked": other})
    assert manager.save(1).name == "step-00000001"
    with pytest.raises(BadInput, match=r"best of also\.tracked is not finite"):
        altcore.save_checkpoint(
            tmp_path / "b", *(loop.model, loop.optimizer, None, 1), also=manager.also
        )


def test_what_else_a_loop_keeps_has_to_fit(tmp_path):
    """Nothing is changed by one that does not; who evaluates takes what he needs."""
    loop, again = Planned(), Planned()
    loop.train(range(2))
    altcore.save_checkpoint(tmp_path, loop.model, loop.optimizer, None, 2, also=loop.also)
    with pytest.raises(BadInput, match=r"^also\.plan: 3 has no state_dict and load_state_dict$"):
        CheckpointManager(tmp_path, loop.model, loop.optimizer, also={"plan": 3})
    kept, average = again.also, again.also["average"]
    other = AveragedModel(nn.Linear(2, 2))
    for also, told in (
        ({"plan": kept["plan"]}, r"^also\.average: the checkpoint holds one, and none is given"),
        ({**kept, "more": average}, r"^also\.more: the checkpoint holds none$"),
        ({**kept, "plan": average}, r"^also\.plan: the checkpoint is of MultiStepLR, and it is Av"),
        ({**kept, "average": other}, r"^also\.average: .*does not fit.* of module\.weight is"),
    ):
        with pytest.raises(BadInput, match=told):
            altcore.load_checkpoint(tmp_path, again.model, again.optimizer, None, also=also)
    assert (kept["plan"].last_epoch, average.n_averaged.item()) == (0, 0)
    altcore.load_checkpoint(tmp_path, again.model, None, None, also={"average": average})
    assert (kept["plan"].last_epoch, average.n_averaged.item()) == (0, 1)


def quantized(weight):
    """A linear layer whose weights are stored, with stochastic rounding; and its optimizer."""
    model = nn.Linear(4, 4)
    model.weight.data.fill_(weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    recipe = {"stored_weight": {"format": "E4M3", "rounding": "stochastic"}}
    return model, optimizer, altcore.quantize_model(model, recipe, optimizer=optimizer)


def play(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.linspace(0, 1, 4) + step).square().mean().backward()
        optimizer.step()
    return model.weight.detach().clone()


def test_a_second_quantized_model_is_kept_with_its_q(tmp_path):
    """As a discriminator: its grids and random bits go on; without its q it is refused."""
    (one, step_one, q), (other, step_other, q_other) = quantized(0.3), quantized(0.7)
    also = {"other": other, "optimizer": step_other, "q": q_other}
    play(other, step_other, 3)
    altcore.save_checkpoint(tmp_path, one, step_one, q, 3, also=also)
    wanted = play(other, step_other, 3)
    (one, step_one, q), (other, step_other, q_other) = quantized(0.3), quantized(0.7)
    also = {"other": other, "optimizer": step_other, "q": q_other}
    altcore.load_checkpoint(tmp_path, one, step_one, q, also=also)
    assert torch.equal(play(other, step_other, 3), wanted)
    with pytest.raises(BadInput, match=r"^also\.other: the model is quantized.*add the q"):
        altcore.save_checkpoint(tmp_path, one, step_one, q, 3, also={"other": other})
    q_other.remove()
    with pytest.raises(BadInput, match=r"^also\.q: it was removed from its model"):
        altcore.save_checkpoint(tmp_path, one, step_one, q, 3, also={"q": q_other})


def test_a_module_that_was_added_to_a_quantized_model_is_named(tmp_path):
    """And not the key that is missing in its state."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    q = altcore.quantize_model(model, "E4M3", optimizer=optimizer, head=None)
    with CheckpointManager(tmp_path, model, optimizer, q) as manager:
        model.add_module("late", nn.Linear(4, 4))
        optimizer.add_param_group({"params": list(model.late.parameters())})
        play(model[0], optimizer, 1)
        with pytest.raises(BadInput, match=r"^model: .*were added since it was built \(late\.bias"):
            manager.save(1)


def test_random_bits_go_on_in_the_middle_of_a_step(tmp_path):
    """Gradients are accumulated across the save; the second batch draws bits of its own."""

    def built():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        recipe = {"activation": {"format": "E4M3", "rounding": "stochastic"}}
        q = altcore.quantize_model(model, recipe, optimizer=optimizer, head=None)
        return model, optimizer, q

    def accumulate(model):
        model(torch.linspace(-1, 1, 8)).square().sum().backward()

    model, optimizer, q = built()
    accumulate(model)
    altcore.save_checkpoint(tmp_path, model, optimizer, q, 1)
    accumulate(model)
    again, optimizer, q = built()
    altcore.load_checkpoint(tmp_path, again, optimizer, q)
    accumulate(again)
    assert torch.equal(again[0].weight.grad, model[0].weight.grad)
