"""The intervention ``mantissa-shift``: when it proposes which format."""

import json
from types import SimpleNamespace

import attrs
import pytest
from helpers import events
from planted import check_resumes_alike, last_loss, plant, unscaled

import altcore
from altcore import hookimpl
from altcore.engine import Step
from altcore.hooks import KEEP, NonFinite, Stop, build, describe_settings
from altcore.recipes import Layer, change, read_recipe
from altcore_interventions.mantissa_shift import CHAINS, MantissaShift

LAYERS = [Layer("a", "linear"), Layer("b", "linear"), Layer("head", "linear", is_head=True)]
LOSS = NonFinite("loss", "a", "weight@fwd")
STALLED = {"cause": "stalled", "stall_of": "stored", "rate": 0.9, "reason": ""}
SHORT = altcore.TrainConfig(warmup_steps=2, stall_window=4, learning_rate=1e-3)
"""What a run is judged by: views over four steps, from the third on."""
VIEWS = {"layers": {"a": {"weight": "E0M7"}, "b": {"weight": "E3M4"}}}
CHAIN = {"E7M0": "E5M2", "E1M6": "E3M4", "E0M7": "E3M4", "E3M4": "E5M2", "E5M2": "none"}


class Bench:
    """A plugin and a plan, which changes as the plugin asks."""

    def __init__(self, recipe, **settings):
        self.plugin = build(MantissaShift, settings, "mantissa-shift")
        if isinstance(recipe, str):
            made = read_recipe("pure", altcore.get_format(recipe))
        else:
            made = read_recipe(recipe)
        self.warnings = []
        self.rows = []
        self.lines = []
        self.run = SimpleNamespace(
            quantization=SimpleNamespace(plan=made.resolve(LAYERS), stats=lambda: self.rows),
            config=SHORT,
            lr_scale=1.0,
            emit=lambda event, **data: self.warnings.append(data["message"]),
        )

    def nan(self, step, where=LOSS, loss_scale=1.0):
        """A step that is not finite; returns what is proposed, by pre_step or for the NaN."""
        before = self.plugin.pre_step(self.run)
        found = self.plugin.on_nan(self.run, Step(step, loss_scale=loss_scale), where)
        return self.obey(before or found)

    def good(self, step=0):
        """A step that is finite. As in a run, the line of the step before the last comes first."""
        while self.lines and self.lines[0]["step"] <= step - 2:
            self.plugin.on_record(self.run, self.lines.pop(0))
        return self.obey(self.plugin.pre_step(self.run))

    def record(self, step, loss=2.0, rate=0.9, learning_rate=1e-3):
        """A recorded step: a line that says how views stalled."""
        line = {"step": step, "loss": loss, "view_stall_rate": rate, "learning_rate": learning_rate}
        self.lines.append(line)

    def collapse(self, **evidence):
        return self.obey(self.plugin.on_collapse(self.run, STALLED | evidence))

    def obey(self, actions):
        """Carry out what is proposed; returns it, the one action if it is one, None if none."""
        q = self.run.quantization
        for action in actions:
            if isinstance(action, altcore.ChangeRecipe):
                q.plan = change(q.plan, action.layers, action.roles, format=action.format)
        return actions if len(actions) > 1 else next(iter(actions), None)

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


def test_several_formats_are_shifted_in_one_step():
    """Each format goes to its own next one, and what arrives in E3M4 is not shifted twice."""
    recipe = {"layers": {"a": {"weight": "E0M7"}, "b": {"weight": "E3M4"}}}
    bench = Bench(recipe, nan_patience=1)
    first, second = bench.nan(1)
    assert (first.layers, first.format.name) == (("a",), "E3M4")
    assert (second.layers, second.format.name) == (("b",), "E5M2")
    assert "1 consecutive steps were not finite" in second.reason
    assert bench.formats() == {"a": {"E3M4"}, "b": {"E5M2"}, "head": set()}
    assert bench.good() is None


def test_two_formats_in_one_layer_are_shifted_by_operand():
    """Operands are named one by one, so that none is quantized that was left alone."""
    recipe = {"layers": {"a": {"weight": "E0M7", "gradient": "E3M4"}, "b": {"weight": "E0M7"}}}
    bench = Bench(recipe, nan_patience=1)
    asked = {(a.layers, a.roles, a.format.name) for a in bench.nan(1)}
    assert asked == {
        (("a",), ("weight@fwd", "weight@dgrad"), "E3M4"),
        (("a",), ("gradient@dgrad", "gradient@wgrad"), "E5M2"),
        (("b",), (), "E3M4"),
    }
    assert bench.good() is None
    plan = bench.run.quantization.plan
    assert plan["a"]["activation@fwd"] is None
    assert plan["a"]["weight@fwd"].format.name == "E3M4"
    assert plan["a"]["gradient@wgrad"].format.name == "E5M2"


def test_a_refused_shift_comes_again_only_when_it_is_due():
    """If it was not carried out, it does not follow by itself."""
    bench = Bench({"layers": {"a": {"weight": "E0M7"}, "b": {"weight": "E3M4"}}}, nan_patience=2)
    bench.obey = lambda actions: actions
    assert [len(bench.nan(step)) for step in (1, 2)] == [0, 2]
    assert bench.good() == []
    assert [len(bench.nan(step)) for step in (4, 5)] == [0, 2]


def test_one_shift_a_step():
    """After one, a collapse in the same step asks for no other, nor does a non-finite value."""
    bench = Bench("E0M7", nan_patience=1)
    assert bench.nan(1).format.name == "E3M4"
    assert bench.plugin.on_collapse(bench.run, STALLED) == []
    assert bench.plugin.on_nan(bench.run, Step(1), NonFinite("loss")) == []
    assert bench.nan(2).format.name == "E5M2"


def test_a_format_that_can_move_does_where_another_cannot():
    """Only when nothing can be shifted any more is the run stopped."""
    bench = Bench({"layers": {"a": {"weight": "E5M2"}, "b": {"weight": "E3M4"}}}, nan_patience=1)
    assert bench.nan(1).layers == ("b",)
    assert bench.good() is None
    assert isinstance(bench.nan(3), Stop)


def test_no_opinion_on_formats_that_the_chain_does_not_mention():
    """They stay as they are, and the run is told at the start."""
    bench = Bench("E2M1", nan_patience=1)
    bench.plugin.run_start(bench.run)
    assert "does not mention E2M1" in bench.warnings[0]
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
        ({"rate": 0.51}, True),
        ({"rate": 0.5}, False),
        ({"rate": None}, False),
        ({"cause": "diverged"}, False),
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


@pytest.mark.parametrize(
    "chain", [{"E7M0": "E99X"}, {"E99X": "E5M2"}, ["E7M0"], {"E7M0": 3}, "exponent"]
)
def test_an_impossible_chain_is_refused(chain):
    """A mistyped format is an error on either side of the arrow."""
    with pytest.raises(altcore.BadInput, match=r"^mantissa-shift\.chain: "):
        build(MantissaShift, {"chain": chain}, "mantissa-shift")


def test_the_default_chain_is_the_original_one():
    """By name; and the class alone resolves it too."""
    (chain,) = [s for s in describe_settings(MantissaShift) if s["name"] == "chain"]
    assert chain["default"] == "original"
    assert {k: v.name if v else "none" for k, v in MantissaShift().chain.items()} == CHAIN


@pytest.mark.parametrize(
    ("name", "bits"), [("mantissa", "mantissa_bits"), ("range", "exponent_bits")]
)
def test_chains_do_what_they_are_called(name, bits):
    """Each step of these two has more of what it promises, and each chain ends."""
    chain = MantissaShift(chain=name).chain
    for source, to in chain.items():
        if to is not None:
            assert getattr(to, bits) > getattr(altcore.get_format(source), bits)
            assert to.name in chain
    assert None in chain.values()


def test_the_original_chain_is_no_mantissa_chain():
    """As its name would have it: one step keeps more mantissa bits, three keep fewer."""
    bits = {name: altcore.get_format(name).mantissa_bits for name in CHAIN}
    assert sum(bits[to] > bits[name] for name, to in CHAIN.items() if to != "none") == 1
    assert CHAINS["original"] == CHAIN


def test_the_cause_may_decide():
    """More range for what is not finite, more mantissa for a stall; and back, if need be."""
    bench = Bench("E4M3", nan_patience=1, direction="cause")
    assert bench.nan(1).format.name == "E5M2"
    bench.good()
    assert bench.collapse().format.name == "E4M3"
    bench.good()
    assert bench.collapse().format.name == "E3M4"


def test_only_guilty_layers_of_a_non_finite_step():
    """The layer that met it first, or whose parameter's gradient it is."""
    for where in (LOSS, NonFinite("gradient", "a.weight")):
        bench = Bench("E3M4", nan_patience=1, scope="layer", chain="range")
        assert bench.nan(1, where).layers == ("a",)
        assert bench.formats() == {"a": {"E4M3"}, "b": {"E3M4"}, "head": {"E3M4"}}


def test_guilty_is_who_made_it_before_who_met_it():
    """A cast that makes NaN of overflow made it, in a layer before; one that saturates did not."""
    made, saturating = unscaled("E4M3", overflow="nan"), unscaled("E4M3")
    layers = {"b": {"activation": made}, "a": {"activation": made}, "head": {"weight": saturating}}
    bench = Bench({"layers": layers}, nan_patience=1, scope="layer", chain="range")
    bench.rows = [
        {"layer": "a", "operand": "activation@fwd", "overflow": 0},
        {"layer": "b", "operand": "activation@fwd", "overflow": 1},
        {"layer": "head", "operand": "weight@fwd", "overflow": 5},
        {"layer": "a", "operand": "stored_weight"},
    ]
    assert bench.nan(1).layers == ("b",)


def test_only_guilty_layers_of_a_stall():
    """Those whose own rate in the last step is above the threshold."""
    rows = [
        {"layer": "a", "operand": "stored_weight", "updates": 100, "stalled": 51},
        {"layer": "b", "operand": "stored_weight", "updates": 100, "stalled": 50},
        {"layer": "b", "operand": "weight view", "moved": 100, "stalled": 99},
        {"layer": "head", "operand": "stored_weight", "updates": 100, "stalled": 99},
        {"layer": "b", "operand": "activation@fwd"},
    ]
    bench = Bench("E3M4", scope="layer", chain="mantissa")
    assert bench.collapse(layers=rows).layers == ("a", "head")
    assert bench.formats() == {"a": {"E2M5"}, "b": {"E3M4"}, "head": {"E2M5"}}


def test_stochastic_rounding_loses_nothing():
    """A layer whose stored weights are rounded so is not guilty of a stall."""
    rows = [
        {"layer": "a", "operand": "stored_weight", "updates": 9, "stalled": 9},
        {"layer": "b", "operand": "stored_weight", "updates": 9, "stalled": 9},
    ]
    rows[1]["rounding"] = "stochastic"
    bench = Bench("E3M4", scope="layer", chain="mantissa")
    assert bench.collapse(layers=rows).layers == ("a",)


# ------------------------------------------------------------------------ the stall of views


@pytest.mark.parametrize(
    ("lines", "shifts"),
    [
        ({}, 8),  # steps 3 to 6, the last of them known two steps later
        ({"rate": 0.5}, None),
        ({"rate": None}, None),
        ({"learning_rate": 4e-4}, None),
    ],
)
def test_views_that_stall_are_judged_by_the_plugin(lines, shifts):
    """After warm-up, over a window, above the threshold: the run's own verdict is another."""
    bench = Bench(VIEWS, stall_of="view")
    found = {}
    for step in range(1, 12):
        action = bench.good(step)
        if action is not None:
            found[step] = action
        bench.record(step, **lines)
    assert next(iter(found), None) == shifts
    if shifts:
        assert [(a.layers, a.format.name) for a in found[8]] == [(("a",), "E3M4"), (("b",), "E5M2")]
        assert all("a stall rate of 90.0% of views (threshold 0.5)" in a.reason for a in found[8])
        assert bench.plugin.cause == "stalled"


def test_views_are_left_alone_while_the_loss_falls():
    """And a collapse, which is of stored weights, is not for them."""
    bench = Bench(VIEWS, stall_of="view")
    for step in range(1, 12):
        assert bench.good(step) is None
        bench.record(step, loss=3 - step / 10)
    assert bench.collapse() is None
    stored = Bench(VIEWS)
    for step in range(1, 12):
        assert stored.good(step) is None
        stored.record(step)


def test_views_in_a_new_format_are_judged_by_their_own_steps():
    """The window begins anew, after the step of the change, whose line comes later."""
    bench = Bench({"weight": "E3M4"}, stall_of="view", chain="range")
    found = []
    for step in range(1, 20):
        if bench.good(step):
            found.append(step)
            bench.plugin.on_event({"event": "recipe", "plugin": "mantissa-shift", "step": step})
        bench.record(step)
    assert found == [8, 14]


@pytest.mark.parametrize("stall_of", ["view", "stored"])
def test_a_stall_at_the_end_of_the_chain_goes_on(stall_of):
    """The run may well learn: it is told once for a recipe, and nothing stops."""
    bench = Bench("E5M2" if stall_of == "stored" else {"weight": "E5M2"}, stall_of=stall_of)
    for step in range(1, 20):
        assert bench.good(step) is None
        assert bench.collapse() is None
        bench.record(step)
    (told,) = bench.warnings
    assert "mantissa-shift: a stall rate of 90.0%" in told
    assert told.endswith("the chain of formats ends at E5M2; the run goes on")
    again = build(MantissaShift, {"stall_of": stall_of}, "mantissa-shift")
    again.load_state_dict(bench.plugin.state_dict())
    bench.plugin = again
    assert bench.collapse() is None
    assert len(bench.warnings) == 1
    assert isinstance([bench.nan(step) for step in (20, 21, 22)][-1], Stop)


def test_only_guilty_layers_of_a_stall_of_views():
    """By the rates of the last step that was measured."""
    bench = Bench({"weight": "E3M4"}, stall_of="view", scope="layer", chain="mantissa")
    bench.rows = [
        {"layer": "a", "operand": "weight view", "moved": 100, "stalled": 20},
        {"layer": "b", "operand": "weight view", "moved": 100, "stalled": 99},
    ]
    for step in range(1, 9):
        action = bench.good(step)
        bench.record(step)
    assert action.layers == ("b",)


@pytest.mark.parametrize("where", [NonFinite("loss"), NonFinite("loss", "norm")])
def test_the_whole_model_where_nobody_is_guilty(where):
    """No layer is known, or it holds no format of the chain; the reason says so."""
    bench = Bench("E3M4", nan_patience=1, scope="layer")
    action = bench.nan(1, where)
    assert action.layers == ("*",)
    assert "no layer of the chain's formats is known to be guilty" in action.reason


def test_a_guilty_layer_at_the_end_of_the_chain_stops_the_run():
    """Other layers could move, but it is not they that broke."""
    recipe = {"layers": {"a": {"weight": "E5M2"}, "b": {"weight": "E3M4"}}}
    assert isinstance(Bench(recipe, nan_patience=1, scope="layer").nan(1), Stop)


def test_a_gradient_lost_under_a_loss_scale_is_not_counted():
    """It is the scale's business; at a scale of 1, or with a lost loss, it is not."""
    bench = Bench("E7M0", nan_patience=1)
    gradient = NonFinite("gradient", "a.weight")
    assert bench.nan(1, gradient, loss_scale=1024.0) is None
    assert bench.nan(2, gradient) is not None
    assert Bench("E7M0", nan_patience=1).nan(1, LOSS, loss_scale=1024.0) is not None


STOCHASTIC = {"stored_weight": {"format": "E3M4", "rounding": "stochastic"}}


@pytest.mark.parametrize(
    ("recipe", "stall_of", "warns"),
    [
        ("E3M4", "stored", False),
        ("E3M4", "view", True),
        ({"weight": "E3M4"}, "stored", True),
        ({"weight": "E3M4"}, "view", False),
        (STOCHASTIC, "stored", True),
        ({**STOCHASTIC, "layers": {"a": {"stored_weight": "E3M4"}}}, "stored", False),
    ],
)
def test_warns_of_a_stall_that_is_not_judged(recipe, stall_of, warns):
    """Where nothing is stored by a rounding that loses updates, or no master has a view."""
    bench = Bench(recipe, stall_of=stall_of)
    bench.plugin.run_start(bench.run)
    assert bool(bench.warnings) is warns
    assert all(f"none shifts a format (stall_of: {stall_of})" in w for w in bench.warnings)


@pytest.mark.parametrize(
    ("threshold", "stall_of", "says"),
    [
        (0.9, "stored", "stall_threshold 0.9 may never be reached: a stall is told once"),
        (0.2, "stored", "stall_threshold 0.2 lets it act no sooner"),
        (0.5, "stored", None),
        (0.9, "view", None),
    ],
)
def test_warns_of_a_threshold_at_which_no_stall_is_told(threshold, stall_of, says):
    """A collapse is told as the rate passes the run's own threshold, and once until it clears."""
    recipe = "E7M0" if stall_of == "stored" else VIEWS
    bench = Bench(recipe, stall_threshold=threshold, stall_of=stall_of)
    bench.plugin.run_start(bench.run)
    assert len(bench.warnings) == (says is not None)
    assert says is None or says in bench.warnings[0]


def test_says_so_where_nothing_is_quantized():
    """But not when a run goes on in which its own shifts made it so."""
    bench = Bench({})
    bench.plugin.run_start(bench.run)
    assert bench.warnings == ["mantissa-shift will change nothing: nothing is quantized"]
    other = Bench({})
    other.plugin.on_event({"event": "recipe", "plugin": "mantissa-shift", "step": 2})
    other.plugin.run_start(other.run)
    assert other.warnings == []


def test_a_chain_to_a_block_format_is_refused_where_weights_are_stored():
    """Before the first step; what is not stored may have a scale for each block."""
    chain = {"E3M4": "E5M2", "E5M2": "MXFP8-E4M3"}
    stored, views = Bench("E3M4", chain=chain), Bench({"weight": "E3M4"}, chain=chain)
    with pytest.raises(altcore.BadInput, match="E5M2 goes to MXFP8-E4M3") as caught:
        stored.plugin.run_start(stored.run)
    assert caught.value.key == "mantissa-shift.chain"
    views.plugin.run_start(views.run)


def test_counts_what_was_carried_out_by_cause():
    """Its own changes of recipe, not those of others."""
    bench = Bench("E7M0", nan_patience=1, chain="mantissa")
    assert bench.plugin.post_backward() == {"nonfinite_shifts": 0, "stalled_shifts": 0}
    bench.collapse()
    bench.plugin.on_event({"event": "recipe", "plugin": "other", "step": 1})
    bench.plugin.on_event({"event": "recipe", "plugin": "mantissa-shift", "step": 2})
    assert bench.plugin.post_backward() == {"nonfinite_shifts": 0, "stalled_shifts": 1}


def test_state_survives_a_checkpoint():
    """Counts go on after a resume; the state is plain data."""
    bench = Bench("E0M7", nan_patience=2)
    bench.nan(7)
    other = Bench("E0M7", nan_patience=2)
    other.plugin.load_state_dict(json.loads(json.dumps(bench.plugin.state_dict())))
    assert other.nan(8).format.name == "E3M4"
    third = Bench("E3M4", nan_patience=2)
    third.plugin.load_state_dict(json.loads(json.dumps(other.plugin.state_dict())))
    assert [third.nan(9), third.nan(10).format.name] == [None, "E5M2"]


def test_views_survive_a_checkpoint():
    """At whatever step it is saved, the shift comes where it would have come."""
    for cut in range(9):
        bench = Bench(VIEWS, stall_of="view")
        found = []
        for step in range(1, 10):
            if step == cut:
                state = json.loads(json.dumps(bench.plugin.state_dict()))
                lines, bench = bench.lines, Bench(VIEWS, stall_of="view")
                bench.plugin.load_state_dict(state)
                bench.lines = lines  # the engine keeps them
            found += [step] if bench.good(step) else []
            bench.record(step)
        assert found[0] == 8


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
    assert result.summary["stopped_by"] == "mantissa-shift"
    assert (result.failure_step, result.failure_reason) == (7, result.summary["stop_reason"])
    assert "the chain of formats ends at E5M2" in result.failure_reason
    assert result.final_loss == result.metrics_history[0]["loss"]
    how = "did not learn: 6 of 7 steps discarded; stopped by mantissa-shift at step 7"
    assert result.verdict == how


def test_a_run_survives_activations_beyond_the_range(shelf, start):
    """E4M3 ends at 448 and overflow is NaN: no step is finite, until the range is E5M2's."""
    plant(shelf, "large-activations")
    keys = {
        "recipe": {"activation": unscaled("E4M3", overflow="nan")},
        "max_steps": 60,
    }
    lost = start(["large-activations"], **keys)
    assert (lost.status, lost.steps_completed) == ("collapsed", 10)
    by_range = {"mantissa-shift.chain": "range"}
    saved = start(["large-activations", "mantissa-shift"], **keys, **by_range)
    assert (saved.status, saved.format_shifted_to, saved.shift_step) == ("finished", "E5M2", 3)
    assert last_loss(saved) < 2.5  # 1.85
    counts = [x["mantissa-shift/nonfinite_shifts"] for x in saved.diagnostics_history]
    assert counts == [0] * 3 + [1] * 57


def test_a_run_of_several_formats_shifts_them_in_one_step(shelf, start):
    """After three steps that are not finite; from the fourth the whole run is in others."""

    @attrs.define(eq=False)
    class Spoil:
        @hookimpl
        def pre_backward(self, step):
            if step.index <= 3:
                step.loss = step.loss * float("nan")

    shelf.install("intervention", "spoil", Spoil)
    recipe = {"weight": "E0M7", "activation": "E3M4", "gradient": "E4M3"}
    result = start(["spoil", "mantissa-shift"], recipe=recipe, max_steps=6)
    shifts = events(result.run_directory, "recipe")
    assert [event["step"] for event in shifts] == [3, 3]
    assert shifts[-1]["to"] == ["E3M4", "E4M3", "E5M2"]
    assert [x["mantissa-shift/nonfinite_shifts"] for x in result.diagnostics_history][-1] == 2


def test_a_run_survives_by_the_shift_of_one_layer(shelf, start):
    """The second layer's inputs are too large; it alone goes on in another format."""
    plant(shelf, "regression", "large-activations")
    result = start(
        ["large-activations", "mantissa-shift"],
        workload="regression",
        recipe={"activation": unscaled("E4M3", overflow="nan")},
        max_steps=30,
        **{
            "mantissa-shift.scope": "layer",
            "mantissa-shift.direction": "cause",
            "large-activations.factor": 300.0,
        },
    )
    assert result.status == "finished"
    (event,) = events(result.run_directory, "recipe")
    assert event["change"]["layers"] == ["2"]
    assert event["to"] == ["E4M3", "E5M2"]
    assert event["reason"].endswith("E4M3 is shifted to E5M2 in 2")


@pytest.mark.parametrize(("name", "stuck"), [("E6M1", 5.2)])
def test_a_stalled_run_learns_again(start, name, stuck):
    """99 % of the updates are lost in rounding; with more mantissa bits fewer are."""
    keys = {
        "format": name,
        "recipe": "pure",
        "learning_rate": 1e-3,
        "stall_window": 10,
        "warmup_steps": 5,
        "max_steps": 150,
    }
    lost = start(**keys)
    assert "stalled" in lost.failure_reason
    assert last_loss(lost) > stuck  # 5.30, from 5.55
    saved = start(["mantissa-shift"], **keys, **{"mantissa-shift.chain": "mantissa"})
    assert last_loss(saved) < stuck - 0.3  # 4.78
    assert saved.summary["shifts"][0]["to"] == ["E5M2"]


def test_resumes_alike(shelf, start):
    """Counts and shifts are part of the state."""
    plant(shelf, "large-activations")
    keys = {
        "recipe": {"activation": unscaled("E3M4IEEE", overflow="nan")},
        "mantissa-shift.chain": {"E3M4IEEE": "E4M3", "E4M3": "E5M2", "E5M2": None},
        "mantissa-shift.nan_patience": 4,
    }
    whole = check_resumes_alike(shelf, start, ["large-activations", "mantissa-shift"], **keys)
    assert len(whole.summary["shifts"]) == 2
