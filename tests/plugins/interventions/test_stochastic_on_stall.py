"""The intervention ``stochastic-on-stall``: when it acts, and what it saves."""

from types import SimpleNamespace

import pytest
from helpers import events, state
from planted import last_loss

import altcore
from altcore.hooks import build
from altcore.recipes import Layer, change, read_recipe
from altcore_interventions.stochastic_on_stall import StochasticOnStall

LAYERS = [Layer("a", "linear"), Layer("head", "linear", is_head=True)]
STALLED = {"cause": "stalled", "stall_of": "stored", "rate": 0.9}


class Bench:
    """A plugin and a plan."""

    def __init__(self, recipe="pure", **settings):
        self.plugin = build(StochasticOnStall, settings, "stochastic-on-stall")
        self.messages = []
        plan = read_recipe(recipe, altcore.get_format("E3M4")).resolve(LAYERS)
        self.run = SimpleNamespace(
            config=altcore.TrainConfig(),
            quantization=SimpleNamespace(plan=plan),
            emit=lambda event, message: self.messages.append(message),
        )

    def collapse(self, **evidence):
        action = self.plugin.on_collapse(self.run, {**STALLED, **evidence})
        if action is not None:
            q = self.run.quantization
            q.plan = change(q.plan, action.layers, action.roles, rounding=action.rounding)
        return action


def test_changes_the_rounding_of_stored_weights_once():
    """Of every layer that has one, and of nothing else."""
    bench = Bench()
    before = {name: dict(casts) for name, casts in bench.run.quantization.plan.items()}
    action = bench.collapse()
    assert "90.0% of the updates of stored weights stalled" in action.reason
    for name, casts in bench.run.quantization.plan.items():
        for operand, cast in casts.items():
            if operand == "stored_weight":
                assert cast.rounding == "stochastic"
                assert (cast.format, cast.scaling) == (
                    before[name][operand].format,
                    before[name][operand].scaling,
                )
            else:
                assert cast == before[name][operand]
    assert bench.collapse() is None, "nothing is left to change"


@pytest.mark.parametrize(
    "evidence",
    [{"cause": "diverged"}, {"rate": 0.5}, {"rate": None}],
)
def test_no_opinion_on_anything_else(evidence):
    """Another collapse, or a rate not above the threshold."""
    assert Bench().collapse(**evidence) is None


def test_says_so_where_it_has_nothing_to_do():
    """No stored weight, or all of them stochastic already."""
    bench = Bench("master")
    bench.plugin.run_start(bench.run)
    assert "will change nothing" in bench.messages[0]
    assert bench.collapse() is None
    bench = Bench()
    bench.plugin.run_start(bench.run)
    assert bench.messages == []
    bench = Bench(stall_threshold=0.9)
    bench.plugin.run_start(bench.run)
    assert "stall_threshold 0.9 may never be reached" in bench.messages[0]


def test_says_nothing_when_a_run_goes_on_that_it_changed():
    """Nothing is left to change then, by its own doing."""
    bench, again = Bench(), Bench("master")
    bench.collapse()
    bench.plugin.on_event({"event": "recipe", "plugin": "stochastic-on-stall"})
    again.plugin.load_state_dict(bench.plugin.state_dict())
    again.plugin.run_start(again.run)
    assert again.messages == []


@pytest.mark.parametrize(
    ("name", "stuck"), [("E7M0", 5.3), pytest.param("E6M1", 5.2, marks=pytest.mark.slow)]
)
def test_a_stalled_run_learns_again(start, name, stuck):
    """Pure formats at a small learning rate, where 99 % of the updates are lost in rounding."""
    keys = {
        "format": name,
        "recipe": "pure",
        "learning_rate": 1e-3,
        "stall_window": 20,
        "warmup_steps": 5,
        "max_steps": 150,
    }
    lost = start(**keys)
    assert "stalled" in lost.failure_reason
    assert last_loss(lost) > stuck  # 5.38 and 5.30, from 5.55
    saved = start(["stochastic-on-stall"], **keys)
    assert last_loss(saved) < 4.0  # 3.54 and 3.39
    (event,) = events(saved.run_directory, "recipe")
    assert event["plugin"] == "stochastic-on-stall"
    plan = state(saved.run_directory)["quantization"]["plan"]
    assert {c["stored_weight"]["rounding"] for c in plan.values() if "stored_weight" in c} == {
        "stochastic"
    }
