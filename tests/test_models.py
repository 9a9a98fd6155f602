"""Every model of the matrix: transparent, covered, finite under every recipe, and left as it was.

`make test-models` runs it. docs/models.md has the shares.
"""

import fnmatch
import re

import pytest
import torch
from helpers_cli import ROOT
from model_checks import (
    FORWARD_BOUND,
    GRADIENT_BOUND,
    LOSSLESS,
    RECIPES,
    built,
    covered,
    passed,
    shares,
    traces,
    transparency,
)
from model_zoo import MODELS, missing

from altcore import quantize_model

PAGE = (ROOT / "docs" / "models.md").read_text()


def each_model(test):
    """Run a test once for each model."""
    return pytest.mark.models(pytest.mark.parametrize("name", MODELS)(test))


def case_of(name):
    """Return a model's case; skip the test where its library does not load."""
    reason = missing(MODELS[name])
    if reason:
        pytest.skip(reason)
    return MODELS[name]


def table(title):
    """Return a table of the page: the cells of each row by those of the head, by the first."""
    text = PAGE.partition(f"### {title}\n")[2].partition("\n### ")[0]
    lines = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if "|" in line]
    head, _, *rows = lines
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.parametrize("title", ["Nothing changes without rounding", "Shares on a grid"])
def test_the_page_has_every_model(title):
    """And no other."""
    assert list(table(title)) == list(MODELS)


@each_model
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nothing_changes_without_rounding(name, training):
    """With every float32 on the grid, output and gradients are those of the plain model."""
    found = transparency(case_of(name), training=training)
    assert found.forward < FORWARD_BOUND
    assert found.gradient < GRADIENT_BOUND, found.worst


@each_model
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_reaches_what_the_page_says(name, recipe):
    """Loss and gradients are finite, nothing planned was missed, and shares are as published."""
    case = case_of(name)
    found = covered(case, recipe)
    assert found.found.is_finite
    missed = [row.layer for row in found.coverage.rows if row.is_missed]
    assert missed == fnmatch.filter([row.layer for row in found.coverage.rows], case.unmet)
    published = tuple(map(int, table("Shares on a grid")[name][recipe].split(" / ")))
    assert shares(found) == pytest.approx(published, abs=1), "run benchmarks/models.py"


@each_model
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_remove_leaves_nothing(name, training):
    """The model computes the same bits as before, and nothing is on it that was not."""
    case = case_of(name)
    model = built(case, training=training)
    wanted, before = passed(case, model), traces(model)
    with quantize_model(model, LOSSLESS):
        passed(case, model)
    found = passed(case, model)
    assert traces(model) == before
    assert torch.equal(found.output, wanted.output)
    for key, gradient in wanted.gradients.items():
        same = gradient is found.gradients[key] is None or torch.equal(
            gradient, found.gradients[key]
        )
        assert same, key
