"""A NaN or infinity, wherever it arises, is found in its step and before the optimizer."""

import itertools

import pytest
import torch
from attrs import define
from helpers import checkpoints, events, sha256, state
from helpers_faults import numbered
from helpers_plugins import make

from altcore import hookimpl


def first_matrix(run):
    """A weight that the model uses in every step."""
    return run.model.get_parameter("transformer.h.0.mlp.c_fc.weight")


SEEN = []
"""Digests of the weights: before the step that is spoiled, and after it."""


@define(eq=False)
class Spoil:
    """Puts a value into a place at a step, and notes the weights around the optimizer."""

    where: str = "loss"
    at: int = 1
    value: str = "nan"

    @hookimpl
    def run_start(self, run):
        def spoil(tensor):
            if run.step == self.at and run.model.training:
                tensor = tensor.clone()
                tensor.view(-1)[0] = float(self.value)
            return tensor

        layer = run.model.get_submodule("transformer.h.0.mlp.c_fc")
        if self.where == "quantizer":
            layer.register_forward_pre_hook(lambda _, inputs: (spoil(inputs[0]),))
        if self.where == "raw gradient":
            first_matrix(run).register_hook(spoil)

    @hookimpl
    def pre_backward(self, run, step):
        weights = sha256(run.model.state_dict())
        if step.index == self.at:
            SEEN.append(weights)
            if self.where == "loss":
                step.loss = step.loss * float(self.value)
        if step.index == self.at + 1:
            SEEN.append(weights)

    @hookimpl
    def pre_step(self, run, step):
        if step.index == self.at and self.where == "gradient":
            first_matrix(run).grad[0, 0] = float(self.value)

    @hookimpl
    def post_step(self, run, step):
        if step.index == self.at and self.where == "weight":
            with torch.no_grad():
                first_matrix(run)[0, 0] = float(self.value)

    @hookimpl
    def run_end(self, run):
        SEEN.append(sha256(run.model.state_dict()))


PLACES = ("loss", "raw gradient", "gradient", "quantizer", "weight")
VALUES = ("nan", "inf", "-inf")
STEPS = (2, 4, 1, 3)
"""The last one is 4."""
CASES = list(itertools.product(STEPS, PLACES, VALUES))


@pytest.mark.parametrize("case", numbered(36, len(CASES)))
def test_what_is_not_finite_is_found_in_its_step(shelf, start, case):
    """The optimizer moves no weight by it, and no regular checkpoint has it."""
    at, where, value = CASES[case]
    shelf.install("intervention", "spoil", Spoil)
    SEEN.clear()
    keys = {"format": "E4M3", "recipe": "pure", "checkpoint_interval": 1, "max_checkpoints": 9}
    keys |= {"spoil__where": where, "spoil__at": at, "spoil__value": value}
    run = start(["spoil"], max_steps=4, **keys).run_directory
    found = [(e["step"], e["what"]) for e in events(run, "nan")]
    assert found[0][0] == at, found
    assert (found[0][1] == "weights") == (where == "weight"), found
    if where != "weight":
        assert SEEN[0] == SEEN[1]
        assert len(found) == 1
    for name in checkpoints(run):
        if name.startswith("step-") and name != "step-00000000":
            assert all(torch.isfinite(w).all() for w in state(run, name)["model"].values())


def test_a_loss_that_no_layer_spoiled_names_none(shelf, start):
    """What the backward pass meets first is where that loss goes, not where it came from."""
    shelf.install("intervention", "spoil", Spoil)
    for where, layer in (("loss", None), ("quantizer", "transformer.h.0.mlp.c_fc")):
        keys = {"spoil__where": where, "spoil__at": 2, "format": "E4M3"}
        (event,) = events(start(["spoil"], max_steps=3, **keys).run_directory, "nan")
        assert (event["what"], event["layer"]) == ("loss", layer)


def test_a_gradient_that_any_hook_spoils_reaches_no_optimizer(shelf, start):
    """As post_backward of an intervention, which may not change it: the norm is taken anew."""

    @define(eq=False)
    class Measures:
        @hookimpl
        def post_backward(self, run, step):
            if step.index == 2:
                first_matrix(run).grad.data[0, 0] = float("nan")

    shelf.install("intervention", "measures", Measures)
    run = start(["measures"], max_steps=3)
    assert [(e["step"], e["what"]) for e in events(run.run_directory, "nan")] == [
        (2, "final gradient")
    ]
    assert all(torch.isfinite(w).all() for w in state(run.run_directory)["model"].values())
    assert not any("grad_norm_after_plugins" in line for line in run.metrics_history)


@pytest.mark.parametrize("hook", ["pre_backward", "pre_step"])
@pytest.mark.parametrize("interval", [0, 1])
def test_a_weight_that_is_spoiled_before_the_optimizer_arose_in_no_earlier_step(
    shelf, start, hook, interval
):
    """The checkpoint of the step before is healthy, and later steps name this one."""

    def spoil(self, run, step):
        if step.index == 2:
            first_matrix(run).data[0, 0] = float("nan")

    shelf.install("intervention", "spoils", make({hook: spoil}))
    keys = {"checkpoint_interval": interval, "nan_patience": 9}
    run = start(["spoils"], max_steps=3, **keys).run_directory
    # A gradient by a weight that is not finite is none either, and comes first.
    what = {"pre_backward": "gradient", "pre_step": "weights"}[hook]
    found = [(e["step"], e["what"], e["arose"]) for e in events(run, "nan")]
    assert found == [(2, what, None), (3, "weights", 2)]
