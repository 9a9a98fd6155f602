"""Interventions that change what the record does not show are named."""

import pytest
import torch
from attrs import define
from helpers import events
from structlog.testing import capture_logs

from altcore import hookimpl

KEYS = {"max_steps": 3, "eval_interval": 1, "log_interval": 1}


def told(start, shelf, **hooks):
    """Train with an intervention; returns what the run and the user are told of it."""
    cls = type("Sly", (), {name: hookimpl(hook) for name, hook in hooks.items()})
    shelf.install("intervention", "sly", define(eq=False)(cls))
    with capture_logs() as logs:
        run = start(["sly"], name="r", **KEYS)
    found = [
        e["message"] for e in events(run.run_directory, "warning") if e.get("cause") == "plugin"
    ]
    assert [x["event"] for x in logs if "sly" in x["event"]] == found
    return found


def multiply(self, run, step):
    for group in run.optimizer.param_groups:
        group["lr"] *= 20


def set_a_tensor(self, run, step):
    for group in run.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])


def clip(self, run, step):
    for parameter in run.model.parameters():
        parameter.grad.clamp_(-1, 1)


@pytest.mark.parametrize("change", [multiply, set_a_tensor])
def test_a_rate_that_is_not_the_recorded_one_is_told_once(start, shelf, change):
    (found,) = told(start, shelf, pre_step=change)
    assert found.startswith("intervention sly (acme-sly 1.2.3) changed lr of the optimizer's")


def test_the_rates_of_a_plugin_that_leaves_them_are_not_told(start, shelf):
    """After the optimizer's step they are the engine's to set again."""
    assert told(start, shelf, pre_step=clip, post_step=multiply) == []


@torch.no_grad()
def scale(run):
    for parameter in run.model.parameters():
        parameter.mul_(1.05)


def replace(run):
    """Give each weight another memory, of which torch counts no version."""
    for parameter in run.model.parameters():
        parameter.data = parameter.data * 1.05


@pytest.mark.parametrize(
    ("hook", "change"),
    [
        ("run_start", lambda self, run: scale(run)),
        ("on_eval", lambda self, run, step: scale(run)),
        ("post_step", lambda self, run, step: scale(run)),
        ("post_step", lambda self, run, step: replace(run)),
        ("on_record", lambda self, run, step: scale(run)),
    ],
)
def test_weights_that_change_where_none_may_are_told_once(start, shelf, hook, change):
    """A checkpoint would hold other weights than those whose validation loss it has."""
    change.__name__ = hook
    (found,) = told(start, shelf, **{hook: change})
    assert found.startswith("intervention sly (acme-sly 1.2.3) changed ")
    assert f" in {hook}, where no plugin may change weights" in found
