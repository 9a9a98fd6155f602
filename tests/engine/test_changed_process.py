"""Errors that may follow of what somebody changed in the process."""

import sys

import pytest
import torch
from attrs import define
from torch import nn

from altcore import hookimpl
from altcore.engine.changed_process import changes_named
from altcore.errors import AltcoreError, PluginError


def replace_forward(monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x.detach())


@define(eq=False)
class Replacing:
    """Replaces a function of torch, after the hook was looked at once."""

    @hookimpl
    def post_step(self, run, step):
        if step.index == 2:
            replace_forward(PATCHES[0])


PATCHES = []


def test_a_workload_is_not_blamed_alone_for_what_an_observer_replaced(start, shelf, monkeypatch):
    """It fails in the workload's loss, one step later."""
    monkeypatch.setattr(f"{__name__}.PATCHES", [monkeypatch])
    shelf.install("diagnostic", "replacing", Replacing)
    told = r"^workload gpt .* something changed forward of Linear: it may be the cause\)$"
    with pytest.raises(PluginError, match=told):
        start(["replacing"], max_steps=4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (replace_forward, "forward of Linear"),
        (lambda m: m.setattr(torch, "relu", torch.abs), "relu of torch"),
        (lambda m: m.chdir("/"), "the working directory"),
    ],
)
def test_an_error_names_what_was_changed(change, told, monkeypatch):
    with pytest.raises(PluginError, match=rf"^it broke \(since .* changed {told}: it may be"):
        break_after(lambda: change(monkeypatch))


def break_after(change, model=None):
    """Raise an error after a change."""
    with changes_named(model or nn.Sequential(nn.Linear(2, 2))):
        change()
        raise PluginError("it broke")


def test_an_error_stays_as_it_is_if_nothing_was_changed():
    """So do those that say what is wrong themselves."""
    for error in (PluginError("it broke"), AltcoreError("it ended"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, changes_named(nn.Linear(2, 2)):
            raise error
        assert caught.value is error


def test_the_compilers_recursion_limit_is_nobodys_doing(monkeypatch):
    """Torch's raises it, whoever's call it was that had something compiled."""
    limit = sys.getrecursionlimit()
    monkeypatch.setitem(sys.modules, "torch._inductor.compile_fx", sys)
    try:
        sys.setrecursionlimit(1000)
        with pytest.raises(PluginError) as caught:
            break_after(lambda: sys.setrecursionlimit(2000))
    finally:
        sys.setrecursionlimit(limit)
    assert "recursion" not in str(caught.value)


def test_a_lower_recursion_limit_is_named():
    """The error itself says only that a recursion was too deep."""
    limit = sys.getrecursionlimit()
    try:
        with pytest.raises(PluginError, match="changed the recursion limit"):
            break_after(lambda: sys.setrecursionlimit(limit - 1))
    finally:
        sys.setrecursionlimit(limit)


def test_a_model_that_was_cast_is_named():
    """The loss that then fails is not to blame."""
    model = nn.Linear(2, 2)
    with pytest.raises(PluginError, match="changed types of the model's parameters: it may be"):
        break_after(model.half, model)
