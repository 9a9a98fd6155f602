"""Causes and repairs of planted faults whose losses are computed: nothing is trained."""

import zlib

import pytest
from attrs import define, field

from altcore.recipes import Layer, read_recipe
from altcore.study.cause import cause_of
from altcore.study.explain import Explanation
from altcore.study.outcome import Outcome

LAYERS = [Layer("wte", "embedding"), Layer("h.0.fc", "linear"), Layer("h.1.fc", "linear")]
STEPS = 10


@define
class Planted:
    """Stands for a runner: an arm's loss is 1, and the cost of each of its casts."""

    cost: object
    """Of a layer, an operand and its cast."""
    stall: object
    """Of a cast of stored weights."""
    spread: float = 0.0
    """Added to or taken from the losses of changes, in every other seed."""
    planned: int = 0
    trials: list = field(factory=list)
    base: object = type("Base", (), {"max_steps": STEPS})

    def outcomes(self, trials):
        """The outcome of each trial, with some noise."""
        self.trials += trials
        return [self.outcome(trial.arm, trial.seed) for trial in trials]

    def outcome(self, arm, seed):
        """An outcome of an arm; the frozen control has learned nothing."""
        casts = [(layer, o, c) for layer, own in arm.casts.items() for o, c in own.items()]
        noise = zlib.crc32(f"{arm.key} {seed}".encode()) % 100 / 1e6
        loss = 1 + noise + sum(self.cost(*cast) for cast in casts) + 5 * bool(arm.freeze)
        loss += self.spread * (-1) ** seed * arm.key.startswith("change")
        rates = [self.stall(c) for _, o, c in casts if o == "stored_weight"]
        stalled = sum(rates) / len(rates) if rates else None
        return Outcome((loss,) * STEPS, False, 9.0, (), learned=True, stalled=stalled)


def explained(recipe, cost, stall=lambda cast: 0.5, spread=0.0):
    """The answer of an explanation of a recipe whose casts cost so much."""
    plan = read_recipe(recipe).resolve(LAYERS)
    runner = Planted(cost, stall, spread)
    study = Explanation(runner, plan, [1, 2, 3, 4], within=0.05, given_rates=[1.0])
    found = study.explain()
    assert len({(t.arm.key, t.seed) for t in runner.trials}) <= study.runs_at_most
    return found


def is_stochastic(cast):
    """Whether a cast is rounded stochastically."""
    return cast.rounding == "stochastic"


def changed_to(cast, which):
    """Whether a cast's format was extended in some direction."""
    return cast.element.name.endswith(f"+{which}")


def test_rounding_is_named_and_repaired_first():
    """The same format rounded stochastically trains; finer helps, too, but less, and costs more."""

    def cost(layer, operand, cast):
        if operand != "stored_weight":
            return 0.0
        return 0.01 if is_stochastic(cast) else 0.2 if changed_to(cast, "finer") else 0.7

    def stall(cast):
        return 0.925 if is_stochastic(cast) else 0.993

    found = explained({"weight": "E7M0", "stored_weight": "E7M0"}, cost, stall)
    assert (found["operand"], found["cause"]) == ("stored_weight", "stochastic")
    [cause] = found["causes"]
    assert cause["roundings"] == ["nearest-even"]
    rows = cause["counterfactuals"]
    assert rows["stochastic"]["recovered"] == pytest.approx(0.69 / 0.7, abs=1e-3)
    assert rows["finer"]["repairs"]
    assert not rows["below"]["repairs"]
    # How often a weight moves says little: nearly as rarely in the repair.
    for row, rate in (
        (cause["gap"], 0.993),
        (found["full"], 0.993),
        (rows["stochastic"], 0.925),
        (found["candidates"][0], 0.925),
    ):
        assert row["stalled"] == pytest.approx(rate)
    assert found["arms"]["F"]["stalled"] is None
    assert found["recommendation"] == "stored_weight: stochastic rounding"
    assert len(found["candidates"]) == 1


@pytest.mark.parametrize(
    ("left", "spread", "recommended", "verdicts"),
    [
        (0.04, 0.03, ": stochastic rounding", ["cannot tell"]),
        (0.06, 0.03, ": stochastic rounding", ["cannot tell"]),
        (0.06, 0.0, ": stochastic rounding", ["beyond", "within"]),
        (0.1, 0.03, " of h.0 left in float32", ["cannot tell", "cannot tell"]),
        (0.1, 0.0, " of h.0 left in float32", ["beyond", "within"]),
    ],
)
def test_the_cheapest_change_that_closes_the_gap_is_recommended(
    left, spread, recommended, verdicts
):
    """A dearer one is tried if it does not, or if what is left is known to be too much."""

    def cost(layer, operand, cast):
        return left if is_stochastic(cast) else 0.7

    recipe = {"layers": {"h.0.fc": {"stored_weight": "E7M0"}}}
    found = explained(recipe, cost, spread=spread)
    assert found["recommendation"] == f"stored_weight{recommended}"
    assert [change["verdict"] for change in found["candidates"]] == verdicts
    assert found["candidates"][0]["closed"] == pytest.approx(1 - left / 0.7, abs=1e-3)


@pytest.mark.parametrize(
    ("recovered", "cause"),
    [
        ({"stochastic": 0.8, "finer": 0.95}, "stochastic"),
        ({"stochastic": 0.4, "finer": 0.95}, "finer"),
        ({"stochastic": 0.6, "below": 1.0, "finer": 0.9}, "below"),
        ({"stochastic": 0.4, "finer": 0.4}, None),
    ],
)
def test_values_that_do_under_stochastic_rounding_are_not_too_coarse(recovered, cause):
    """Finer values always help nearest rounding, so that alone shows nothing."""
    rows = {c: {"recovered": r, "repairs": r >= 0.5} for c, r in recovered.items()}
    assert cause_of(rows) == cause


def test_every_guilty_operand_is_asked_for_its_cause():
    """Two faults, two causes; the change repairs both."""

    def cost(layer, operand, cast):
        if operand == "gradient@dgrad":
            return 0.0 if changed_to(cast, "finer") else 0.4
        if operand == "activation@wgrad":
            return 0.0 if is_stochastic(cast) else 0.2
        return 0.0

    found = explained({"activation": "E4M3", "gradient": "E5M2"}, cost)
    told = [(cause["operands"], cause["cause"]) for cause in found["causes"]]
    assert told == [(["gradient@dgrad"], "finer"), (["activation@wgrad"], "stochastic")]
    assert found["cause"] == "finer"
    assert [c["change"] for c in found["candidates"]] == [
        "activation@wgrad: stochastic rounding",
        "gradient@dgrad of h.0: a format with two more mantissa bits; "
        "activation@wgrad: stochastic rounding",
        "gradient@dgrad: a format with two more mantissa bits; "
        "activation@wgrad: stochastic rounding",
    ]
    assert found["candidates"][-1]["verdict"] == "within"


def test_what_has_no_counterfactual_has_no_cause():
    """The widest format, already rounded stochastically: only float32 is left to try."""
    cast = {"format": "TF32", "rounding": "stochastic"}
    found = explained({"activation@fwd": cast}, lambda *_: 0.2)
    [cause] = found["causes"]
    assert (cause["counterfactuals"], cause["cause"]) == ({}, None)
    assert cause["gap"]["mean"] > 0
    assert found["recommendation"] == "activation@fwd left in float32"


def test_a_scale_is_tried_before_a_format():
    """What is too large in an unscaled format, and does with a scale."""

    def cost(layer, operand, cast):
        is_guilty = operand == "activation@fwd" and layer == "h.1.fc"
        return 0.0 if not is_guilty or cast.uses_amax or changed_to(cast, "above") else 0.4

    found = explained({"activation@fwd": {"format": "E4M3", "scaling": "none"}}, cost)
    assert (found["cause"], found["layer"]) == ("above", "h.1.fc")
    assert found["recommendation"] == "activation@fwd: scaled by its exact amax"


@pytest.mark.parametrize(
    ("helps", "texts"),
    [
        (
            "finer",
            [
                "stored_weight of h.0: a format with two more mantissa bits",
                "stored_weight: a format with two more mantissa bits",
                "stored_weight left in float32",
            ],
        ),
        (None, ["stored_weight of h.0 left in float32", "stored_weight left in float32"]),
    ],
)
def test_no_change_is_tried_twice(helps, texts):
    """With one operand, to leave it in float32 is to leave the factor; none helps enough."""

    def cost(layer, operand, cast):
        size = 0.6 if layer == "h.0.fc" else 0.4
        return size / 3 if helps and changed_to(cast, helps) else size

    found = explained({"layers": {"<linear>": {"stored_weight": "E3M4"}}}, cost)
    assert [c["change"] for c in found["candidates"]] == texts
    told = [c["verdict"] == "within" for c in found["candidates"]]
    assert told == [False] * (len(texts) - 1) + [True]
