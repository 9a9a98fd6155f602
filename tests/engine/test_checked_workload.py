"""What a workload offers is checked before the run, and an error names it, and the part."""

import json
import math

import numpy as np
import pytest
import torch
from attrs import define
from helpers_epochs import BuiltPoints, Points

import altcore
from altcore.errors import PluginError

OWN = {"workload": "points", "format": "none", "max_steps": 2}
WHO = r"workload points \(acme-points 1.2.3\)"


@pytest.fixture
def points(shelf):
    """Return a function that installs the workload ``points`` with other parts."""

    def install(**parts):
        own = {k: v for k, v in parts.items() if callable(v) or isinstance(v, property)}
        cls = type("Other", (BuiltPoints,), own)

        @define(eq=False)
        class Settings(Points):
            def build(self, seed, device):
                built = cls(self.batch_size, self.measures, seed)
                for name in parts.keys() - own.keys():
                    setattr(built, name, parts[name])
                return built

        shelf.install("workload", "points", Settings)

    return install


def refused_before_the_run(start, says, **keys):
    """Assert that no directory is left behind."""
    with pytest.raises(PluginError, match=f"^{WHO}.*{says}"):
        start(**OWN, name="r", **keys)
    assert not (start.runs / "r").exists()


NO_COUNTS = [0, -1, -3, 2.5, 1.0, True, "10", math.nan, 2**63, np.float64(3), torch.tensor(3)]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("validation_batches", value) for value in NO_COUNTS),
        *(("steps_per_epoch", value) for value in (0, True, "10")),
        ("items_per_batch", 0),
    ],
)
def test_a_size_that_is_no_whole_number_of_at_least_1_is_refused(points, start, part, value):
    points(**{part: value})
    refused_before_the_run(start, f"{part} is .*, not a whole number of at least 1")


@pytest.mark.parametrize("value", [0, -2, 2.5, True, "x", None, torch.tensor(3)])
def test_a_count_of_items_that_is_none_is_refused(points, start, value):
    """It would weight an evaluation wrongly, without a word."""
    points(items=lambda self, batch: value)
    refused_before_the_run(start, r"items\(batch\) is .*, not a whole number of at least 1$")


def test_a_count_of_items_is_checked_of_every_batch(points, start):
    """The last one is asked about before the run, the others in the evaluation."""
    points(items=lambda self, batch: len(batch) if len(batch) < 2 else -2)
    with pytest.raises(PluginError, match=rf"^{WHO}: items\(batch\) is -2"):
        start(**OWN)


def test_numpys_whole_numbers_are_whole_numbers(points, start):
    """As sizes, as counts and in facts."""
    sizes = {"steps_per_epoch": np.int64(10), "validation_batches": np.int32(3)}
    facts = {"a": np.int64(3), "b": np.float32(0.5), "c": np.str_("d"), "e": np.bool_(True)}
    points(**sizes, facts=facts, items=lambda self, batch: np.int64(len(batch)))
    run = start(**OWN)
    assert run.summary["evaluation"]["val_items"] == 5
    kept = json.loads((run.run_directory / "environment.json").read_text())["workload_facts"]
    assert kept == {"a": 3, "b": 0.5, "c": "d", "e": True}


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"n": math.nan}, "'n' of facts is nan, not a finite number"),
        ({"n": math.inf}, "'n' of facts is inf, not a finite number"),
        ({"n": np.float32("nan")}, "'n' of facts is nan, not a finite number"),
        ({"n": None}, "'n' of facts is NoneType, neither text nor a number"),
        ({"n": [1, 2]}, r"'n' of facts is list, neither text nor a number: \[1, 2\]"),
        ({"n": torch.tensor(1)}, "'n' of facts is Tensor"),
        ({"n": {1, 2}}, "'n' of facts is set"),
        ({"n": b"sha"}, "'n' of facts is bytes"),
        ({"n": 10**5000}, "'n' of facts is beyond 64 bits"),
        ({1: "n"}, "the key 1 of facts is not text"),
        ({("a",): "n"}, r"the key \('a',\) of facts is not text"),
        ([("n", 1)], "facts is list, not Mapping"),
        *(
            ({"unigram_entropy": x}, "'unigram_entropy' of facts is .*, not a positive number")
            for x in (0, -1, "3.2", True)
        ),
    ],
)
def test_facts_that_a_record_cannot_hold_are_refused(points, start, facts, says):
    """The entropy is what the verdict judges by."""
    points(facts=facts)
    refused_before_the_run(start, says)


def test_a_split_with_fewer_batches_than_it_says_is_refused(points, start):
    """Empty batches would make the validation loss NaN."""
    points(validation_batches=4)
    refused_before_the_run(
        start, r"batch\('val', 3, 0\) has no items \(validation_batches is 4, and batches count"
    )


@pytest.mark.parametrize("empty", [torch.ones(0, 1), [torch.ones(0)], {"x": (torch.ones(0, 3),)}])
def test_a_batch_without_items_is_refused(points, start, empty):
    """In training it would be a step that is not finite; also in the middle of a split."""

    def batch(self, split, step, micro):
        return empty if (split, step) == ("train", 2) else torch.ones(2, 1)

    points(batch=batch)
    with pytest.raises(PluginError, match=rf"^{WHO}: batch\('train', 2, 0\) has no items"):
        start(**OWN)


def test_a_batch_without_items_of_the_callers_own_is_refused(points, start):
    points()
    says = r"^the function data that was given batch \('train', 1, 0\) has no items"
    with pytest.raises(PluginError, match=says):
        altcore.train(start.config(**OWN), data=lambda *place: torch.ones(0, 1))


@pytest.mark.parametrize("part", ["steps_per_epoch", "validation_batches", "items"])
def test_a_part_that_fails_is_not_one_that_is_missing(points, start, part):
    """A property's AttributeError says that nothing of that name exists."""

    def fails(self):
        return self.nowhere

    points(**{part: property(fails, lambda self, value: None)})
    refused_before_the_run(start, f"failed in {part}: AttributeError: .*nowhere")


@pytest.mark.parametrize(
    ("measures", "says"),
    [
        ("{'a/b': value}", "cannot be called 'a/b': a slash is for the measures of plugins"),
        ("{'loss': value}", "cannot be called 'loss': the record has a value of that name"),
        ("{'val_a': value}", "cannot be called 'val_a': names that begin with val_"),
        ("{3: value}", "cannot be called 3: a name is text that can be printed"),
        ("{'a ': value}", "cannot be called 'a ': a name is text"),
        ("{'a': 1.5}", "the measure a of its loss is float, not a tensor that is real"),
        ("{'a': value * 1j}", r"the measure a of its loss is Tensor of shape \(\), torch.complex"),
        ("{'a': value.to('meta')}", r"the measure a of its loss is Tensor of shape \(\), .*meta"),
        ("{'a': value.to_sparse()}", r"the measure a of its loss is Tensor .*sparse"),
        ("{'a': value[None]}", r"the measure a of its loss is Tensor of shape \(1,\), not"),
    ],
)
def test_a_measure_that_cannot_be_recorded_names_the_workload(points, start, measures, says):
    """And says why."""

    def loss(self, model, batch):
        value = model(batch).mean()
        return value, eval(measures, {"value": value})

    points(loss=loss)
    with pytest.raises(PluginError, match=f"^{WHO}: .*{says}"):
        start(**OWN)


def test_a_measure_is_averaged_as_it_was_when_it_was_returned(points, start):
    """The workload writes it in place for the next micro-batch."""
    shared = torch.zeros(())

    def loss(self, model, batch):
        if model.training:
            shared.add_(1)
        return model(batch).mean(), {"shared": shared}

    points(loss=loss)
    run = start(**OWN, gradient_accumulation_steps=2)
    assert [x["shared"] for x in run.metrics_history] == [1.5, 3.5]


def test_a_measure_that_counts_is_averaged_as_any_other(points, start):
    """Its mean is no whole number."""
    counts = iter(range(100))

    def loss(self, model, batch):
        count = next(counts) if model.training else 3
        return model(batch).mean(), {"count": torch.tensor(count), "any": torch.tensor(count > 0)}

    points(loss=loss)
    run = start(**OWN, gradient_accumulation_steps=2)
    assert [(x["count"], x["any"]) for x in run.metrics_history] == [(0.5, 0.5), (2.5, 1)]
    assert run.summary["evaluation"]["val_count"] == pytest.approx(3)


@pytest.mark.parametrize("training", [True, False])
def test_batches_that_are_averaged_have_the_same_measures(points, start, training):
    """Those of a step, and those of an evaluation; each kind may have its own."""
    calls = []

    def loss(self, model, batch):
        value = model(batch).mean()
        calls.append(model.training)
        differs = model.training is training and calls.count(training) % 2
        return value, dict.fromkeys(["a", "b"] if differs else ["a"], value.detach())

    points(loss=loss)
    says = r"batches have different measures: \['a'(, 'b')?\] and \['a'(, 'b')?\]$"
    with pytest.raises(PluginError, match=f"^{WHO}: {says}"):
        start(**OWN, gradient_accumulation_steps=2)
