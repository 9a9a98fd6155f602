"""The intervention ``mantissa-shift``: when it proposes which format."""

import json
from types import SimpleNamespace

import pytest

import altcore
from altcore.actions import KEEP, Stop
from altcore.recipe import Layer, change
from altcore.recipes import named, parse
from altcore.settings import build, describe
from altcore.state import NonFinite, Step
from altcore_interventions.mantissa_shift import MantissaShift

LAYERS = [Layer("a", "linear"), Layer("b", "linear"), Layer("head", "linear", is_head=True)]
CHAIN = {"E7M0": "E5M2", "E1M6": "E3M4", "E0M7": "E3M4", "E3M4": "E5M2", "E5M2": "none"}


class Bench:
    """A plugin and a plan, which changes as the plugin asks."""

    def __init__(self, recipe, **settings):
        self.plugin = build(MantissaShift, settings, "mantissa-shift")
        if isinstance(recipe, str):
            made = named("pure", altcore.get_format(recipe))
        else:
            made = parse(recipe, "test")
        self.warnings = []
        self.run = SimpleNamespace(
            quantization=SimpleNamespace(plan=made.resolve(LAYERS)),
            config=SimpleNamespace(nan_patience=10),
            emit=lambda event, **data: self.warnings.append(data["message"]),
        )

    def nan(self, step):
        """A step that is not finite; returns what is proposed, by pre_step or for the NaN."""
        before = self.plugin.pre_step(self.run)
        found = self.plugin.on_nan(self.run, Step(step), NonFinite("loss", "a", "weight@fwd"))
        return self.obey(before or found)

    def good(self):
        """A step that is finite."""
        return self.obey(self.plugin.pre_step(self.run))

    def collapse(self, **evidence):
        return self.obey(self.plugin.on_collapse(self.run, Step(1), evidence))

    def obey(self, action):
        q = self.run.quantization
        if isinstance(action, altcore.ChangeRecipe):
            q.plan = change(q.plan, action.layers, action.roles, format=action.format)
        return action

    def formats(self):
        """Each layer's formats, as a set."""
        return {
            layer: {c.format.name for c in casts.values() if c}
            for layer, casts in self.run.quantization.plan.items()
        }


def test_shifts_after_patience_is_spent():
    """Two non-finite steps are borne; with the third, every role of every layer moves on."""
    bench = Bench("E7M0")
    assert bench.nan(5) is None
    assert bench.nan(6) is None
    action = bench.nan(7)
    assert (action.layers, action.roles, action.format.name) == (("*",), (), "E5M2")
    assert (action.scaling, action.rounding) == (KEEP, KEEP)
    assert "3 consecutive steps" in action.reason
    assert "E7M0 is shifted to E5M2" in action.reason
    assert set.union(*bench.formats().values()) == {"E5M2"}


def test_only_consecutive_steps_count():
    """A finite step between them starts the count anew."""
    bench = Bench("E7M0")
    assert [bench.nan(step) for step in (1, 2, 4, 5)] == [None] * 4
    assert bench.nan(6) is not None


def test_a_shift_resets_the_count():
    """The next format gets its own patience."""
    bench = Bench("E1M6", nan_patience=2)
    actions = [bench.nan(step) for step in range(1, 7)]
    names = [a and getattr(a.format, "name", None) for a in actions[:4]]
    assert names == [None, "E3M4", None, "E5M2"]


def test_stops_at_the_end_of_the_chain():
    """After E5M2 comes none: the run is stopped, with a reason."""
    bench = Bench("E5M2", nan_patience=1)
    action = bench.nan(1)
    assert isinstance(action, Stop)
    assert "the chain of formats ends at E5M2" in action.reason


def test_several_formats_are_shifted_on_consecutive_steps():
    """Each format goes to its own next one, and what arrives in E3M4 is not shifted twice."""
    recipe = {"layers": {"a": {"weight": "E0M7"}, "b": {"weight": "E3M4"}}}
    bench = Bench(recipe, nan_patience=1)
    first = bench.nan(1)
    assert (first.layers, first.format.name) == (("a",), "E3M4")
    second = bench.good()
    assert (second.layers, second.format.name) == (("b",), "E5M2")
    assert bench.formats() == {"a": {"E3M4"}, "b": {"E5M2"}, "head": set()}
    assert bench.good() is None


def test_two_formats_in_one_layer_are_shifted_by_operand():
    """Operands are named one by one, so that none is quantized that was left alone."""
    recipe = {"layers": {"a": {"weight": "E0M7", "gradient": "E3M4"}, "b": {"weight": "E0M7"}}}
    bench = Bench(recipe, nan_patience=1)
    actions = [bench.nan(1), bench.good(), bench.good(), bench.good()]
    asked = {(a.layers, a.roles, a.format.name) for a in actions[:3]}
    assert asked == {
        (("a",), ("weight@fwd", "weight@dgrad"), "E3M4"),
        (("a",), ("gradient@dgrad", "gradient@wgrad"), "E5M2"),
        (("b",), (), "E3M4"),
    }
    assert actions[3] is None
    plan = bench.run.quantization.plan
    assert plan["a"]["activation@fwd"] is None
    assert plan["a"]["weight@fwd"].format.name == "E3M4"
    assert plan["a"]["gradient@wgrad"].format.name == "E5M2"


def test_a_refused_shift_takes_the_others_with_it():
    """If the first of several was not carried out, the rest do not follow by themselves."""
    bench = Bench({"layers": {"a": {"weight": "E0M7"}, "b": {"weight": "E3M4"}}}, nan_patience=1)
    bench.obey = lambda action: action
    assert bench.nan(1) is not None
    assert bench.good() is None
    assert bench.good() is None


def test_one_proposal_a_step():
    """While a shift is under way, a further non-finite step or a collapse asks for no other."""
    bench = Bench({"layers": {"a": {"weight": "E0M7"}, "b": {"weight": "E3M4"}}}, nan_patience=1)
    bench.nan(1)
    assert bench.plugin.on_collapse(bench.run, Step(1), {"cause": "stalled", "rate": 1.0}) is None
    assert bench.nan(2).layers == ("b",)
    assert bench.plugin.on_nan(bench.run, Step(2), NonFinite("loss")) is None


def test_a_format_that_can_move_does_where_another_cannot():
    """Only when nothing can be shifted any more is the run stopped."""
    bench = Bench({"layers": {"a": {"weight": "E5M2"}, "b": {"weight": "E3M4"}}}, nan_patience=1)
    assert bench.nan(1).layers == ("b",)
    assert bench.good() is None
    assert isinstance(bench.nan(3), Stop)


def test_no_opinion_on_formats_that_the_chain_does_not_mention():
    """They stay as they are, and the run is told at the start."""
    bench = Bench("E4M3", nan_patience=1)
    bench.plugin.run_start(bench.run)
    assert "does not mention E4M3" in bench.warnings[0]
    assert bench.nan(1) is None


def test_warns_of_a_patience_that_is_never_reached():
    """Past the engine's own patience the run has collapsed."""
    bench = Bench("E7M0", nan_patience=11)
    bench.plugin.run_start(bench.run)
    assert "never reached" in bench.warnings[0]
    bench = Bench("E7M0", nan_patience=10)
    bench.plugin.run_start(bench.run)
    assert bench.warnings == []


@pytest.mark.parametrize(
    ("evidence", "is_shifted"),
    [
        ({"cause": "stalled", "rate": 0.51}, True),
        ({"cause": "stalled", "rate": 0.5}, False),
        ({"cause": "stalled"}, False),
        ({"cause": "diverged", "rate": 0.9}, False),
        ({"cause": "nan_patience"}, False),
        ({"cause": "dead_gradients"}, False),
    ],
)
def test_a_collapse_shifts_when_it_stalled_above_the_threshold(evidence, is_shifted):
    """Only stall, and only with a measured rate above the threshold, is a case for a shift."""
    bench = Bench("E7M0")
    action = bench.collapse(reason="", **evidence)
    assert (action is not None) is is_shifted
    assert set.union(*bench.formats().values()) == ({"E5M2"} if is_shifted else {"E7M0"})


def test_the_chain_is_a_setting():
    """Its formats are resolved before the first step, none ends it, and no default is left in."""
    bench = Bench("E5M2", nan_patience=1, chain={"E5M2": "E6M1", "E6M1": None})
    assert bench.nan(1).format is altcore.get_format("E6M1")
    assert isinstance(bench.nan(2), Stop)


@pytest.mark.parametrize("chain", [{"E7M0": "E99X"}, {"E99X": "E5M2"}, ["E7M0"], {"E7M0": 3}])
def test_an_impossible_chain_is_refused(chain):
    """A mistyped format is an error on either side of the arrow."""
    with pytest.raises(altcore.BadInput, match="mantissa-shift"):
        build(MantissaShift, {"chain": chain}, "mantissa-shift")


def test_the_default_chain_is_the_original_one():
    """As documented, by name; and the class alone resolves it too."""
    (chain,) = [s for s in describe(MantissaShift) if s["name"] == "chain"]
    assert chain["default"] == CHAIN
    assert {k: v.name if v else "none" for k, v in MantissaShift().chain.items()} == CHAIN


def test_state_survives_a_checkpoint():
    """Counts and shifts under way go on after a resume; the state is plain data."""
    recipe = {"layers": {"a": {"weight": "E0M7"}, "b": {"weight": "E3M4"}}}
    bench = Bench(recipe, nan_patience=2)
    bench.nan(7)
    other = Bench(recipe, nan_patience=2)
    other.plugin.load_state_dict(json.loads(json.dumps(bench.plugin.state_dict())))
    assert other.nan(8).layers == ("a",)
    third = Bench(recipe, nan_patience=2)
    third.run.quantization.plan = other.run.quantization.plan
    third.plugin.load_state_dict(json.loads(json.dumps(other.plugin.state_dict())))
    assert third.good().layers == ("b",)


def test_in_a_run(tmp_path):
    """Weights that a huge step broke stay broken: shifts along the chain, then a stop.

    Step 1 is finite and spoils the weights; each format then gets its patience of two.
    """
    result = altcore.train(
        {
            "format": "E1M6",
            "gpt.size": "tiny",
            "max_steps": 20,
            "learning_rate": 1e30,
            "grad_clip": 0,
            "eval_steps": 1,
            "checkpoint_interval": 0,
            "plugins": ["mantissa-shift"],
            "mantissa-shift.nan_patience": 2,
            "runs_dir": str(tmp_path),
        }
    )
    assert result.status == "stopped"
    assert result.steps_completed == 7
    shifts = [(s["step"], s["from"], s["to"]) for s in result.summary["shifts"]]
    assert shifts == [(3, ["E1M6"], ["E3M4"]), (5, ["E3M4"], ["E5M2"])]
    assert all(s["plugin"] == "mantissa-shift" for s in result.summary["shifts"])
