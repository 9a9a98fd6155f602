"""Answers of studies, rendered."""

import pytest

from altcore_reporters.study_pages.explanation import conclusion
from altcore_reporters.study_pages.rows import judged


def test_better_and_worse_are_told_by_one_rule():
    """An interval beside 0 is not enough either way: the corrected p decides too."""
    row = {"mean": -0.1, "low": -0.2, "high": -0.01, "guilty": False, "diverged": 0}
    about = {"seeds": range(5)}
    assert judged({**row, "p_holm": 0.09}, about)[-1] == "not distinguishable"
    assert judged({**row, "p_holm": 0.01}, about)[-1] == "better than the twin"


@pytest.mark.parametrize(("low", "is_said"), [(-0.1, True), (0.4, False)])
def test_it_is_said_where_there_was_nothing_to_lose(low, is_said):
    """A control that learned nothing and is not behind shows that the twin learned nothing."""
    full = {"mean": 0.0, "low": -0.1, "high": 0.1, "diverged": 0}
    full |= {"trains": False, "distinguishable": False, "learned": 2, "twin_learned": 2}
    about = {"within": 0.05, "seeds": [1, 2]}
    told = conclusion({"about": about, "full": full, "frozen": {"low": low}})
    assert ("nothing to lose" in told) == is_said


@pytest.mark.parametrize(
    ("learned", "twin_learned", "words"),
    [
        (2, 2, "**It learns, but is not within 0.05"),
        (1, 2, "**It did not learn** in 1 of 2 seeds"),
        (2, 0, "**It cannot be told whether it trains**: the float32 twin did not learn in 2 of 2"),
    ],
)
def test_nothing_trains_that_has_not_learned(learned, twin_learned, words):
    """Nor is anything said of a format whose twin has not."""
    full = {"mean": 0.2, "low": 0.1, "high": 0.3, "diverged": 0, "trains": False}
    full |= {"distinguishable": True, "beats_frozen": True}
    full |= {"learned": learned, "twin_learned": twin_learned}
    about = {"within": 0.05, "seeds": [1, 2]}
    told = conclusion({"about": about, "full": full, "frozen": {"low": 0.5}})
    assert told.startswith(words)
