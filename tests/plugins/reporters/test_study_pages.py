"""Answers of studies, rendered."""

import pytest
from helpers_studies import compare_answer, explain_answer

from altcore_reporters.study_pages import explanation, method
from altcore_reporters.study_pages.causes import (
    cause,
    causes,
    changes,
    counterfactuals,
    recommendation,
)
from altcore_reporters.study_pages.comparison import comparison, how, own_settings, validation
from altcore_reporters.study_pages.comparison import twins as twins_table
from altcore_reporters.study_pages.document import NO_INTERVAL, Interval, Table
from altcore_reporters.study_pages.explanation import conclusion, forced_rate
from altcore_reporters.study_pages.latex import as_latex
from altcore_reporters.study_pages.rows import judged


def test_better_and_worse_are_told_by_one_rule():
    """An interval beside 0 is not enough either way: the corrected p decides too."""
    row = {"mean": -0.1, "low": -0.2, "high": -0.01, "guilty": False, "diverged": 0, "n": 3}
    assert judged({**row, "p_holm": 0.09})[-1] == "not distinguishable"
    assert judged({**row, "p_holm": 0.01})[-1] == "better than the twin"
    assert str(judged({**row, "p_holm": 0.01})[2]) == "0 of 3"  # it stopped early


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("within", "**It trains**, within 0.05 of the float32 twin: why."),
        ("beyond", "**It does not train as the float32 twin does**, beyond 0.05 of it: why."),
        ("cannot tell", "**It cannot be told whether it trains** within 0.05 of the twin: why."),
    ],
)
def test_the_headline_is_the_verdict(verdict, words):
    """With its reason, the corrected p that the table has, and what can be detected."""
    full = {"mean": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.07, "diverged": 0}
    full |= {"verdict": verdict, "reason": "why"}
    answer = {"about": {"within": 0.05}, "full": full}
    told = f"{words} Gap 0.2000 [0.1000, 0.3000], p 0.0700, 0 diverged."
    assert conclusion(answer) == told
    null = {"mean": 0.0, "low": -0.01, "high": 0.01, "detectable": 0.02}
    assert conclusion({**answer, "null": null}) == (
        f"{told} By chaos alone, a gap has to be 0.0200 at the least to be detected with a "
        "probability of 80 %; that of the null arm is 0.0000 [-0.0100, 0.0100]."
    )


def test_a_null_arm_that_did_not_run_is_not_described():
    """Nor by the table of the twins."""
    answer = compare_answer()
    ran = answer["twins"]
    without = {name: {k: v for k, v in twin.items() if k != "null"} for name, twin in ran.items()}
    assert without != ran
    texts = method.NULL, method.NO_NULL
    for own, (told, other) in ((ran, texts), (without, texts[::-1])):
        found = {**answer, "twins": own}
        answered = {k: v for k, v in explain_answer().items() if k != "null"}
        answered |= {"null": {}} if own is ran else {}
        text = str(how(found)) + twins_table(found).note + explanation.how(answered)
        assert (text.count(told), other in text) == (3, False)


def estimate(mean, half=0.1, **more):
    """A row of an answer."""
    return {"mean": mean, "low": mean - half, "high": mean + half, "stalled": None, **more}


@pytest.mark.parametrize(("own", "inside", "told"), [(27, 3, 1), (27, 27, 0), (3, 3, 0)])
def test_a_harm_that_is_another_rate_is_told(own, inside, told):
    """Else gaps at the twin's rate stand unexplained beside a small one at the best rates."""
    chosen = {"U": {"factor": float(own)}, "twin": {"factor": 3.0}}
    found = {"factor": "U", "learning_rates": chosen, "learning_rate_factor_inside": float(inside)}
    numbers = " (gap 0.0100 [-0.0900, 0.1100], p 0.4000)"
    for row, gap in ((None, ""), (estimate(0.01, p=0.4), numbers)):
        answer = {**found, **({"factor_at_own_rate": row} if row else {})}
        assert list(forced_rate(answer)) == told * [
            "**Learning rate**: U does best at 27 times the given rate, where it is not "
            f"distinguishable from float32 at that same rate{gap}. So its harm is that it forces "
            "another rate. What follows ran at the twin's best, 3 times"
        ]


ROUNDING = {
    "operands": ["stored_weight"],
    "group": "wte",
    "roundings": ["nearest-even"],
    "gap": estimate(1.5, stalled=0.9931),
    "counterfactuals": {
        "stochastic": estimate(1.4, recovered=0.934, stalled=0.925),
        "finer": estimate(1.2, recovered=0.8, stalled=0.9),
    },
    "cause": "stochastic",
    "fixed_point": False,
}
RANGE = {
    "operands": ["optimizer_state"],
    "group": None,
    "roundings": ["nearest-even"],
    "gap": estimate(0.5),
    "counterfactuals": {"below": estimate(0.5, recovered=1.0)},
    "cause": "below",
    "fixed_point": False,
}


def test_the_cause_comes_with_its_share_of_the_gap_and_the_stalled_updates():
    """That most updates move nothing is said beside the cause, and of the repair, too."""
    assert list(causes({"causes": [ROUNDING, RANGE, {**RANGE, "cause": None}]})) == [
        "**Cause**: nearest rounding: stochastic rounding to the same format repairs it. This "
        "accounts for 1.4000 [1.3000, 1.5000] of the gap of stored_weight in wte (93 %). 99.3 % "
        "of the updates of stored weights move nothing, and 92.5 % once repaired",
        "**Cause of optimizer_state**: too small: values below its smallest. This accounts for "
        "0.5000 [0.4000, 0.6000] of the gap of optimizer_state (100 %)",
        "**Cause of optimizer_state**: not distinguishable",
    ]
    assert cause({**ROUNDING, "roundings": ["to-zero"]}).startswith("rounding: ")
    fixed = {**ROUNDING, "cause": "finer", "fixed_point": True}
    assert cause(fixed).startswith("too coarse, or too small: in fixed point these are one")


def test_each_guilty_operand_has_its_counterfactuals():
    """And the column of stalls is there only if weights are stored."""
    [section] = counterfactuals({"causes": [ROUNDING, RANGE]})
    [table] = section.parts
    assert [[str(cell) for cell in row] for row in table.rows][2:5] == [
        ["`stored_weight in wte`", "too coarse", "1.2000 [1.1000, 1.3000]", "80 %", "90.0 %"],
        ["`optimizer_state`", "nothing: its gap is 0.5000 [0.4000, 0.6000]", "", "", ""],
        ["`optimizer_state`", "too small", "0.5000 [0.4000, 0.6000]", "100 %", ""],
    ]
    [section] = counterfactuals({"causes": [RANGE]})
    assert section.parts[0].shown.head[-1] == "of it"
    assert not list(counterfactuals({}))


@pytest.mark.parametrize(
    ("verdict", "end"),
    [
        ("within", ""),
        ("cannot tell", "; it cannot be told whether that trains: few seeds"),
        ("beyond", ", which is too much; what trains is stored_weight left in float32"),
    ],
)
def test_the_recommendation_has_its_figures(verdict, end):
    """What it closes, what is left, and whether it trains: no is not said for unknown."""
    text = "stored_weight: stochastic rounding"
    row = {"gap": estimate(0.01), "stalled": 0.9, "closed": 0.97, "reason": "few seeds"}
    rows = [{**row, "change": text, "verdict": verdict}]
    if verdict == "beyond":
        rows.append({**row, "change": "stored_weight left in float32", "verdict": "within"})
    answer = {"candidates": rows, "recommendation": text}
    gap = "0.0100 [-0.0900, 0.1100]"
    told = f"{text}. It closes 97 % of the gap on fresh seeds, {gap} is left{end}"
    assert recommendation(answer) == told
    [section] = changes(answer)
    assert [*map(str, section.parts[0].rows[0])][2:] == [verdict, "few seeds", "90.0 %"]
    none = recommendation({**answer, "recommendation": None})
    assert none == "none of the changes tried helps enough"


@pytest.mark.parametrize(("metric", "loss"), [("train", "training"), ("val", "validation")])
def test_the_page_names_the_loss_that_is_compared(metric, loss):
    """Of gaps, of the choice of learning rates and of its table, of pictures and captions."""
    answer = compare_answer()
    answer["about"]["metric"] = metric
    document = comparison(answer)
    parts = {s.title: s.parts for s in document.sections}
    how = parts["How this was found"]
    assert f"A gap is the mean difference of the {loss} loss" in how[0]
    assert f"best learning rate by the {loss} loss" in how[1]
    (curves,) = (s for s in document.sections if s.title == "Loss over learning rate")
    assert f"the {loss} loss of the selection seeds" in curves.parts[0]
    assert document.sections[0].parts[0].unit.startswith(f"difference of the {loss} loss")
    assert f"mean difference of the {loss} loss" in document.note
    tables = {part.key: part for part in document.parts if isinstance(part, Table)}
    assert f"mean difference of the {loss} loss" in tables["contenders"].note
    assert f"gaps by the {loss} loss" in tables["differences"].note
    assert tables["twins"].head[2] == f"{loss} loss [95 %]"
    assert str(tables["twins"].rows[0][2])[:3] == {"train": "2.9", "val": "3.0"}[metric]
    assert "float32 twin" not in tables["losses"].note


def test_captions_say_it_in_the_words_of_the_page():
    """What a paper needs, whole: gap, steps, seeds, test, correction, verdicts, controls."""
    answer = compare_answer()
    answer["about"]["ablate"] = {"full": "nvfp4"}
    document = comparison(answer)
    [how] = (s.parts for s in document.sections if s.title == "How this was found")
    notes = {part.key: part.note for part in document.parts if isinstance(part, Table)}
    rows = {"contenders": 2, "differences": 1}
    for key, note in notes.items():
        own = note.replace(f"the {rows.get(key)} rows of the table", "the rows of a table")
        if key in rows:
            assert own != note
            assert "each by itself; p alone is corrected, by Holm over" in note
        if key in (*rows, "twins"):
            assert [s for s in own.split(". ") if s.strip(".") not in " ".join(how)] == [
                s for s in own.split(". ") if key == "twins" and "Means over the seeds" in s
            ]
    assert "60 steps of gpt in each run, seeds 42, 43" in notes["contenders"]
    assert "'frozen' is the gap of a control" in notes["contenders"]
    assert "'detectable' is the gap" in notes["contenders"]
    assert "without an ingredient: below 0, the ingredient helps" in notes["differences"]
    assert "This is the least: what spreads more" in notes["twins"]


def test_what_it_takes_to_repeat_a_study_is_in_every_file():
    """In the .csv as columns of every row, of which the study names the rest."""
    answer = compare_answer()
    answer["about"]["workload_facts"] |= {"corpus": "a\r\nb", "data": {"of": "workload"}}
    document = comparison(answer)
    [bullets] = document.sections[-1].parts
    told = "\n".join(bullets.items)
    for fact in ("`altcore compare --name mine`", "pure with", "altcore 0.1.0, torch 2.13.0"):
        assert fact in told
    assert "sha256: 1e0a, parameters: 34688, batch_size: 8, corpus: a b" in told
    assert "adamw, learning rate 0.002; schedule: cosine, warmup_steps: 6, grad_clip: 1.0" in told
    assert document.facts["study"] == "mine"
    tex = as_latex(document).partition(r"\begin")[0]
    assert all(fact in tex for _, fact in document.repeat)


def test_numbers_of_an_interval_have_one_place():
    assert str(Interval(1.4e-05, -6.2e-05, 8.9e-05)) == "0.000014 [-0.000062, 0.000089]"
    assert str(Interval(2e-05, -0.0019, 0.0019)) == "0.00002 [-0.00190, 0.00190]"
    assert str(NO_INTERVAL) == "not available"


def test_what_only_some_arms_have_is_said():
    own = {"arm": "nvfp4-bare", "settings": {"grad_clip": 0.5, "agc.clipping": 0.1}}
    told = own_settings({"contenders": [{"arm": "nvfp4", "settings": {}}, own]})
    assert told == " `nvfp4-bare` alone has grad_clip: 0.5, agc.clipping: 0.1."


@pytest.mark.parametrize(
    ("error", "enough", "words"),
    [
        (
            0.01,
            4,
            "±0.0196 (95 %) in the least certain run of an arm or twin; 4 batches are enough",
        ),
        (None, None, "A single batch does not say how certain it is."),
        (0.0, 8, "They are the whole validation split."),
    ],
)
def test_it_is_said_how_certain_validation_is(error, enough, words):
    found = {"batches": 8, "items": 64, "error": error, "enough": enough}
    about = {"about": {"within": 0.05}}
    assert words in validation({"validation": found, **about})
    none = {**found, "items": 0, "error": None}
    assert validation({"validation": none, **about}) == (
        "No run that trained to its end was evaluated."
    )
