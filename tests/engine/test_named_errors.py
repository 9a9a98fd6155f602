"""Errors of other people's code say whose it is: workloads, optimizers, hooks, what they leave."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from attrs import define, field
from helpers import checkpoints, events, weights_sha256
from torch import nn

from altcore import BadInput, DeferredErrors, hookimpl
from altcore.errors import PluginError
from altcore.runs import summary_of


class Built:
    """What a workload builds; each of ``broken`` fails."""

    item, items_per_batch = "rows", 4

    def __init__(self, broken=None):
        self.broken = broken
        self.model = nn.Linear(3, 1)

    def fails(self, where):
        if self.broken == where:
            raise ValueError(f"no {where}")

    @property
    def facts(self):
        self.fails("facts")
        return {}

    def batch(self, split, step, micro):
        self.fails("batch")
        return torch.ones(4, 3)

    def loss(self, model, batch):
        self.fails("loss")
        if self.broken == "shape":
            return model(batch)
        found = model(batch).square().mean()
        return found.detach() if self.broken == "graph" else found

    @property
    def steps_per_epoch(self):
        self.fails("steps_per_epoch")
        return None


def workload(made):
    """Settings that build what ``made()`` returns."""

    @define(eq=False)
    class Rows:
        def build(self, seed, device):
            return made()

    return Rows


def failing(error=None):
    if error:
        raise error
    return Built()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: failing(ValueError("no build")), "failed in build: ValueError: no build"),
        (lambda: failing(SystemExit(0)), "failed in build: SystemExit: 0"),
        (lambda: None, "model"),
        (lambda: Built("facts"), "failed in facts: ValueError: no facts"),
        (lambda: Built("batch"), r"failed in batch.*: ValueError: no batch"),
        (lambda: Built("loss"), "failed in .*loss.*: ValueError: no loss"),
        (lambda: Built("shape"), r"loss returned Tensor of shape \(4, 1\)"),
        (lambda: Built("graph"), "depends on no parameter that is trained"),
    ],
)
def test_a_workload_is_named(shelf, start, made, says):
    """Whatever of it fails, and nothing else is blamed."""
    shelf.install("workload", "rows", workload(made), "acme-rows", "1.5")
    with pytest.raises(PluginError, match=rf"workload rows \(acme-rows 1.5\).*{says}"):
        start(workload="rows", format="none")


def test_a_model_whose_state_no_checkpoint_holds_is_found_before_the_run(shelf, start):
    """A lost run is not found out about when it is to go on."""

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {1, 2}

        def set_extra_state(self, state):
            pass

    def made():
        built = Built()
        built.model = Extra(3, 1)
        return built

    shelf.install("workload", "rows", workload(made))
    with pytest.raises(
        PluginError, match=r"workload rows .*no checkpoint can hold its state: model"
    ):
        start(workload="rows", name="r")
    assert not (start.runs / "r").exists()


class Broken(torch.autograd.Function):
    """An identity that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no gradient")


def test_a_workload_whose_own_backward_fails_is_named(shelf, start):
    """In a step: the loss is there, and a function of its model raises in autograd."""

    class OwnLoss(Built):
        def loss(self, model, batch):
            return Broken.apply(model(batch)).square().mean()

    shelf.install("workload", "rows", workload(OwnLoss), "acme-rows", "1.5")
    says = r"workload rows \(acme-rows 1.5\) failed in the backward pass: ValueError: no gradient"
    with pytest.raises(PluginError, match=says):
        start(workload="rows", format="none", name="r")
    (end,) = events(start.runs / "r", "end")
    assert "workload rows" in end["error"]


def optimizer(step=lambda own: None, build=None):
    """Settings of an optimizer whose ``step`` is given."""

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            step(self)

    @define(eq=False)
    class Settings:
        def build(self, named_parameters, grid_of):
            if build:
                raise build
            return Own([p for _, p in named_parameters], 0.1)

    return Settings


def no_step(own):
    raise ValueError("no step")


def no_checkpoint(own):
    own.state[own.param_groups[0]["params"][0]]["seen"] = {1, 2}


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (optimizer(build=ValueError("no build")), "failed in build: ValueError: no build"),
        (optimizer(no_step), "failed in step: ValueError: no step"),
        (optimizer(no_checkpoint), r"no checkpoint can hold its state: optimizer.*'seen'.* is set"),
    ],
)
def test_an_optimizer_is_named(shelf, start, cls, says):
    """A state that could not be read back ends the run at its first step, and nothing is saved."""
    shelf.install("optimizer", "own", cls, "acme-own", "1.5")
    with pytest.raises(PluginError, match=rf"optimizer own \(acme-own 1.5\).*{says}"):
        start(optimizer="own", name="r", max_steps=5)
    if (start.runs / "r").exists():
        assert checkpoints(start.runs / "r") == ["step-00000000"]
        assert events(start.runs / "r", "end")[0]["step"] == 1


def test_an_optimizer_that_cannot_go_on_is_named(shelf, start, monkeypatch):
    """Its own load_state_dict, in a resumed run."""
    start(name="r")

    def fail(self, state):
        raise KeyError("gone")

    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", fail)
    with pytest.raises(
        PluginError, match=r"optimizer adamw .* failed in load_state_dict: KeyError"
    ):
        start.resume("r", max_steps=5)


# ---------------------------------------------------------------------------------- hooks


def one_hook(name, body):
    """A plugin with one hook that takes the step."""

    @define(eq=False)
    class One:
        pass

    def hook(self, step):
        return body(step)

    hook.__name__ = name
    setattr(One, name, hookimpl(hook))
    return One


def set_loss(value):
    def body(step):
        step.loss = value

    return body


def set_scale(value):
    def body(step):
        step.loss_scale = value

    return body


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (set_scale(0), "step.loss_scale to 0, not a positive number"),
        (set_scale(-1.0), "step.loss_scale to -1.0"),
        (set_scale(float("nan")), "step.loss_scale to nan"),
        (set_scale(float("inf")), "step.loss_scale to inf"),
        (set_scale(torch.ones(2)), "step.loss_scale to tensor"),
        (set_loss(1.0), "step.loss to float"),
        (set_loss(None), "step.loss to NoneType"),
        (set_loss(torch.tensor(1.0)), "step.loss to a tensor without a gradient"),
        (set_loss(torch.tensor(1j)), "step.loss to a tensor of torch.complex64"),
    ],
)
def test_a_loss_that_cannot_be_used_names_who_set_it(shelf, start, body, says):
    """Not the backward pass that stumbles over it."""
    shelf.install("intervention", "setter", one_hook("pre_backward", body))
    with pytest.raises(
        PluginError, match=f"intervention setter .* failed in pre_backward: .*{says}"
    ):
        start(["setter"])


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_loss_scale_on_the_device_that_cannot_be_used_names_who_set_it(shelf, start, value):
    """It is read with all else of the step, whose gradients are of no use."""
    shelf.install(
        "intervention", "setter", one_hook("pre_backward", set_scale(torch.tensor(value)))
    )
    says = rf"intervention setter \(acme-setter .*\) set step.loss_scale to {value}, not a positive"
    with pytest.raises(PluginError, match=says):
        start(["setter"])


def test_a_loss_scale_that_is_too_large_is_named_by_the_steps_that_it_spoils(shelf, start):
    """float32 does not hold it, though it is a number."""
    shelf.install("intervention", "setter", one_hook("pre_backward", set_scale(1e300)))
    run = start(["setter"], max_steps=1)
    (nan,) = events(run.run_directory, "nan")
    assert nan["loss_scale"] == 1e300
    assert nan["scaled_by"].startswith("intervention setter (acme-setter ")


class Mute(Exception):
    """An exception that cannot be written."""

    def __str__(self):
        raise ValueError("no text")


def raise_mute(*_):
    raise Mute


@pytest.mark.parametrize("kind", ["diagnostic", "intervention"])
@pytest.mark.parametrize("hook", ["post_step", "is_due"])
def test_an_error_without_a_text_is_its_plugins(shelf, start, kind, hook):
    """Its name is told, and what is wrong with the error itself."""
    shelf.install(kind, "mute", one_hook(hook, raise_mute))
    says = rf"{kind} mute \(acme-mute .*\) failed in {hook}: Mute: its __str__ raises ValueError"
    if kind == "intervention":
        with pytest.raises(PluginError, match=says):
            start(["mute"])
    else:
        (told,) = events(start(["mute"]).run_directory, "degraded")
        assert re.match(says, told["message"])


def test_an_error_without_a_text_names_workload_and_optimizer(shelf, start):
    """In the summary of the run, too."""
    shelf.install("optimizer", "mute", optimizer(raise_mute))
    with pytest.raises(PluginError, match=r"optimizer mute .* failed in step: Mute: its __str__"):
        start(optimizer="mute", name="r")
    assert "Mute: its __str__" in summary_of(start.runs / "r")["error"]

    class MuteLoss(Built):
        loss = raise_mute

    shelf.install("workload", "rows", workload(MuteLoss))
    with pytest.raises(
        PluginError, match=r"workload rows .* failed in .*loss.*: Mute: its __str__"
    ):
        start(workload="rows", format="none", name="w")


@pytest.mark.parametrize("body", [set_scale(2.0), set_loss(torch.zeros(()))])
def test_the_loss_is_not_a_diagnostics_to_change(shelf, start, body):
    """It is put back, and the run goes on without the plugin."""
    shelf.install("diagnostic", "setter", one_hook("pre_backward", body))
    run = start(["setter"], name="a")
    assert run.summary["degraded"] == ["setter"]
    assert weights_sha256(run.run_directory) == weights_sha256(start(name="b").run_directory)


@pytest.mark.parametrize("hook", ["is_due", "pre_step", "post_step"])
def test_a_plugin_that_leaves_is_named(shelf, start, hook):
    """It would end the run with exit code 0 and no word."""

    def leave(step):
        raise SystemExit(0)

    shelf.install("intervention", "leaves", one_hook(hook, leave))
    with pytest.raises(
        PluginError, match=f"intervention leaves .* failed in {hook}: SystemExit: 0"
    ):
        start(["leaves"])


def test_numbers_of_numpys_are_measures(shelf, start):
    """And its truth is whether a plugin is due."""
    shelf.install("diagnostic", "due", one_hook("is_due", lambda step: np.bool_(step.index == 2)))
    values = {"a": np.float32(0.5), "b": np.int64(3)}
    shelf.install("diagnostic", "measures", one_hook("post_step", lambda step: values))
    run = start(["due", "measures"], log_interval=1)
    assert run.summary["degraded"] == []
    assert [(x["measures/a"], x["measures/b"]) for x in run.diagnostics_history] == [(0.5, 3)] * 3


# ------------------------------------------------------------------- errors that come late


def late(guarded):
    """A diagnostic whose hook on a tensor fails in backward, when its context is left already."""

    @define(eq=False)
    class Late:
        @hookimpl
        @contextmanager
        def watch_forward(self, run):
            with DeferredErrors() as errors:
                look = errors.guard(self.look) if guarded else self.look

                def leave(module, given, output):
                    first_tensor(output).register_hook(look)

                handle = run.model.register_forward_hook(leave)
                yield
                handle.remove()

        def look(self, gradient):
            raise ValueError("too late")

    return Late


def first_tensor(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def test_a_deferred_error_of_the_backward_pass_is_not_lost(shelf, start):
    """The plugin is disabled and the run degraded; under strict it ends."""
    shelf.install("diagnostic", "late", late(guarded=True))
    run = start(["late"])
    assert run.status == "finished"
    assert run.summary["degraded"] == ["late"]
    (told,) = events(run.run_directory, "degraded")
    assert told["step"] == 1
    assert "a function that it left in the model: ValueError: too late" in told["message"]
    with pytest.raises(PluginError, match=r"diagnostic late .*ValueError: too late"):
        start(["late"], strict=True)


def test_an_error_of_the_backward_pass_names_who_left_the_hook(shelf, start):
    """Though nothing of the plugin watches any more."""
    shelf.install("diagnostic", "late", late(guarded=False))
    message = r"diagnostic late \(acme-late .*\) failed in the backward pass: ValueError: too late"
    with pytest.raises(PluginError, match=message):
        start(["late"])


def test_outside_a_run_a_late_error_is_raised():
    """There is nobody to be told."""
    look = DeferredErrors().guard(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        look()


# ---------------------------------------------------------------- what would leak or be lost


def test_half_a_state_is_refused(shelf, start):
    """One that is saved and never restored, and the reverse."""
    for name, other in (("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")):
        cls = define(eq=False)(type("Half", (), {name: lambda self, *state: {}}))
        shelf.install("diagnostic", f"has-{name}", cls)
        with pytest.raises(BadInput, match=f"it has {name} but no {other}"):
            start([f"has-{name}"])


@pytest.mark.parametrize("value", [[], {}, set()])
def test_state_that_runs_would_share_is_refused(shelf, start, value):
    """A default that can change is one object for all instances of a class."""

    @define(eq=False)
    class Keeps:
        kept: object = field(init=False, default=value)

    shelf.install("diagnostic", "keeps", Keeps)
    kind = type(value).__name__
    with pytest.raises(BadInput, match=f"the default of kept is one {kind} .*factory={kind}"):
        start(["keeps"])
