"""Snapshots that a run which goes on keeps, writes anew, or must not go back to as they are."""

import shutil
from typing import ClassVar

import pytest
from attrs import define
from helpers import checkpoints, events

import altcore
from altcore import Rollback, hookimpl
from altcore.engine import resuming
from altcore.runs.checkpoint import load_checkpoint

KEYS = {"snapshot_interval": 2, "checkpoint_interval": 2, "min_lr_ratio": 1.0}
DECAY = []
"""Of each step."""


@define(eq=False)
class Back:
    """Goes back once, behind the checkpoint from which the run went on."""

    needs: ClassVar[tuple[str, ...]] = ("snapshots",)

    @hookimpl
    def pre_step(self, run, step):
        DECAY.append(run.optimizer.param_groups[0]["weight_decay"])
        return Rollback(steps=4, reason="test") if step.index == 6 and len(DECAY) == 6 else None


@pytest.fixture
def name(shelf):
    DECAY.clear()
    return shelf.install("intervention", "back", Back)


def go_on(start, allow=(), **keys):
    config = resuming.resumed("r", str(start.runs), **keys)
    return altcore.train(config, resume="r", allow_change=list(allow))


def test_a_removed_checkpoint_costs_no_other_one(start, name, shelf):
    """The snapshots that are then written anew replace none that others refer to."""
    folder = start.runs / "r" / "checkpoints"

    @define(eq=False)
    class Removes:
        @hookimpl
        def pre_step(self, step):
            if step.index == 9:
                shutil.rmtree(folder / "step-00000004")

    names = [name, shelf.install("intervention", "removes", Removes)]
    start(names, name="r", max_steps=8, max_checkpoints=5, **KEYS)
    go_on(start, max_steps=12)
    kept = [made for made in checkpoints(start.runs / "r") if made.startswith("step")]
    assert len(kept) > 2
    for made in kept:
        load_checkpoint(folder / made)


def test_a_run_with_another_optimizer_goes_on_more_than_once(start, name):
    start([name], name="r", max_steps=4, **KEYS)
    go_on(start, ["optimizer"], optimizer="lion", max_steps=5)
    assert go_on(start, max_steps=6).steps_completed == 6


@pytest.mark.parametrize("between", [(), (5,)], ids=["at once", "in the run after next"])
def test_a_rollback_keeps_a_setting_that_was_allowed_to_change(start, name, between):
    start([name], name="r", max_steps=4, adamw__weight_decay=0.0, **KEYS)
    allowed = {"allow": ["adamw.weight_decay"], "adamw.weight_decay": 0.5}
    for steps in (*between, 7):
        go_on(start, max_steps=steps, **allowed)
        allowed = {}
    assert len(events(start.runs / "r", "rollback")) == 1
    assert DECAY == [0.0] * 4 + [0.5] * 3
