"""Actions: the pure decision between proposals, and what the engine does when one is given."""

import itertools
import math

import numpy as np
import pytest
import torch
from attrs import define, field
from helpers import checkpoints, events, sha256, state, weights_sha256
from hypothesis import given
from hypothesis import strategies as st

from altcore import (
    BadInput,
    ChangeRecipe,
    Rollback,
    ScaleLearningRate,
    ShiftFormat,
    SkipStep,
    Stop,
    get_format,
    hookimpl,
)
from altcore.cli.summary import lines
from altcore.engine.collapse import Detector
from altcore.errors import AltcoreError, ConflictingActions
from altcore.formats import table_format
from altcore.hooks import Proposal, arbitrate, describe_action
from altcore.recipes import Scaling
from altcore.runs import read_lines

LAYERS = ["a.q", "a.k", "b.q"]
E5M2, E4M3 = get_format("E5M2"), get_format("E4M3")
R = "because"
TO_INF = {"format": "FORMAT", "overflow": "inf", "scaling": "none"}


def decide(*proposals):
    """Arbitrate (plugin, action) pairs over LAYERS."""
    return arbitrate([Proposal(plugin, action) for plugin, action in proposals], LAYERS)


# ---------------------------------------------------------------------- the pure function

ONE_OF_EACH = [
    Stop(reason=R),
    Rollback(steps=2, reason=R),
    ChangeRecipe(format=E5M2, reason=R),
    ScaleLearningRate(factor=0.5, reason=R),
    SkipStep(reason=R),
]


def test_no_proposal_is_no_verdict():
    """Nothing proposed, nothing chosen."""
    assert arbitrate([], LAYERS).kind is None


@pytest.mark.parametrize("count", range(1, 6))
def test_precedence(count):
    """Stop > Rollback > ChangeRecipe > ScaleLearningRate > SkipStep, whatever the order."""
    for chosen in itertools.combinations(range(5), count):
        for order in itertools.permutations(chosen):
            verdict = decide(*[(f"p{i}", ONE_OF_EACH[i]) for i in order])
            assert [p.plugin for p in verdict.chosen] == [f"p{min(order)}"]
            assert verdict.kind is type(ONE_OF_EACH[min(order)])
            assert {r.proposal.plugin for r in verdict.refused} == {
                f"p{i}" for i in order if i != min(order)
            }
            first = verdict.kind.__name__
            assert all(r.why == f"{first} comes first" for r in verdict.refused)


@pytest.mark.parametrize(
    "pair",
    [
        ({"layers": "a.*", "format": E5M2}, {"layers": "b.*", "format": E4M3}),
        ({"roles": "weight", "format": E5M2}, {"roles": "gradient", "format": E4M3}),
        ({"roles": "weight@fwd", "format": E5M2}, {"roles": "weight@dgrad", "format": E4M3}),
        ({"format": E5M2}, {"rounding": "stochastic"}),
        ({"layers": "a.*", "format": E5M2}, {"layers": "a.*", "format": E5M2}),
    ],
)
def test_changes_that_do_not_meet_merge(pair):
    """Disjoint layers, roles, operands or parts are both carried out; so are equal ones."""
    verdict = decide(*[(n, ChangeRecipe(reason=R, **p)) for n, p in zip("xy", pair, strict=True)])
    assert [p.plugin for p in verdict.chosen] == ["x", "y"]
    assert verdict.refused == ()


def test_a_layer_whose_name_is_a_pattern_meets_itself():
    """Brackets in a pattern stand for one character, and the key of a ModuleDict may have some."""
    proposals = [
        Proposal(name, ChangeRecipe(layers="m.x[1]", format=fmt, reason=R))
        for name, fmt in (("x", E5M2), ("y", E4M3))
    ]
    with pytest.raises(ConflictingActions, match=r"of m\.x\[1\]: E5M2 and E4M3"):
        arbitrate(proposals, ["m.x[1]"])


@pytest.mark.parametrize(
    ("one", "other", "thing"),
    [
        (
            ChangeRecipe(layers="a.*", format=E5M2, reason=R),
            ChangeRecipe(layers="*.q", format=E4M3, reason=R),
            r"format of weight@fwd of a\.q: E5M2 and E4M3",
        ),
        (
            ChangeRecipe(roles="weight", format=E5M2, reason=R),
            ShiftFormat(None, reason=R),
            "E5M2 and none",
        ),
        (
            ChangeRecipe(roles="weight@dgrad", rounding="up", reason=R),
            ChangeRecipe(roles="weight", rounding="down", reason=R),
            "rounding of weight@dgrad",
        ),
        (
            ChangeRecipe(scaling=Scaling("none"), reason=R),
            ChangeRecipe(scaling=Scaling("tensor"), reason=R),
            "scaling of weight@fwd",
        ),
        (
            ScaleLearningRate(factor=0.5, reason=R),
            ScaleLearningRate(factor=0.25, reason=R),
            "the learning rate: 0.5 and 0.25",
        ),
        (Rollback(steps=2, reason=R), Rollback(steps=3, reason=R), "the rollback"),
        (
            Rollback(steps=2, reason=R),
            Rollback(steps=2, then=ShiftFormat(E5M2, reason=R), reason=R),
            "the rollback",
        ),
    ],
)
def test_two_values_for_one_thing_are_an_error_that_names_both(one, other, thing):
    """Which plugin is listed first decides nothing, so nobody wins."""
    for order in ([("x", one), ("y", other)], [("y", other), ("x", one)]):
        with pytest.raises(ConflictingActions, match=f"plugins x and y .*{thing}"):
            decide(*order)


def test_a_conflict_below_the_chosen_class_is_no_conflict():
    """What is not carried out cannot contradict."""
    verdict = decide(
        ("x", ScaleLearningRate(factor=0.5, reason=R)),
        ("y", ScaleLearningRate(factor=0.1, reason=R)),
        ("z", Stop(reason=R)),
    )
    assert [p.plugin for p in verdict.chosen] == ["z"]


def test_the_same_is_done_once():
    """Two equal factors do not multiply twice."""
    half = ScaleLearningRate(factor=0.5, reason=R)
    verdict = decide(("y", half), ("x", half))
    assert [p.plugin for p in verdict.chosen] == ["x"]
    assert [r.why for r in verdict.refused] == ["the same was proposed by x"]


@pytest.mark.parametrize("other", [None, ScaleLearningRate(0.5, reason=R)])
def test_a_step_that_is_not_to_count_does_not_whatever_comes_first(other):
    """A step that is not finite is discarded anyway."""
    for counts in (True, False):
        actions = [SkipStep(counts=counts, reason=R), *([] if other is None else [other])]
        verdict = arbitrate([Proposal("p", action) for action in actions], LAYERS)
        assert verdict.counts is counts


def test_a_change_takes_formats_and_scalings_as_recipes_do():
    """A format in plain form, and a scaling by its word or by its parts."""
    plain = {"name": "PL", "values": [-1, 0, 1]}
    assert ShiftFormat(plain, reason=R).format == table_format("PL", [-1, 0, 1])
    for given_as, scaling in [
        ("channel", Scaling("channel")),
        ("power-of-two", Scaling(power_of_two=True)),
        ({"kind": "delayed", "history": 4}, Scaling("delayed", history=4)),
    ]:
        assert ChangeRecipe(scaling=given_as, reason=R).scaling == scaling


changes = st.builds(
    ChangeRecipe,
    layers=st.sampled_from(["*", "a.*", "b.q", "nothing"]),
    roles=st.sampled_from([(), ("weight",), ("weight@fwd",), ("gradient", "stored_weight")]),
    format=st.sampled_from(["keep", None, E5M2, E4M3]),
    scaling=st.sampled_from(["keep", Scaling("none"), Scaling("delayed")]),
    rounding=st.sampled_from(["keep", "stochastic"]),
    reason=st.sampled_from("pq"),
)
actions = st.one_of(
    changes,
    st.builds(SkipStep, reason=st.just(R)),
    st.builds(Stop, reason=st.sampled_from("pq")),
    st.builds(ScaleLearningRate, factor=st.sampled_from([0.5, 0.25]), reason=st.just(R)),
    st.builds(Rollback, steps=st.sampled_from([1, 2]), reason=st.just(R)),
)
proposals = st.lists(st.builds(Proposal, plugin=st.sampled_from("abc"), action=actions), max_size=5)


def outcome(given_order):
    """The verdict, or the message of the conflict."""
    try:
        verdict = arbitrate(given_order, LAYERS)
    except ConflictingActions as error:
        return str(error)
    return verdict


@given(st.data(), proposals)
def test_order_decides_nothing(data, drawn):
    """Permuting the proposals gives the same verdict, in the same order of carrying out."""
    assert outcome(drawn) == outcome(data.draw(st.permutations(drawn)))


@given(proposals)
def test_every_proposal_is_answered(drawn):
    """Each is chosen or refused, and the chosen are of one class."""
    verdict = outcome(drawn)
    if not isinstance(verdict, str):
        answered = [*verdict.chosen, *(r.proposal for r in verdict.refused)]
        assert sorted(map(repr, answered)) == sorted(map(repr, drawn))
        assert len({type(p.action) for p in verdict.chosen}) <= 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ChangeRecipe(format="E5M2", reason=R), "a setting of type Format"),
        (lambda: ChangeRecipe(format=5, reason=R), "ChangeRecipe takes a Format, not 5"),
        (lambda: ShiftFormat({"name": "X"}, reason=R), "format X: one of values"),
        (
            lambda: ChangeRecipe(scaling="chanel", reason=R),
            r"ChangeRecipe: scaling: 'chanel' is unknown \(did you mean channel\?\)",
        ),
        (lambda: ChangeRecipe(scaling=5, reason=R), "ChangeRecipe: scaling: 5 is neither"),
        (
            lambda: ChangeRecipe(rounding="stochastc", reason=R),
            r"the rounding 'stochastc' is unknown \(did you mean stochastic\?\)",
        ),
        (lambda: Stop(reason=None), "Stop: its reason is text, not None"),
        (lambda: SkipStep(reason=" "), "SkipStep: its reason is text, not ' '"),
        (lambda: ChangeRecipe(roles="wieght", format=E5M2, reason=R), "did you mean weight"),
    ],
)
def test_impossible_changes_are_refused_when_made(make, says):
    """A name would be resolved only when it is too late."""
    with pytest.raises(BadInput, match=says):
        make()


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "says"),
    [
        *(
            (lambda x=x: ScaleLearningRate(x, reason=R), r"^ScaleLearningRate: factor is .*, not a")
            for x in (0, -0.5, NAN, INF, "x", None, True, [1], 10**400, torch.tensor(0.5))
        ),
        *(
            (lambda x=x: Rollback(x, reason=R), "^Rollback: steps is .*, not a whole number of at")
            for x in (0, -1, 2.5, NAN, "x", None, True)
        ),
        *(
            (lambda x=x: Rollback(2, then=x, reason=R), "^Rollback: then is .*, not a ChangeRecipe")
            for x in ("x", Stop(reason=R), SkipStep(reason=R), E5M2, ScaleLearningRate)
        ),
        *(
            (lambda x=x: SkipStep(counts=x, reason=R), "^SkipStep: counts is .*, not True or False")
            for x in (0, "no", None)
        ),
        (lambda: ShiftFormat("NOPE", reason=R), "^ShiftFormat takes a Format, not 'NOPE'"),
        (lambda: ShiftFormat("keep", reason=R), "^ShiftFormat takes a Format, not 'keep'"),
        (lambda: ShiftFormat({"a": 1}, reason=R), "^ShiftFormat: format: name is missing"),
        (lambda: ShiftFormat(E5M2, reason=""), "^ShiftFormat: its reason is text, not ''"),
        (lambda: ChangeRecipe(format={"a": 1}, reason=R), "^ChangeRecipe: format: name is missing"),
        (lambda: ChangeRecipe(layers=3, reason=R), "^ChangeRecipe: layers is 3, not a list of nam"),
        (
            lambda: ChangeRecipe(layers=[3], reason=R),
            r"^ChangeRecipe: layers is \(3,\), not",
        ),
        (lambda: ChangeRecipe(roles=3, reason=R), "^ChangeRecipe: roles is 3, not a list of names"),
        (lambda: ChangeRecipe(roles="x", reason=R), "^ChangeRecipe: unknown role 'x'"),
    ],
)
def test_an_impossible_field_is_named(make, says):
    """With the action."""
    with pytest.raises(BadInput, match=says):
        make()


def test_a_reason_is_needed():
    with pytest.raises(TypeError, match="reason"):
        Stop()


def test_numpys_numbers_are_numbers():
    """The events hold Python's."""
    halved = ScaleLearningRate(np.float32(0.5), reason=R)
    back = Rollback(np.int64(3), then=halved, reason=R)
    assert [type(halved.factor), type(back.steps)] == [float, int]
    assert SkipStep(counts=np.bool_(False), reason=R).counts is False


def test_actions_are_described_as_plain_data():
    """What is written to the events can be JSON."""
    action = Rollback(
        steps=3, then=ChangeRecipe(format=None, scaling=Scaling("none"), reason="b"), reason="a"
    )
    assert describe_action(action) == {
        "action": "Rollback",
        "reason": "a",
        "steps": 3,
        "then": {
            "action": "ChangeRecipe",
            "reason": "b",
            "layers": ["*"],
            "roles": [],
            "format": None,
            "scaling": {
                "kind": "none",
                "power_of_two": False,
                "margin": 1.0,
                "history": 16,
                "block": 32,
                "quantile": None,
            },
        },
    }


# ----------------------------------------------------------------------- in the engine


def acting(shelf, hook="pre_step", name="actor", **by_step):
    """Install an intervention that proposes ``s3=action`` in step 3."""

    @define(eq=False)
    class Actor:
        needs = ("snapshots",)

    def method(self, run, step):
        return by_step.get(f"s{step.index}")

    setattr(Actor, hook, hookimpl(method))
    return shelf.install("intervention", name, Actor)


@pytest.fixture
def watch(shelf):
    """Install a diagnostic that keeps a copy of the whole state at several points."""
    seen = {}

    def copy(run):
        optimizer = run.optimizer.state_dict()
        tensors = {
            f"{i}.{k}": v for i, s in optimizer["state"].items() for k, v in sorted(s.items())
        }
        stored = {n: w.scale.clone() for n, w in run.quantization.stored.items()}
        return {
            "weights": sha256(run.model.state_dict()),
            "optimizer": sha256(tensors),
            "scales": sha256(stored),
            "plan": {n: {o: c and c.format.name for o, c in x.items()}
                     for n, x in run.quantization.plan.items()},
        }  # fmt: skip

    @define(eq=False)
    class Watch:
        @hookimpl
        def pre_backward(self, run, step):
            seen[f"before {step.index}"] = copy(run)

        @hookimpl
        def post_step(self, run, step):
            seen[f"after {step.index}"] = copy(run)

        @hookimpl
        def on_event(self, run, event):
            if event["event"] == "rollback":
                seen["rollback"] = copy(run)

        @hookimpl
        def on_record(self, run, metrics):
            seen.setdefault("learning rates", []).append(metrics["learning_rate"])

        @hookimpl
        def run_end(self, run):
            seen["end"] = copy(run)

    shelf.install("diagnostic", "watch", Watch)
    return seen


@pytest.mark.parametrize("hook", ["pre_backward", "pre_step"])
def test_skip_step_discards_the_update(shelf, watch, start, hook):
    """Weights and moments are bit for bit those from before; the next batch is the next one."""
    acting(shelf, hook, s2=SkipStep(reason=R))
    run = start(["actor", "watch"], recipe="pure", format="E3M4")
    assert watch["before 3"] == watch["before 2"] == watch["after 1"]
    assert "after 2" not in watch
    assert [x["step"] for x in run.metrics_history] == [1, 2, 3]
    assert [x.get("discarded", False) for x in run.metrics_history] == [False, True, False]
    assert run.steps_completed == 3


def test_stop_discards_and_ends(shelf, watch, start):
    """A stop is a result: nothing of the step is kept, and the run says who asked."""
    acting(shelf, s2=Stop(reason="enough"))
    run = start(["actor", "watch"], max_steps=9)
    assert (run.status, run.steps_completed) == ("stopped", 2)
    assert watch["end"] == watch["after 1"]
    (verdict,) = events(run.run_directory, "verdict")
    assert verdict["chosen"] == [{"plugin": "actor", "action": "Stop", "reason": "enough"}]
    assert verdict["outcome"] == "Stop by actor"


def test_the_learning_rate_is_scaled_from_the_next_step(shelf, watch, start):
    """The factors multiply, the schedule goes on below them, and the update is not discarded."""
    plain = start(["watch"], max_steps=5, name="plain", log_interval=1)
    before = watch.pop("learning rates")
    acting(shelf, s2=ScaleLearningRate(factor=0.5, reason=R),
           s3=ScaleLearningRate(factor=0.25, reason=R))  # fmt: skip
    run = start(["actor", "watch"], max_steps=5, name="scaled")
    factors = [1, 1, 0.5, 0.125, 0.125]
    assert watch["learning rates"] == [lr * f for lr, f in zip(before, factors, strict=True)]
    assert "after 2" in watch
    assert state(run.run_directory)["lr_scale"] == 0.125
    assert weights_sha256(run.run_directory) != weights_sha256(plain.run_directory)


def test_a_change_of_recipe_works_from_the_next_step(shelf, watch, start):
    """The step's own update is made, in the old format; the plan is the new one after it."""
    acting(shelf, s2=ShiftFormat(E5M2, reason=R))
    run = start(["actor", "watch"], format="E4M3")
    layer = "transformer.h.0.mlp.c_fc"
    assert watch["after 2"]["plan"][layer]["weight@fwd"] == "E4M3"
    assert watch["before 3"]["plan"][layer]["weight@fwd"] == "E5M2"
    # Without a role, what was not quantized stays so.
    assert watch["before 3"]["plan"]["lm_head"]["weight@fwd"] is None
    assert (run.format_shifted_to, run.shift_step) == ("E5M2", 2)
    (event,) = events(run.run_directory, "recipe")
    assert (event["plugin"], event["from"], event["to"]) == ("actor", ["E4M3"], ["E5M2"])
    assert event["stored_error"] == {}


def test_a_change_works_as_if_the_run_had_begun_with_it(shelf, start):
    """From the next step on everything is as in a run of the new format from those weights."""
    acting(shelf, s1=ShiftFormat(None, reason=R))
    shifted = start(["actor"], format="E4M3", max_steps=2, name="shifted")
    # The float32 run from the same checkpoint: weights and moments as they were after step 1.
    acting(shelf, name="off")
    alone = start(["off"], format="E4M3", max_steps=2, name="alone")
    assert shifted.metrics_history[0] == alone.metrics_history[0]
    line, other = shifted.metrics_history[1], alone.metrics_history[1]
    assert line["loss"] != other["loss"]
    assert line["flushed_rate"] is None, "nothing is quantized any more"
    assert other["flushed_rate"] is not None


def test_an_overflow_rule_that_the_new_format_lacks_is_told(shelf, start):
    """E4M3 has no infinity; it saturates, for good."""
    acting(shelf, s2=ShiftFormat(E4M3, reason=R), s3=ShiftFormat(E5M2, reason=R))
    recipe = {"weight": "FORMAT", "layers": {"*.0.mlp.*": {"activation": TO_INF}}}
    run = start(["actor"], format="E5M2", recipe=recipe).run_directory
    (event,) = events(run, "warning")
    assert event["message"].startswith("E4M3 has no code for the overflow rule 'inf': transformer.")
    assert event["message"].endswith("c_proj:activation@wgrad saturate from now on")
    assert event["step"] == 2


def test_the_stall_of_the_format_before_is_not_that_of_the_next(shelf, start, monkeypatch):
    """The rate of a step is judged in the next one; of the step that shifts, it is not."""
    judged, observe = {}, Detector.observe
    acting(shelf, s3=ShiftFormat(E5M2, reason=R))

    def keep(self, step, loss, **given):
        judged[step] = given["stall"]
        return observe(self, step, loss, **given)

    monkeypatch.setattr(Detector, "observe", keep)
    for every in (1, 2):
        run = start(["actor"], format="E4M3", recipe="pure", log_interval=every, max_steps=9)
        rates = {line["step"]: line["stored_stall_rate"] for line in run.metrics_history}
        for step in range(1, 10):
            last = (step - 1) // every * every
            is_told = step % every == 0 and last > 0 and (last > 3 or step < 3)
            assert judged[step] == (("stored", rates[last]) if is_told else None), (every, step)


def test_a_changed_stored_format_re_encodes_and_keeps_the_moments(shelf, watch, start):
    """The values are put on the new grid at a fresh scale, and the error made is recorded."""
    acting(shelf, s2=ChangeRecipe(roles="stored_weight", format=get_format("E2M1"), reason=R))
    run = start(["actor", "watch"], format="E3M4", recipe="pure")
    assert watch["before 3"]["optimizer"] == watch["after 2"]["optimizer"]
    assert watch["before 3"]["weights"] != watch["after 2"]["weights"]
    (event,) = events(run.run_directory, "recipe")
    parameters = {n for n, p in state(run.run_directory)["model"].items() if p.dim() == 2}
    assert set(event["stored_error"]) == parameters - {"lm_head.weight"}
    assert all(0.01 < e < 0.5 for e in event["stored_error"].values())
    assert watch["before 3"]["plan"]["lm_head"]["stored_weight"] == "E2M1"


def test_a_changed_stored_format_of_one_layer_leaves_the_others(shelf, watch, start):
    """Only the layer that is named is encoded anew."""
    name = "transformer.h.0.mlp.c_fc"
    action = ChangeRecipe(layers=name, roles="stored_weight", format=E5M2, reason=R)
    acting(shelf, s2=action)
    run = start(["actor", "watch"], format="E3M4", recipe="pure")
    (event,) = events(run.run_directory, "recipe")
    assert list(event["stored_error"]) == [f"{name}.weight"]


def test_a_change_to_none_leaves_the_values_where_they_are(shelf, watch, start):
    """Weights that are no longer stored keep their values, and no stall is told of them."""
    acting(shelf, s2=ShiftFormat(None, reason=R))
    run = start(["actor", "watch"], format="E3M4", recipe="pure", max_steps=4)
    assert watch["before 3"]["weights"] == watch["after 2"]["weights"]
    assert run.format_shifted_to == "none"
    stalls = [x["stored_stall_rate"] for x in run.metrics_history]
    assert [s is None for s in stalls] == [False, False, True, True]


def test_a_tied_weight_is_changed_with_either_layer(shelf, watch, start):
    """The head and the embedding share one tensor, so that it has one stored format."""
    action = ChangeRecipe(layers="lm_head", roles="stored_weight", format=E5M2, reason=R)
    acting(shelf, s2=action)
    run = start(["actor", "watch"], format="E3M4", recipe="pure")
    plan = watch["before 3"]["plan"]
    assert plan["lm_head"]["stored_weight"] == plan["transformer.wte"]["stored_weight"] == "E5M2"
    (event,) = events(run.run_directory, "recipe")
    assert list(event["stored_error"]) == ["transformer.wte.weight"]


# ------------------------------------------------------------------------------ rollback


def test_a_rollback_restores_the_state_bit_for_bit(shelf, watch, start):
    """From a snapshot at least ``steps`` old; time does not go back and no line is doubled."""
    acting(shelf, s6=Rollback(steps=3, reason=R))
    run = start(["actor", "watch"], recipe="pure", format="E3M4", max_steps=8, snapshot_interval=2)
    # Snapshots are taken after steps 0, 2 and 4; 6 - 3 is 3, and the newest of at most 3 is 2.
    (event,) = events(run.run_directory, "rollback")
    assert (event["step"], event["to"]) == (6, 2)
    assert (events(run.run_directory, "recipe"), run.format_shifted_to) == ([], None)
    assert watch["rollback"] == watch["after 2"]
    assert watch["before 7"] == watch["after 2"]
    assert watch["rollback"] != watch["after 5"]
    steps = [x["step"] for x in read_lines(run.run_directory / "metrics.jsonl") if "loss" in x]
    assert steps == list(range(1, 9))
    assert run.steps_completed == 8


def test_a_rollback_undoes_a_change_of_recipe(shelf, watch, start):
    """Formats and scales are part of what is restored; ``then`` is carried out after it."""
    acting(
        shelf,
        s3=ShiftFormat(E5M2, reason=R),
        s5=Rollback(steps=3, then=ScaleLearningRate(factor=0.5, reason=R), reason=R),
    )
    run = start(["actor", "watch"], recipe="pure", format="E3M4", max_steps=6, snapshot_interval=1)
    assert watch["before 4"]["plan"] != watch["after 2"]["plan"]
    assert watch["before 6"] == watch["after 2"]
    assert state(run.run_directory)["lr_scale"] == 0.5
    told = [e for e in events(run.run_directory) if e["event"] in ("recipe", "rollback")]
    assert [(e["event"], e["step"], e.get("from"), e["to"]) for e in told] == [
        ("recipe", 3, ["E3M4"], ["E5M2"]),
        ("rollback", 5, None, 2),
        ("recipe", 5, ["E5M2"], ["E3M4"]),
    ]
    assert (told[-1]["plugin"], told[-1]["reason"]) == ("actor", "back to the recipe of step 2")
    assert (run.format_shifted_to, run.shift_step) == ("E3M4", 5)
    assert [s["to"] for s in run.summary["shifts"]] == [["E5M2"], ["E3M4"]]


def test_a_rollback_passes_over_snapshots_that_are_not_finite(shelf, watch, start):
    """The newest snapshot that is old enough holds a NaN, so an older one serves."""

    @define(eq=False)
    class Spoil:
        needs = ("snapshots",)

        @hookimpl
        def pre_step(self, run, step):
            if step.index == 3:
                with torch.no_grad():
                    run.model.get_parameter("transformer.h.0.mlp.c_fc.bias")[0] = math.nan

        @hookimpl
        def on_nan(self, run, step):
            return Rollback(steps=1, reason=R) if step.index == 4 else None

    shelf.install("intervention", "spoil", Spoil)
    run = start(["spoil", "watch"], max_steps=6, snapshot_interval=1)
    (event,) = events(run.run_directory, "rollback")
    assert (event["step"], event["to"]) == (4, 2)
    assert watch["before 5"] == watch["after 2"]
    assert [math.isfinite(x["loss"]) for x in run.metrics_history] == [True] * 3 + [False] + [
        True
    ] * 2


def test_a_rollback_without_a_snapshot_names_the_plugin(shelf, start):
    """Nobody can go back to where nothing was kept: a failure, not bad input."""
    acting(shelf, s2=Rollback(steps=5, reason=R))
    with pytest.raises(AltcoreError, match=r"Rollback by actor .*at least 5 steps old") as caught:
        start(["actor"])
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (ShiftFormat(E5M2, layers="nothing", reason=R), "nothing matches no layer"),
        (
            ChangeRecipe(layers="transformer.wte", roles="activation", format=E5M2, reason=R),
            "no layer has what the change asks for",
        ),
    ],
)
def test_a_change_that_cannot_be_made_names_the_plugin(shelf, start, action, says):
    """It is the plugin's failure while the run goes: exit code 1, not that of bad input."""
    acting(shelf, s2=action)
    with pytest.raises(AltcoreError, match=f"ChangeRecipe by actor .*{says}") as caught:
        start(["actor"], format="E4M3")
    assert caught.value.exit_code == 1


def test_a_change_passes_by_the_layers_that_cannot_have_it(shelf, watch, start):
    """Activations of every layer are those of the layers that have some."""
    acting(shelf, s2=ChangeRecipe(roles="activation", format=E5M2, reason=R))
    start(["actor", "watch"], format="E4M3")
    plan = watch["before 3"]["plan"]
    assert plan["transformer.h.0.mlp.c_fc"]["activation@fwd"] == "E5M2"
    assert plan["transformer.wte"]["activation@fwd"] is None


def test_a_format_that_is_not_installed_can_be_rolled_back_to(shelf, watch, start):
    """From Python a format may be an object that no distribution names."""
    from altcore import float_format

    acting(shelf, s2=ShiftFormat(E5M2, reason=R), s3=Rollback(steps=2, reason=R))
    mine = float_format("MINE", 3, 2)
    run = start(["actor", "watch"], format=mine, max_steps=4, snapshot_interval=1)
    assert run.status == "finished"
    assert watch["before 4"]["plan"]["transformer.h.0.mlp.c_fc"]["weight@fwd"] == "MINE"


# --------------------------------------------------------------------- what is not finite


def nan_in(shelf, steps, **extra):
    """Install an intervention whose loss is NaN in ``steps``; ``on_nan`` answers."""

    @define(eq=False)
    class Nan:
        answers: dict = field(factory=lambda: dict(extra), init=False)
        needs = ("snapshots",)

        @hookimpl
        def pre_backward(self, step):
            if step.index in steps:
                step.loss = step.loss * math.nan

        @hookimpl
        def on_nan(self, step):
            return self.answers.get(f"s{step.index}")

    return shelf.install("intervention", "nan", Nan)


def test_by_default_a_nonfinite_step_is_discarded(shelf, watch, start):
    """Weights stay, the line says so, and the first one alone leaves an anomaly checkpoint."""
    nan_in(shelf, [2, 4])
    run = start(["nan", "watch"], max_steps=5)
    assert watch["before 3"] == watch["after 1"]
    assert watch["before 5"] == watch["after 3"]
    assert [x.get("discarded", False) for x in run.metrics_history] == [False, True] * 2 + [False]
    assert checkpoints(run.run_directory) == [
        "anomaly_00000002",
        "step-00000000",
        "step-00000005",
    ]
    assert run.status == "finished"
    assert ("steps", "5, 2 of them discarded") in lines(run.summary)
    assert state(run.run_directory, "anomaly_00000002")["step"] == 2


def test_spent_patience_is_a_collapse(shelf, watch, start):
    """nan_patience consecutive ones stop the run; a finite one in between starts anew."""
    nan_in(shelf, [2, 3, 5, 6, 7, 8])
    run = start(["nan", "watch"], max_steps=20, nan_patience=3)
    assert (run.status, run.steps_completed, run.failure_step) == ("collapsed", 7, 7)
    assert "3 consecutive steps" in run.failure_reason
    assert watch["end"] == watch["after 4"]
    assert [e["cause"] for e in events(run.run_directory, "collapse")] == ["nan_patience"]


@pytest.mark.parametrize("patience", [1, 2])
def test_a_shift_starts_the_count_anew(shelf, start, patience):
    """The step that led to the shift was in the old format, and does not count for the new one."""
    last = [patience + 1 + k for k in range(patience)]
    shift = {f"s{patience}": ShiftFormat(E5M2, reason=R)}
    nan_in(shelf, [*range(1, patience + 1), *last], **shift)
    run = start(["nan"], format="E4M3", max_steps=20, nan_patience=patience)
    assert (run.status, run.failure_step) == ("collapsed", 2 * patience)
    counts = [e["consecutive"] for e in events(run.run_directory, "nan")]
    assert counts == [*range(1, patience + 1)] * 2


def test_a_shift_to_the_formats_that_are_there_is_none(shelf, start):
    """The event tells of the action; the summary counts no shift."""
    same = ShiftFormat(get_format("E4M3"), reason=R)
    nan_in(shelf, [1, 2], s1=same, s2=ShiftFormat(E5M2, reason=R))
    run = start(["nan"], format="E4M3", max_steps=3, nan_patience=5)
    assert [e["to"] for e in events(run.run_directory, "recipe")] == [["E4M3"], ["E5M2"]]
    assert [shift["to"] for shift in run.summary["shifts"]] == [["E5M2"]]


def test_an_answer_to_a_collapse_saves_the_run(shelf, start):
    """on_collapse may shift the format; the run then goes on and may collapse again."""
    nan_in(shelf, [2, 3, 4, 5])
    formats = [E5M2, get_format("BF16")]

    @define(eq=False)
    class Save:
        @hookimpl
        def on_collapse(self, evidence):
            return ShiftFormat(formats.pop(0), reason=evidence["reason"])

    shelf.install("intervention", "save", Save)
    run = start(["nan", "save"], format="E4M3", max_steps=6, nan_patience=2)
    assert (run.status, run.steps_completed) == ("finished", 6)
    assert (run.format_shifted_to, run.shift_step, run.failure_step) == ("BF16", 5, 3)
    verdicts = events(run.run_directory, "verdict")
    assert [(v["step"], v["cause"]) for v in verdicts] == [(3, "nan_patience"), (5, "nan_patience")]


def test_an_action_replaces_the_default_but_never_lets_the_update_through(shelf, watch, start):
    """ScaleLearningRate on a NaN step: carried out, and the step is discarded all the same."""
    nan_in(shelf, [2], s2=ScaleLearningRate(factor=0.5, reason=R))
    run = start(["nan", "watch"])
    assert watch["before 3"] == watch["after 1"]
    assert state(run.run_directory)["lr_scale"] == 0.5
