"""What too few steps or seeds, or rates at the edge, leave open is said."""

import sys

import pytest
from attrs import define

from altcore import BadInput
from altcore.study import Entrants, Options, cautions, run_compare, run_explain
from altcore.study.outcome import Outcome
from altcore.study.rates import Curve
from altcore.study.sequential import looks, once


def test_too_few_steps_and_seeds():
    """Where the smallest significant gap is larger than gaps are; docs/studies.md has a table."""
    assert cautions.before_running(200, looks(5), rows=7) == []
    (seeds,) = cautions.before_running(200, looks(2), rows=1)
    assert seeds.startswith("2 seeds are too few to tell small differences: in a table of 1 rows")
    assert "9.0 standard deviations" in seeds
    assert "5.1 standard deviations" in cautions.before_running(200, looks(3), 4)[0]
    (steps,) = cautions.before_running(49, looks(5), rows=7)
    assert steps.endswith("losses are compared over the last 5")
    assert cautions.before_running(49, looks(5), 7, "val")[0].endswith("whether a format trains")
    # A study of many rows and five seeds can tell more if it does not stop early.
    assert cautions.before_running(200, looks(5), rows=16) != []
    assert cautions.before_running(200, once(5), rows=16) == []


def test_too_few_batches_of_validation():
    """Where arms are compared by it, and a loss by itself is less certain than the distance."""
    few, some = ({"batches": 8, "enough": n} for n in (32, 8))
    (said,) = cautions.about_validation("val", few)
    assert "over 8 batches is less certain than --within: 32 are enough" in said
    assert cautions.about_validation("val", some) == cautions.about_validation("train", few) == []


def test_rates_at_the_edge():
    """Both edges are named with the arms; a control that does not learn is left out."""

    def best_at(place):
        return Curve({rate: [abs(place - i)] for i, rate in enumerate((1 / 3, 1.0, 3.0))})

    curves = {"twin": best_at(2), "a": best_at(0), "b": best_at(1), "c": best_at(2)}
    high, low = cautions.about_rates({**curves, "frozen-a": best_at(0)})
    assert high.startswith("the best learning rate of twin (3), c (3) is the highest that was")
    assert low.startswith("the best learning rate of a (0.333) is the lowest that was tried: a low")


def test_chaos_wider_than_the_distance():
    """It is said where a gap of the distance in question could not be detected."""
    nulls = [{"detectable": 0.02}, {"detectable": 0.08}]
    (found,) = cautions.about_chaos(nulls, 0.05)
    assert found.startswith("chaos alone hides gaps below 0.08, and 0.05 is the distance in quest")
    assert cautions.about_chaos(nulls, 0.08) == cautions.about_chaos([], 0.0) == []


def test_twins_that_nothing_can_be_held_against():
    """One that diverged, and one whose seeds are the same run."""
    learned, lost = Outcome((2.0, 1.0), False, None, ()), Outcome((2.0,), True, None, ())
    other = Outcome((2.0, 1.1), False, None, ())
    twins = {"A": {1: learned, 2: lost}, "B": {1: learned, 2: learned}, "C": {1: learned, 2: other}}
    diverged, same = cautions.about_runs_of_twins(twins)
    assert diverged == "A diverged with seed 2: do not rely on gaps to it"
    assert same.startswith("B has the same losses with every seed, to the bit")


@pytest.fixture
def asked(start, tmp_path):
    """The options of a tiny study, and what it tells."""
    tiny = {"gpt.size": "tiny", "gpt.data": str(start.corpus), "max_steps": 5, "device": "cpu"}
    told = []
    keys = [(k, v, None) for k, v in tiny.items()]
    return Options(
        None, keys, 2, tell=told.append, folder=tmp_path / "studies", rates=1, null=False
    ), told


def test_scipy_is_missed_before_the_first_run(monkeypatch, asked):
    options, told = asked
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(BadInput, match="intervals over seeds need scipy"):
        run_compare(options, Entrants(["E4M3"]))
    with pytest.raises(BadInput, match="intervals over seeds need scipy"):
        run_explain(options)
    assert not options.folder.exists()
    assert told == []


def test_every_contender_is_tried_before_the_first_run(asked, shelf):
    """An optimizer that cannot be built for this model; runs of others would be for nothing."""

    @define(eq=False)
    class Fussy:
        def build(self, named_parameters, grid_of):
            raise BadInput("fussy wants another model")

    shelf.install("optimizer", "fussy", Fussy)
    options, told = asked
    with pytest.raises(BadInput, match="fussy wants another model"):
        run_compare(options, Entrants(["E4M3"], optimizers=["fussy", "adamw"]))
    assert not list(options.folder.glob("*/runs/*"))
    assert told == []


def test_cautions_come_before_the_runs_and_beside_the_answer(asked):
    options, told = asked
    found, folder = run_compare(options, Entrants(["E4M3"]))
    first = next(i for i, line in enumerate(told) if " left" in line)
    before = [line for line in told[:first] if line.startswith("caution: ")]
    assert [c.removeprefix("caution: ") for c in before] == found["about"]["cautions"][:2]
    page = (folder / "compare.md").read_text()
    assert "## Cautions\n\n- 5 steps are too few to tell whether a format trains" in page


def test_a_twin_that_did_not_learn_is_a_caution():
    [told] = cautions.about_twins({"adamw": {"learned": 2}, "sgd": {"learned": 3}}, 3)
    assert told.startswith("the float32 twin (adamw) learned in 2 of 3 seeds, so nothing is told")
