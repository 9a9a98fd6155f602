"""The verdicts of the loss-slope study: estimates against scipy, and the hypotheses' rules."""

import math

import pytest
from helpers_pages import run
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from altcore.plugin import BadInput
from altcore.sweep import read_sweep
from altcore_reporters.slope_study.estimates import pearson, share, spearman
from altcore_reporters.slope_study.hypotheses import (
    Limits,
    Result,
    first_hypothesis,
    results_of,
    second_hypothesis,
)
from altcore_reporters.slope_study.reporter import MEASURES as MEASURES_OF_STUDY
from altcore_reporters.slope_study.reporter import RANGES, LossSlopeStudy, result_of
from altcore_reporters.slope_study.trust import Demands, trust_of

PAIRS = st.lists(st.tuples(*[st.integers(-50, 50).map(float)] * 2), min_size=4, max_size=30).filter(
    lambda pairs: all(len(set(own)) > 1 for own in zip(*pairs, strict=True))
)


@given(st.integers(0, 200), st.integers(1, 200))
def test_a_share_has_the_exact_interval(hits, n):
    hits = min(hits, n)
    found = share(hits, n)
    expected = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.value == hits / n


@given(PAIRS)
def test_correlations_are_scipys(pairs):
    x, y = zip(*pairs, strict=True)
    found, expected = pearson(x, y), stats.pearsonr(x, y)
    assert found.value == pytest.approx(expected.statistic, abs=1e-9)
    if abs(found.value) < 1 - 1e-9:
        bounds = expected.confidence_interval()
        assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), abs=1e-7)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


@pytest.mark.parametrize("estimate", [pearson, spearman])
def test_an_interval_covers_as_often_as_it_says(estimate):
    """In 400 samples of 40 pairs whose correlation is 0.6, in 95 % within 2.5 %."""
    import numpy as np

    generator = np.random.default_rng(0)
    truth = 0.6 if estimate is pearson else 6 / math.pi * math.asin(0.3)  # of a normal pair
    hits = 0
    for _ in range(400):
        x = generator.standard_normal(40)
        y = 0.6 * x + 0.8 * generator.standard_normal(40)
        found = estimate(x.tolist(), y.tolist())
        hits += found.low <= truth <= found.high
    assert hits / 400 == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize(("sign", "n"), [(1, 4), (-1, 4), (1, 30)])
def test_ranks_that_agree_entirely_are_not_certain(sign, n):
    """The interval is as wide as that of the next order; it ends at the correlation."""
    x = [float(i) for i in range(n)]
    found = spearman(x, [sign * v**3 for v in x])
    swapped = spearman(x, [sign * v for v in (*x[:-2], x[-1], x[-2])])
    inner, outer = (found.low, found.high)[::sign]
    assert (found.value, outer) == (sign, sign)
    assert inner == pytest.approx((swapped.low, swapped.high)[::sign][0])
    assert (inner * sign < 0) == (n == 4)


def test_what_cannot_be_told():
    assert math.isnan(pearson([], []).value)
    assert math.isnan(pearson([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]).value)
    few = pearson([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert few.value > 0.9
    assert math.isnan(few.low)
    assert math.isnan(share(0, 0).value)


def result(variant="base", r_squared=0.99, alpha=-0.1, val=0.5, name="run"):
    return Result(
        run_id=name, variant=variant, r_squared=r_squared, alpha_early=alpha, best_val_ce=val
    )


@pytest.mark.parametrize(
    ("hits", "n", "holds", "is_certain"),
    [
        (216, 216, True, True),
        (200, 216, True, False),
        (90, 100, False, False),  # more than 90 % is asked for
        (91, 100, True, False),
        (60, 100, False, True),
    ],
)
def test_the_first_hypothesis(hits, n, holds, is_certain):
    runs = [result(r_squared=0.98 if i < hits else 0.9799) for i in range(n)]
    (found,) = first_hypothesis(runs, Limits())
    assert (found.holds, found.is_certain) == (holds, is_certain)
    assert found.estimate.value == hits / n


def test_a_run_that_was_not_fitted_counts_against_it():
    runs = [result(r_squared=1.0)] * 8 + [result(r_squared=None)] * 2
    (found,) = first_hypothesis(runs, Limits())
    assert (found.estimate.value, found.left_out, found.holds) == (0.8, 2, False)


def test_the_second_hypothesis_over_all_and_by_variant():
    """One variant follows it, the other one does the contrary; a run without a value is counted."""
    runs = [result(alpha=-0.1 * i, val=1 - 0.1 * i + 0.01 * (i % 2)) for i in range(10)]
    runs += [result("other", alpha=-0.1 * i, val=0.1 * i + 0.01 * (i % 2)) for i in range(10)]
    runs += [result("other", alpha=None), result("few", alpha=0.0)]
    every, base, other, few = second_hypothesis(runs, Limits())
    assert (every.of, every.holds, every.left_out) == ("all", False, 1)
    assert (base.holds, base.is_certain, base.word) == (True, True, "holds")
    assert base.beside.value > 0.9
    assert (other.holds, other.estimate.n, other.left_out) == (False, 10, 1)
    assert (few.holds, few.word) == (None, "cannot be told")


def test_a_variant_may_be_called_all():
    """The row of all runs has another name then."""
    found = first_hypothesis([result("all"), result("base")], Limits())
    assert [verdict.of for verdict in found] == ["all variants", "all", "base"]


def test_a_result_that_is_near_the_limit_says_so():
    runs = [result(alpha=-0.1 * i, val=-0.1 * i + 0.4 * (i % 3)) for i in range(8)]
    (found,) = second_hypothesis(runs, Limits())
    assert found.word.endswith("but the interval has the limit in it")


def test_rows_of_a_table():
    rows = [
        {"run_id": "a", "variant": "base", "r_squared": "0.990000", "alpha_early": "",
         "best_val_ce": "nan"},
        {"run_id": 7, "variant": "base", "r_squared": 1, "alpha_early": -0.5, "best_val_ce": 2.0},
    ]  # fmt: skip
    first, second = results_of(rows)
    assert (first.r_squared, first.alpha_early, first.best_val_ce) == (0.99, None, None)
    assert (second.run_id, second.alpha_early) == ("7", -0.5)
    with pytest.raises(ValueError, match="steep"):
        results_of([{**rows[1], "alpha_early": "steep"}])
    for wrong in (1.7, "inf", -0.5):
        with pytest.raises(ValueError, match=r"r_squared of 7 is .*, and no R² is"):
            results_of([{**rows[1], "r_squared": wrong}])
    with pytest.raises(ValueError, match="run a has more than one row"):
        results_of([rows[0], rows[1], rows[0]])
    with pytest.raises(KeyError, match="variant"):
        results_of([{"run_id": "a"}])


# ------------------------------------------------------------------------- trust and report

EACH, STEPS, EPOCH = 4, 24, 8


def lines():
    """A measure of every step, and one of every fourth."""
    made = [{"step": step, "loss": 2 - step / 50} for step in range(1, STEPS + 1)]
    for line in made[EACH - 1 :: EACH]:
        line |= {"val_loss": line["loss"] + 0.1, "half": 1.0}
    return made


def record(seed=0, change=lambda lines: lines, r_squared=0.99, **parts):
    row = {"alpha_5_15": -0.1 * seed, "alpha_full": -0.01, "r_squared": r_squared}
    summary = {
        "findings": {"loss-slope": [row, "a line"]},
        "best_val_loss": 2 - 0.1 * seed,
        "epochs": STEPS / EPOCH,
        **parts.pop("summary", {}),
    }
    config = {"label": "base" if seed % 2 else "narrow", **parts.pop("config", {})}
    return run(seed=seed, steps=STEPS, metrics=change(lines()), summary=summary, config=config)


def with_values(lines, name, value, *steps):
    """Return the lines with another value; in all steps that have one unless steps are named."""
    return [
        {**x, name: value} if name in x and (not steps or x["step"] in steps) else x for x in lines
    ]


def without(lines, *steps, name="half"):
    return [{k: v for k, v in x.items() if k != name or x["step"] not in steps} for x in lines]


MEASURES = {"loss": 1, "half": "0.5 epoch", "val_loss": 4}
DEMANDS = Demands(every=MEASURES, ranges={"loss": (0, 10)}, r_squared=0.95)


def trust(*records, left_out=(), demands=DEMANDS):
    return trust_of(records, [result_of(r) for r in records], demands, left_out)


def test_nothing_speaks_against_whole_data():
    found = trust(record(), record(1, r_squared=0.96))
    assert found.reasons == []
    assert found.intervals == {"loss": "1", "half": "4", "val_loss": "4"}


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"change": lambda x: without(x, 12)}, "half has no value in steps 9 to 15"),
        ({"change": lambda x: without(x, 4, 8, 12)}, "half has no value in steps 1 to 15"),
        ({"change": lambda x: without(x, 20, 24)}, "half has no value in steps 17 to 24"),
        ({"change": lambda x: without(x, *range(STEPS + 1))}, "half was never recorded"),
        ({"change": lambda x: [*x, x[-1]]}, "half has 2 values in step 24"),
        ({"change": lambda x: x[:20]}, "metrics end at step 20, and the run made 24"),
        ({"change": lambda x: x[:9] + x[10:]}, "loss has no value in steps 10 to 10"),
        ({"change": lambda x: []}, "nothing was recorded"),
        (
            {"change": lambda x: with_values(x, "loss", math.nan, 24)},
            "loss is not finite in 1 steps, first in step 24",
        ),
        (
            {"change": lambda x: with_values(x, "half", None)},
            "half is not finite in 6 steps, first in step 4",
        ),
        (
            {"change": lambda x: with_values(x, "half", math.inf, 8)},
            "half is not finite in 1 steps, first in step 8",
        ),
        (
            {"change": lambda x: with_values(x, "loss", 1e30, 2, 3)},
            "loss is 1e+30 in step 2, outside 0 to 10",
        ),
        ({"r_squared": None}, "no power law was fitted"),
        ({"summary": {"status": "interrupted"}}, "its status is interrupted"),
        (
            {"summary": {"monitor": "val_accuracy"}},
            "its best evaluation is by val_accuracy: best_val_ce is not the lowest",
        ),
        (
            {"summary": {"epochs": None}},
            "half is needed every 0.5 epoch, and the run counts no epochs",
        ),
    ],
)
def test_each_reason_is_named_with_its_run(made, told):
    found = trust(record(), record(1, **made))
    assert not found.is_go
    assert all(name == "E4M3-s1" for name, _ in found.reasons)
    assert told in [problem for _, problem in found.reasons]


def test_runs_of_other_code_or_data_speak_against_the_data():
    """Of the diagnostics that measure, too; the study is of one data set, whatever was asked."""
    runs = [record(seed) for seed in range(5)]
    for i, own in enumerate(runs):
        own.environment = {"code": {"loss-slope": {"from": f"mine {'2' if i == 1 else '1'}"}}}
        own.summary["workload_facts"] = {"sha256": "b" * 64 if i > 2 else "a" * 64}
        own.config["settings"] = {"cifar": {"size": 8}} if i == 4 else {}
        own.config["workload"] = "cifar"
    names = [own.name for own in runs]
    assert trust(*runs).reasons == [
        (names[1], f"loss-slope is mine 2, and mine 1 in {names[0]}"),
        *(
            (n, f"sha256 of its data is {'b' * 12}, and {'a' * 12} in {names[0]}")
            for n in names[3:]
        ),
    ]


def test_parts_of_an_epoch_that_are_no_whole_steps():
    """Quarters of six steps end at steps 2, 3, 5 and 6; a discarded step needs no value."""

    def quarters(lines):
        at = {6 * epoch + step for epoch in range(4) for step in (2, 3, 5, 6)}
        return [{**x, "quarter": 1.0} if x["step"] in at else x for x in lines]

    def discarded(lines):
        return [{**x, "discarded": True} if x["step"] == 11 else x for x in lines]

    demands = Demands(every={"quarter": "0.25 epoch"}, ranges={}, r_squared=0.95)
    made = {"summary": {"epochs": 4}}
    whole = record(change=quarters, **made)
    assert trust(whole, demands=demands).is_go
    less = record(1, change=lambda x: without(quarters(x), 11, name="quarter"), **made)
    assert trust(less, demands=demands).reasons == [
        ("E4M3-s1", "quarter has no value in steps 10 to 11")
    ]
    less.metrics = discarded(less.metrics)
    assert trust(less, demands=demands).is_go


def test_what_the_study_asks_for():
    """The measures, frequencies and ranges that its sweep file asks for, and the loss itself."""
    asked = read_sweep("altcore_diagnostics:loss-slope.yaml")
    assert {"loss": 1, **{m.name: m.every for m in asked.measures}} == MEASURES_OF_STUDY
    assert asked.ranges == RANGES


def test_fits_that_are_bad_as_a_whole():
    (reason,) = trust(record(r_squared=0.95)).reasons
    assert reason == ("", "the median R² is 0.9500, and more than 0.95 is needed")
    with pytest.raises(BadInput, match="E4M3-s0: r_squared of E4M3-s0 is inf, and no R² is"):
        trust(record(r_squared=math.inf))


def test_the_report(tmp_path):
    """Both verdicts over all and by variant; a run that a retry changed is left out, by name."""
    retried = record(9, config={"tags": ["retry"]})
    runs = [*(record(seed) for seed in range(8)), retried]
    report, page = LossSlopeStudy(measures=MEASURES).render(runs, tmp_path)
    told = report.read_text()
    assert "**GO: the data can be trusted.** H1 holds, but the interval has the limit in it" in told
    assert "H2 holds." in told
    assert "1 were left out, since a retry changed them: E4M3-s9." in told
    assert "| all | 100.0% | 63.1% to 100.0% | 8 | 0 |" in told
    assert "| narrow | 1.000 | 1.000 to 1.000 | 1.000 | -0.819 to 1.000 | 4 | 0 | holds |" in told
    assert "| `half` | 4 |" in told
    assert "How well a power law fits the loss" in page.read_text()
    report, _ = LossSlopeStudy(measures={**MEASURES, "lambda_max": 500}).render(runs[:2], tmp_path)
    assert "**NO-GO: the data cannot be trusted.**" in report.read_text()
    assert "- E4M3-s0: lambda_max was never recorded" in report.read_text()
    with pytest.raises(BadInput, match="no run is left"):
        LossSlopeStudy().render([retried], tmp_path)
    with pytest.raises(BadInput, match="E4M3-s42 has no findings of the diagnostic loss-slope"):
        LossSlopeStudy().render([run()], tmp_path)
