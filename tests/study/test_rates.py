"""The choice of learning rates: extended, refined, on seeds of its own, and no dearer than need be.

No run is made: each arm's loss is a function of its rate and seed.
"""

import json
import math

import pytest
from attrs import define, field
from click.testing import CliRunner

from altcore import BadInput
from altcore.cli import cli
from altcore.study import Options
from altcore.study.arms import Arm
from altcore.study.outcome import Outcome
from altcore.study.rates import BEYOND, CONTENDERS, GRID, checked, choose, runs_at_most
from altcore.study.record import Question

ROOT = math.sqrt(3)


class Base:
    max_steps = 10


@define
class Losses:
    """A runner whose runs end with the loss that a function of arm, rate and seed gives."""

    of: dict
    made: list = field(factory=list)
    rounds: int = 0
    base: type = Base

    def outcomes(self, trials):
        self.rounds += 1
        self.made += [(t.arm.key, t.rate, t.seed) for t in trials]
        losses = [self.of[t.arm.key](t.rate, t.seed) for t in trials]
        return [Outcome((loss,) * 10, loss == math.inf, None, ()) for loss in losses]


def bowl(at):
    """A loss that is least at one rate, and grows with the logarithm's square."""
    return lambda rate, seed: math.log(rate / at, 3) ** 2


def chosen(loss, rates=None, margin=0.05, around=1.0):
    """Return an arm's curve, and the rates and seeds of its runs."""
    runner = Losses({"a": loss})
    curve = choose(runner, [Arm("a", {})], 0, margin, rates, {"a": around})["a"]
    return curve, [(rate, seed) for _, rate, seed in runner.made]


@pytest.mark.parametrize(
    ("at", "best", "edge"),
    [
        (1.0, 1.0, None),
        (1.5, ROOT, None),
        (9.0, 9.0, None),
        (27.0, 27.0, "highest"),
        (1e4, 27.0, "highest"),
        (1 / 9, 1 / 9, None),
        (1e-4, 1 / 27, "lowest"),
    ],
)
def test_the_grid_follows_the_best(at, best, edge):
    """By factors of 3, two more at most; then once by its root. What stays at the edge says so."""
    curve, made = chosen(bowl(at))
    assert curve.best == pytest.approx(best)
    assert curve.edge == edge
    assert len(made) <= runs_at_most(None)
    assert min(curve.losses) >= 1 / 27 * 0.999
    assert max(curve.losses) <= 27 * 1.001


def test_a_rate_that_lost_clearly_has_no_second_seed():
    """The best runs again, and the next two only if they are within the margin of it."""
    _, made = chosen(bowl(0.9))
    assert [r for r, n in made if n == 0] == pytest.approx([1, 3, GRID[0], 1 / ROOT])
    assert [rate for rate, number in made if number == 1] == [1.0]
    _, made = chosen(bowl(0.9), margin=0.3)
    assert [rate for rate, number in made if number == 1] == [1.0, pytest.approx(1 / ROOT)]
    _, made = chosen(lambda rate, seed: 1.0)
    assert len(made) == len(GRID) + BEYOND + 1 + CONTENDERS


def test_a_lower_rate_is_not_tried_where_the_middle_one_lost_clearly_to_the_higher():
    """A loss with one least value is there no less; where both are near, it may be less."""
    curve, made = chosen(bowl(9.0))
    assert (curve.best, min(curve.losses)) == (9.0, 1.0)
    assert [rate for rate, _ in made] == pytest.approx([1, 3, 9, 27, 3 * ROOT, 9])
    curve, _ = chosen(bowl(9.0), margin=4.0)
    assert min(curve.losses) == GRID[0]
    # One that diverged says nothing of the rates below it.
    curve, _ = chosen(lambda rate, seed: math.inf if rate == 1.0 else abs(math.log(rate / 0.3)))
    assert curve.best == GRID[0]


def test_the_grid_begins_where_it_is_told():
    """An arm that is as the twin needs no run beyond the grid around the twin's best."""
    curve, made = chosen(bowl(9.0), around=9.0)
    assert [rate for rate, _ in made[:3]] == pytest.approx([9, 27, 3])
    assert (curve.best, len(made)) == (9.0, 5)


def test_two_seeds_decide():
    """The rate that was lucky with the first loses to the one that is better over both."""

    def loss(rate, seed):
        if rate == 1.0:
            return 1.00 + 0.3 * seed
        return 1.01 + 0.01 * seed if rate == pytest.approx(ROOT) else 2.0 - rate / 100

    curve, _ = chosen(loss)
    assert curve.best == pytest.approx(ROOT)
    assert curve.losses[1.0] == [1.00, 1.30]


def test_a_best_rate_that_the_second_seed_moves_to_the_edge_is_followed():
    """The rates beyond run with both seeds, since both have a say by then."""

    def loss(rate, seed):
        if seed:  # the second seed is best at 9, and far from it at 1
            return bowl(9.0)(rate, 0) * 2
        return 1.0 + bowl(1.5)(rate, 0) / 10

    curve, made = chosen(loss, margin=0.5)
    assert curve.best == pytest.approx(9.0)
    assert curve.edge is None
    assert [(round(rate), seed) for rate, seed in made if rate > 8] == [
        (9, 0),
        (9, 1),
        (27, 0),
        (27, 1),
    ]
    assert len(made) <= runs_at_most(None)


def test_a_rate_that_diverges_again_is_not_chosen():
    """However far behind the first that does not; if all do, the lowest is taken, and marked."""

    def loss(rate, seed):
        return math.inf if rate > 0.4 and seed else 1 / rate

    curve, _ = chosen(loss, rates=(0.1, 0.3, 1.0, 3.0))
    assert curve.best == 0.3
    curve, made = chosen(lambda rate, seed: math.inf)
    assert curve.best == pytest.approx(1 / 27)
    assert (curve.edge, len(made)) == ("lowest", 5)
    assert all(point["diverged"] == 1 for point in curve.plain()["curve"])


def test_given_rates_are_tried_as_they_are():
    """A single one is not tried at all, and is at no edge."""
    curve, made = chosen(bowl(9.0), rates=(0.1, 0.3, 1.0))
    assert {rate for rate, _ in made} == {0.1, 0.3, 1.0}
    assert (curve.best, curve.edge) == (1.0, "highest")
    assert len(made) <= runs_at_most((0.1, 0.3, 1.0))
    curve, made = chosen(bowl(9.0), rates=(2.0,))
    assert (curve.best, curve.edge, made, runs_at_most((2.0,))) == (2.0, None, [], 0)


def test_arms_are_tried_side_by_side():
    """One that needs more rounds does not keep the others from ending, nor runs them again."""
    arms = [Arm(key, {}) for key in "abc"]
    runner = Losses({"a": bowl(1.0), "b": bowl(20.0), "c": lambda rate, seed: math.inf})
    curves = choose(runner, arms, 0, 0.05)
    assert {key: round(curve.best) for key, curve in curves.items()} == {"a": 1, "b": 16, "c": 0}
    assert runner.rounds == 5  # the grid, twice beyond, between, and again
    assert len(set(runner.made)) == len(runner.made)


def test_the_curve_is_plain_data():
    """Every rate that was tried is in the answer, with the loss of each seed."""
    plain = json.loads(json.dumps(chosen(bowl(1.0))[0].plain()))
    assert [point["factor"] for point in plain["curve"]] == pytest.approx(sorted([*GRID, 1 / ROOT]))
    assert plain["factor"] == 1.0
    assert plain["edge"] is None
    assert plain["curve"][2] == {"factor": 1.0, "losses": [0.0, 0.0], "diverged": 0}


@pytest.mark.parametrize("rates", [0, -1, [1, math.nan], [1, 1.0], [], ["1"]])
def test_what_is_no_rate_is_refused(rates):
    says = "--rates: no factor of the learning rate is given" if rates == [] else "--rates"
    with pytest.raises(BadInput, match=says):
        Options(None, [], rates=rates)


def test_rates_are_an_option_of_both_commands(monkeypatch):
    """Numbers with commas between them."""
    given = []

    def run(options, *_):
        given.append(options.rates)
        raise BadInput("enough")

    for command in ("explain", "compare"):
        monkeypatch.setattr(f"altcore.study.run_{command}", run)
        arguments = [command, f"--format{'s' * (command == 'compare')}", "E4M3", "--rates"]
        CliRunner().invoke(cli, [*arguments, "3,1,0.3"])
        found = CliRunner().invoke(cli, [*arguments, "1,fast"])
        assert str(found.exception).startswith("--rates fast: a number is needed")
    assert given == [(0.3, 1.0, 3.0)] * 2
    assert checked(None) is None


def test_other_rates_are_another_question():
    """Their answer does not take the place of the one at the best rates."""
    keys = {"command": "compare", "asked": {}, "arms": {}, "seeds": [1, 2], "within": 0.1}
    best = Question(**keys, steps=5)
    fixed = Question(**keys, steps=5, rates=(1.0,))
    assert not fixed.extends(best)
    assert not best.extends(fixed)
    assert fixed.extends(Question(**keys, steps=5, rates=[1.0]))
