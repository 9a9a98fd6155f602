"""The intervention ``skip-nonfinite``: non-finite steps that pass, and those that do not."""

import json

import attrs
import pytest
from helpers import events
from planted import check_resumes_alike, last_loss, plant

import altcore
from altcore.engine import Step
from altcore.hooks import NonFinite, build
from altcore_interventions.skip_nonfinite import SkipNonfinite

WHERE = NonFinite("gradient", "a.weight", value=float("nan"))


def skip(plugin, step):
    """What is proposed for a non-finite step."""
    return plugin.on_nan(Step(step), WHERE)


def test_skips_uncounted_up_to_its_limit():
    """Two in a row are skipped; the third is the engine's; a finite step starts anew."""
    plugin = SkipNonfinite(most_consecutive=2)
    first, second = skip(plugin, 4), skip(plugin, 5)
    assert (type(first), first.counts, second.counts) == (altcore.SkipStep, False, False)
    assert "gradient of a.weight is nan; skipped uncounted (1 of 2 in a row)" in first.reason
    assert skip(plugin, 6) is None
    assert skip(plugin, 7) is None
    assert skip(plugin, 9) is not None


def test_state_survives_a_checkpoint():
    """The count goes on after a resume."""
    plugin, other = SkipNonfinite(most_consecutive=2), SkipNonfinite(most_consecutive=2)
    skip(plugin, 4)
    other.load_state_dict(json.loads(json.dumps(plugin.state_dict())))
    assert skip(other, 5) is not None
    assert skip(other, 6) is None


def test_an_impossible_limit_is_refused():
    """None at all would be no plugin."""
    with pytest.raises(altcore.BadInput, match=r"skip-nonfinite\.most_consecutive"):
        build(SkipNonfinite, {"most_consecutive": 0}, "skip-nonfinite")


def test_a_run_survives_twelve_non_finite_steps(shelf, start):
    """Without it the run collapses after ten of them; with it, it goes on to learn."""
    plant(shelf, "nan-gradients")
    keys = {"max_steps": 40}
    lost = start(["nan-gradients"], **keys)
    assert (lost.status, lost.steps_completed) == ("collapsed", 19)
    saved = start(["nan-gradients", "skip-nonfinite"], **keys)
    assert (saved.status, saved.failure_reason) == ("finished", None)
    assert last_loss(saved) < 3.0  # 2.74, from 5.55; without the failure 2.69
    assert len(events(saved.run_directory, "nan")) == 12


def test_what_does_not_pass_is_left_to_the_engine(shelf, start):
    """After the limit the engine's own patience counts from one: 9 + 2 + 3 steps."""
    plant(shelf, "nan-gradients")
    keys = {"max_steps": 40, "nan_patience": 3, "skip-nonfinite.most_consecutive": 2}
    result = start(["nan-gradients", "skip-nonfinite"], **keys)
    assert (result.status, result.steps_completed) == ("collapsed", 14)


def test_a_skip_of_another_plugin_does_not_make_it_count(shelf, start):
    """That a step does not count is heard whoever else skips it, in any order of the plugins."""

    @attrs.define(eq=False)
    class AlsoSkips:
        @altcore.hookimpl
        def on_nan(self, step):
            return altcore.SkipStep(reason="so it is")

    plant(shelf, "nan-gradients")
    shelf.install("intervention", "also", AlsoSkips)
    for plugins in (["also", "skip-nonfinite"], ["skip-nonfinite", "also"]):
        result = start(["nan-gradients", *plugins], max_steps=25)
        assert result.status == "finished"


def test_resumes_alike(shelf, start):
    """A run that is resumed amid the failure ends like one that was not interrupted."""
    plant(shelf, "nan-gradients")
    keys = {"nan-gradients.at": 3, "nan-gradients.count": 7, "nan_patience": 4}
    whole = check_resumes_alike(shelf, start, ["nan-gradients", "skip-nonfinite"], **keys)
    assert whole.status == "finished"
