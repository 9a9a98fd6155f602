"""Hooks and modes of the process: altcore's own are left alone, and those of others are told."""

from contextlib import contextmanager

import pytest
import torch
from helpers import events
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from altcore.engine import OwnLoop, StepWatch
from altcore.engine.global_hooks import GlobalHooks, about_global_hooks


def remarks(run):
    return [e["message"] for e in events(run.run_directory, "warning")]


def test_altcores_own_hooks_of_all_optimizers_may_come_and_go():
    """A manager of a loop has one, which is collected with it."""
    held = optimizers._global_optimizer_post_hooks
    model = torch.nn.Linear(1, 1)
    loop = OwnLoop.of(model, torch.optim.SGD(model.parameters()), None, None, None)
    old = StepWatch(loop)
    mine, hooks = optimizers.register_optimizer_step_post_hook(halve), GlobalHooks("", held)
    old.close()
    new = StepWatch(loop)
    assert not hooks.is_changed()
    optimizers.register_optimizer_step_post_hook(halve)
    mine.remove()
    assert hooks.is_changed()
    assert hooks.put_back()
    assert [key for key, hook in held.items() if hook is halve] == [mine.id]
    assert new._steps in held.values()
    mine.remove()
    new.close()


@contextmanager
def registered(register, hook):
    """A hook of all modules or optimizers."""
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


def halve(optimizer, *_):
    """Change the rate of every optimizer."""


def keep(tensor):
    """Change nothing that backward needs."""
    return tensor


class Counting(TorchFunctionMode):
    """Sees every function."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Watching(TorchDispatchMode):
    """Sees every operation."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


AMBIENT = {
    "forward hooks of all modules (halve)": lambda: registered(
        modules.register_module_forward_hook, halve
    ),
    "backward pre hooks of all modules (halve)": lambda: registered(
        modules.register_module_full_backward_pre_hook, halve
    ),
    "pre hooks of all optimizers (halve)": lambda: registered(
        optimizers.register_optimizer_step_pre_hook, halve
    ),
    "hooks of saved tensors (keep)": lambda: torch.autograd.graph.saved_tensors_hooks(keep, keep),
    "function modes (Counting)": Counting,
    "dispatch modes (Watching)": Watching,
}


@pytest.mark.parametrize("name", AMBIENT)
def test_hooks_and_modes_of_the_process_are_told(name):
    """By name."""
    with AMBIENT[name]():
        (told,) = about_global_hooks()
    assert f"no part of the run: {name}: a process" in told
    assert about_global_hooks() == []


def test_what_torch_brings_is_not_told():
    """A default device is a mode, and a flag; saving tensors elsewhere changes none."""
    with torch.device("cpu"), torch.autograd.graph.save_on_cpu():
        assert about_global_hooks() == []


def test_a_run_is_told_of_them_when_it_begins_and_when_it_goes_on(start):
    """The record has each once; a process without them is told nothing."""
    with Counting():
        (told,) = remarks(start(name="within", max_steps=1))
    assert "function modes (Counting)" in told
    assert remarks(start(name="r", max_steps=1)) == []
    with Counting():
        assert told in remarks(start.resume("r", max_steps=2))
