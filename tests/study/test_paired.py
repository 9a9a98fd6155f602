"""Paired runs: which are made before an arm stops, and what unequal numbers of them say."""

import math

import pytest
from helpers_contenders import made

from altcore.estimates import LEVEL
from altcore.study.arms import Arm
from altcore.study.compare import Comparison
from altcore.study.factors import judge_factors
from altcore.study.outcome import Outcome
from altcore.study.paired import PairedRuns, is_not_the_worst
from altcore.study.sequential import once

SEEDS = [1, 2, 3, 4, 5]
NOISE = [0.03, -0.04, 0.02, 0.01, -0.02]
"""Of an arm's loss, by seed."""


class Losses:
    """Stands for the runner: each arm ends at its loss, with noise if it is no twin or E3M2."""

    base = type("Base", (), {"max_steps": 10, "grad_clip": 0.0, "eval_steps": 1})
    planned = 0
    learned = True

    def __init__(self, losses):
        self.losses = {"twin": 2.0, **losses}
        self.made = []

    def outcomes(self, trials):
        """Return an outcome of each, and note that it was asked for."""
        self.made += [(t.arm.key, t.seed) for t in trials]
        return [self._outcome(t.arm.key, NOISE[(t.seed - 1) % 5]) for t in trials]

    def _outcome(self, key, noise):
        noise *= 2 if key.startswith("frozen") else 1  # or it would be equally far from all arms
        loss = self.losses[key] + (0.0 if key.startswith(("twin", "E3M2")) else noise)
        return Outcome((loss,) * 10, False, 3.0, (), learned=self.learned)

    def seeds_of(self, key):
        """The seeds that an arm was run with."""
        return [seed for name, seed in self.made if name == key]


def runs_of(within=0.05, **losses):
    """The paired runs of five seeds."""
    return PairedRuns(Losses(losses), SEEDS, within)


def arms_called(*keys):
    return {key: Arm(key, {}) for key in keys}


def test_an_arm_stops_once_it_is_settled():
    """One that is far worse after three seeds; the twin and those in doubt run on, once each."""
    runs = runs_of(far=4.0, near=2.03)
    rows = runs.run_table(arms_called("far", "near"))
    assert runs.runner.seeds_of("far") == SEEDS[:3]
    assert runs.runner.seeds_of("near") == runs.runner.seeds_of("twin") == SEEDS
    assert (rows["far"]["n"], rows["far"]["guilty"]) == (3, True)
    assert (rows["near"]["n"], rows["near"]["guilty"]) == (5, False)


def test_an_arm_that_is_near_enough_stops_too():
    """Its interval ends within the distance that counts as training."""
    runs = runs_of(within=0.5, near=2.03)
    assert runs.run_table(arms_called("near"))["near"]["n"] == 3


def test_all_seeds_can_be_asked_for():
    """With one look no arm stops, and intervals are those of Student's t alone."""
    runs = PairedRuns(Losses({"far": 4.0}), SEEDS, 0.05, schedule=once)
    assert runs.run_table(arms_called("far"))["far"]["n"] == 5


def test_the_worst_needs_no_more_of_those_that_are_better():
    """They stop where they cannot be the worst any more, though nobody knows what they cost."""
    runs = runs_of(far=4.0, near=2.03)
    rows = runs.run_table(arms_called("far", "near"), is_not_the_worst)
    assert [row["n"] for row in rows.values()] == [3, 3]
    rows = runs_of(near=2.03, other=2.02).run_table(arms_called("near", "other"), is_not_the_worst)
    assert [row["n"] for row in rows.values()] == [5, 5]


def test_differences_are_over_the_seeds_that_both_have():
    """And so are verdicts: the control runs as far as the arm it belongs to."""
    runs = runs_of(far=3.0, near=2.03, frozen=5.0)
    arms = arms_called("far", "near")
    runs.run_table(arms, beside={"far": [Arm("frozen", {})]})
    assert runs.runner.seeds_of("frozen") == SEEDS[:3]
    assert runs.difference(runs.gaps("near"), runs.gaps("far")).n == 3
    verdict = runs.verdict("far", "frozen")
    assert (verdict["gap"]["n"], verdict["ahead_of_frozen"]["n"]) == (3, 3)
    assert (verdict["learned"], verdict["twin_learned"]) == (3, 3)
    assert runs.has_verdict("far", "frozen")


@pytest.mark.parametrize(("arm", "settled"), [(2.0, False), (3.0, True)])
def test_a_verdict_is_what_settles_an_arm(arm, settled):
    """In doubt is one beside the distance that counts as training."""
    runs = runs_of(within=0.01, arm=arm, frozen=4.0)
    runs.run(arms_called("arm", "frozen").values(), count=3)
    assert runs.has_verdict("arm", "frozen") is settled


def test_arms_between_two_others_take_rates_between_theirs():
    """The best of both rates and the one halfway, on the seeds that choose; it is at no edge."""
    runs = PairedRuns(Losses({"far": 4.0}), SEEDS, 0.05, rates={"twin": 9.0, "full": 1.0})
    runs.choose_rates_between([Arm("far", {})], Arm("full", {}))
    assert sorted(runs.curves["far"].losses) == [1.0, 3.0, 9.0]
    assert (runs.rates["far"], runs.curves["far"].edge) == (1.0, None)
    assert {len(losses) for losses in runs.curves["far"].losses.values()} == {2}
    runs.rates["full"] = 9.0
    runs.choose_rates_between([Arm("near", {})], Arm("full", {}))
    assert (runs.rates["near"], runs.curves["near"].losses) == (9.0, {9.0: []})


def test_a_rate_between_that_leads_clearly_has_no_second_seed():
    """The rates at both ends are those of arms whose second seed did not diverge."""

    class Bowl(Losses):
        def outcomes(self, trials):
            self.made += [(t.rate, t.seed) for t in trials]
            return [Outcome((abs(t.rate - 3.0),) * 10, False, 3.0, ()) for t in trials]

    runs = PairedRuns(Bowl({}), SEEDS, 0.05, rates={"twin": 9.0, "full": 1.0})
    runs.choose_rates_between([Arm("far", {})], Arm("full", {}))
    assert runs.runner.made == [(1.0, 1001), (3.0, 1001), (9.0, 1001)]
    assert runs.rates["far"] == 3.0


def test_the_null_arm_runs_as_far_as_the_full_one():
    """It says what can be detected with all seeds, and the verdicts that follow know it."""
    sets = {frozenset(s): Arm(s or "twin", {}) for s in ("", "F")}
    runs = runs_of(F=2.03, frozen=6.0, null=2.0)
    found = judge_factors(runs, sets, Arm("frozen", {}), {}, Arm("null", {}))
    assert runs.runner.seeds_of("null") == runs.runner.seeds_of("F")
    assert found["null"]["detectable"] == runs.detectable > 0


def test_the_headline_goes_by_the_p_of_the_table():
    """A gap that the correction does not let stand is not distinguishable there either."""
    runs = runs_of(arm=2.1, frozen=6.0)
    runs.run(arms_called("arm", "frozen").values())
    assert runs.verdict("arm", "frozen")["distinguishable"]
    assert not runs.verdict("arm", "frozen", p=0.051)["distinguishable"]


def test_the_first_question_needs_no_correction():
    """The whole gap is told by its own p, and the others by theirs among themselves."""
    runs = runs_of(all=2.042, one=2.042, other=2.0)
    rows = runs.run_table(arms_called("all", "one", "other"), first="all")
    assert rows["all"]["p_holm"] == rows["all"]["p"] < LEVEL < rows["one"]["p_holm"]
    assert rows["one"]["p_holm"] == 2 * rows["one"]["p"]
    assert [name for name, row in rows.items() if row["guilty"]] == ["all"]


def test_nothing_is_guilty_unless_the_first_question_says_so():
    """That is what keeps the error of the table, which the first p does not share."""
    runs = runs_of(all=2.0, one=2.5)
    alone = runs.run_table(arms_called("all", "one"))
    assert [alone[name]["guilty"] for name in ("all", "one")] == [False, True]
    rows = runs.run_table(arms_called("all", "one"), first="all")
    assert not any(row["guilty"] for row in rows.values())


def test_the_full_arm_goes_on_until_it_is_known_to_be_guilty():
    """Though a twin that did not learn leaves no verdict: what is looked for next depends on it."""
    runs = runs_of(U=2.1, frozen=6.0)
    runs.runner.learned = False
    sets = {frozenset(): Arm("twin", {}), frozenset("U"): Arm("U", {})}
    found = judge_factors(runs, sets, Arm("frozen", {}), {})["full"]
    assert (found["verdict"], found["n"]) == ("cannot tell", 5)
    assert found["distinguishable"]


def test_nothing_is_guilty_beside_a_twin_that_ended_early():
    """Gaps to it are not known, and an arm that diverges as it does is no worse."""
    runs = runs_of(U=2.1, frozen=6.0, null=2.0)
    lost = Outcome((2.0, math.nan), True, 3.0, (), learned=False)
    runs.outcomes |= {(key, seed): lost for key in ("twin", "U") for seed in runs.seeds}
    sets = {frozenset(): Arm("twin", {}), frozenset("U"): Arm("U", {})}
    found = judge_factors(runs, sets, Arm("frozen", {}), {}, Arm("null", {}))
    assert (found["arms"]["U"]["guilty"], found["full"]["distinguishable"]) == (False, False)
    assert found["full"]["reason"] == "the twin did not learn in 5 of 5 seeds"
    assert math.isnan(found["null"]["detectable"])


def test_effects_use_every_seed_that_their_arms_have():
    """What stops early is the sets with the factor at fault; the others keep their seeds."""
    sets = {frozenset(s): Arm(s or "twin", {}) for s in ("", "F", "U", "FU")}
    losses = {"F": 2.03, "U": 4.0, "FU": 4.1, "frozen": 6.0}
    found = judge_factors(runs_of(**losses), sets, Arm("frozen", {}), {})
    assert {key: row["n"] for key, row in found["effects"].items()} == {"F": 5, "U": 3, "F×U": 3}
    assert {key: row["n"] for key, row in found["shapley"].items()} == {"F": 3, "U": 3}
    assert found["shapley"]["U"]["mean"] == pytest.approx(2.035, abs=0.01)
    assert found["full"]["n"] == found["frozen"]["n"] == 3


def compared(against=None, **gaps):
    """Compare formats with these gaps to the twin at one rate; return the answer and the runner."""
    arms = made(formats=list(gaps))
    losses = {"twin-adamw": 2.0, "frozen-master-adamw": 9.0}
    losses |= {c.key: 2.0 + gaps[c.name] for c in arms}
    keys = {"adamw": {"optimizer": "adamw"}}
    study = Comparison(Losses(losses), arms, SEEDS, 0.05, keys, against=against, given_rates=[1.0])
    return study.compare(), study.runner


def test_a_contender_stops_once_its_verdict_is_settled():
    """The twin and the control run as far as any other; rows are judged by their own seeds."""
    found, runner = compared(E4M3=0.0, E2M1=3.0)
    rows = {row["arm"]: row for row in found["contenders"]}
    assert runner.seeds_of("E2M1-master-adamw") == SEEDS[:3]
    assert runner.seeds_of("E4M3-master-adamw") == runner.seeds_of("twin-adamw") == SEEDS
    assert (rows["E2M1"]["gap"]["n"], rows["E2M1"]["verdict"]) == (3, "beyond")
    assert (rows["E4M3"]["gap"]["n"], rows["E4M3"]["verdict"]) == (5, "within")
    assert found["twins"]["adamw"]["learned"] == 5


class Overfitted(Losses):
    """The higher the learning rate, the better the runs learn their batches, and only these."""

    def outcomes(self, trials):
        return [
            Outcome((9.0 - t.rate,) * 10, False, 9.0, (), True, evaluation=evaluated(t.rate))
            for t in trials
        ]


def evaluated(loss):
    """An evaluation that came to a loss."""
    return {"val_loss": loss, "val_items": 8}


@pytest.mark.parametrize(("metric", "best"), [("train", 3.0), ("val", 1.0)])
def test_learning_rates_are_chosen_by_the_loss_that_is_compared(metric, best):
    """That of the last training steps, or of validation."""
    keys = {"adamw": {"optimizer": "adamw"}}
    runner, arms = Overfitted({}), made(formats=["E4M3"])
    study = Comparison(runner, arms, SEEDS, 0.05, keys, metric=metric, given_rates=[1.0, 3.0])
    found = study.compare()["learning_rates"]
    assert {key: choice["factor"] for key, choice in found.items()} == dict.fromkeys(found, best)
    assert found["twin-adamw"]["curve"][0]["losses"][0] == (8.0 if metric == "train" else 1.0)


def test_arms_that_are_held_against_each_other_stop_together():
    """Both are far from the twin, and whether they differ takes more seeds than that."""
    found, runner = compared("E3M2", E2M1=3.05, E3M2=3.0, E5M2=2.0)
    seeds = {c: runner.seeds_of(f"{c}-master-adamw") for c in ("E2M1", "E3M2", "E5M2")}
    assert seeds == {"E2M1": SEEDS, "E3M2": SEEDS, "E5M2": SEEDS[:3]}
    told = {d["arm"]: (d["difference"]["n"], d["verdict"]) for d in found["differences"]}
    assert told == {"E2M1": (5, "worse"), "E5M2": (3, "better")}
