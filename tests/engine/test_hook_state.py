"""What hooks keep in variables is named, and what only looks like it is not."""

import functools
import io
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from altcore.engine.as_built import AsBuilt
from altcore.engine.labels import MODEL, OPTIMIZER


def counter(model, optimizer):
    count = [0]

    def hook(module, args, output):
        count[0] += 1
        return output * (1 + count[0])

    model[0].register_forward_hook(hook)


def number(model, optimizer):
    n = 0

    def hook(*_):
        nonlocal n
        n += 1

    model[0].register_forward_hook(hook)


def gradient_average(model, optimizer):
    mean = {}

    def hook(p):
        mean[p] = mean.get(p, 0) + p.grad

    model[0].weight.register_post_accumulate_grad_hook(hook)


def lookahead(model, optimizer):
    slow = [p.detach().clone() for p in model.parameters()]

    def hook(*_):
        for p, kept in zip(model.parameters(), slow, strict=True):
            kept.lerp_(p.detach(), 0.5)

    optimizer.register_step_post_hook(hook)


def average(model, optimizer):
    kept = AveragedModel(model)
    optimizer.register_step_post_hook(lambda *_: kept.update_parameters(model))
    return kept


def generator(model, optimizer):
    drawn = torch.Generator()
    model[0].register_forward_hook(
        torch.no_grad()(lambda *_: torch.rand(1, generator=drawn) and None)
    )


class Trainer:
    """Holds a whole loop, with hooks as methods."""

    steps = 0
    not_state = ("last",)

    def __init__(self, model, optimizer):
        self.model, self.step, self.seen, self.last = model, 0, {}, None
        optimizer.register_step_post_hook(self.after_step)
        for module in model:
            module.register_forward_hook(self.look)

    def look(self, module, args, output):
        if self.step >= 0:
            self.note(output)

    def note(self, output):
        self.last = output.detach()
        self.seen[len(self.seen)] = 1

    def after_step(self, *_):
        type(self).steps += 1


class Counts:
    """Counts its calls, in a slot."""

    __slots__ = ("calls",)

    def __init__(self, model, optimizer):
        self.calls = 0
        model[0].register_forward_hook(self)

    def __call__(self, *_):
        self.calls += 1


GLOBAL = {"n": 0}


def note_globally(*_):
    GLOBAL["n"] += 1


def helped(model, optimizer):
    model[0].register_forward_hook(lambda *_: note_globally())


STATE = {
    counter: ["count of the hook counter.<locals>.hook on module 0"],
    number: ["n of the hook number.<locals>.hook on module 0"],
    gradient_average: ["mean of the hook gradient_average.<locals>.hook on 0.weight"],
    lookahead: ["slow of the hook lookahead.<locals>.hook on the optimizer"],
    average: ["kept of the hook average.<locals>.<lambda> on the optimizer"],
    generator: ["drawn of the hook generator.<locals>.<lambda> on module 0"],
    Trainer: [
        "seen of the hook Trainer.look on module 0",
        "steps of the hook Trainer.after_step on the optimizer",
    ],
    Counts: ["calls of the hook Counts on module 0"],
    helped: ["GLOBAL of the hook helped.<locals>.<lambda> on module 0"],
}


def trained(make, steps=2, keep=lambda made: ()):
    """Return what was built, after steps with the hooks that ``make`` registers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model.parameters())
    made = make(model, optimizer)
    built = AsBuilt({MODEL: model}, {OPTIMIZER: optimizer}, keep(made))
    for _ in range(steps):
        model(torch.randn(3, 4)).square().mean().backward()
        optimizer.step()
    return built


@pytest.mark.parametrize("make", STATE, ids=lambda make: make.__name__)
def test_state_in_variables_of_a_hook_is_named(make):
    """Once, on the first place of the hook."""
    assert trained(make, steps=0).hooks.changed() == []
    assert sorted(trained(make).hooks.changed()) == STATE[make]


def step_of_the_loop(model, optimizer):
    step, log, file = 0, logging.getLogger("x"), io.TextIOWrapper(io.FileIO("/dev/null", "w"))

    def hook(*_):
        if step == 0:
            log.info("seen")
            file.write("seen")

    optimizer.register_step_pre_hook(hook)
    step = 1


def cache(model, optimizer):
    feature_cache, said = {}, {}

    def hook(module, args, output):
        feature_cache[len(feature_cache)] = said[len(said)] = output

    hook.not_state = ("said",)
    model[0].register_forward_hook(hook)


def said_by_the_model(model, optimizer):
    counter(model, optimizer)
    model.not_state = ("count",)


def of_torch(model, optimizer):
    parametrizations.weight_norm(model[0])
    prune.random_unstructured(model[2], "weight", 0.3)


def watched(model, optimizer):
    """As wandb.watch does."""
    scope = {"__name__": "wandb.integration.torch"}
    exec("def watch(track):\n    return lambda grad: track.append(1)", scope)
    model[0].weight.register_hook(scope["watch"]([]))


def gone(model, optimizer):
    count = []
    handle = model[0].register_forward_hook(lambda *_: count.append(handle.remove()))


def no_hook(model, optimizer):
    model[0].register_forward_hook(functools.partial(lambda scale, *_: None, 2.0))


HEALTHY = (step_of_the_loop, cache, said_by_the_model, of_torch, watched, gone, no_hook)


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_hooks_without_state_are_not_named(make):
    """Nor what a loop or a library keeps, what is said to be none, and hooks that are gone."""
    assert trained(make).hooks.changed() == []


def test_what_a_checkpoint_has_is_no_state_of_a_hook():
    """An average that ``also`` names."""
    assert trained(average, keep=lambda made: [made]).hooks.changed() == []
