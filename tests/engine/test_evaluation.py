"""Evaluations: over which items, what is recorded, and which one is best."""

import math

import pytest
import torch
from attrs import define
from helpers import events, state
from helpers_epochs import BuiltPoints, Points
from planted import plant
from structlog.testing import capture_logs

import altcore
from altcore import BadInput, hookimpl
from altcore.cli.summary import lines
from altcore.config import TrainConfig
from altcore.engine.evaluation import is_better
from altcore.engine.losses import RESERVED, loss_and_measures, means
from altcore.errors import PluginError
from altcore.runs import read_lines

OWN = {"workload": "points", "compute": "float32"}


def evaluations(run):
    """Return the lines of a run's evaluations."""
    lines = read_lines(run.run_directory / "metrics.jsonl")
    return [line for line in lines if "val_loss" in line]


@pytest.fixture
def points(shelf):
    """Validates on 1, 2, 3, 4, 5 in batches of two, the last one of one."""
    shelf.install("workload", "points", Points)


def test_a_finite_split_is_evaluated_whole_and_weighted_by_items(points, start):
    """The loss is weight · number: their mean is 3; that of the batches' means would be 3.33."""
    config = start.config(**OWN, max_steps=1, learning_rate=1e-30, eval_steps=1)
    (line,) = evaluations(altcore.train(config))
    # Of 1, 2, 3, 4, 5 as items: the batches are 1.5, 3.5 and 5, of 2, 2 and 1.
    squares = 2 * (1.5 - 3) ** 2 + 2 * (3.5 - 3) ** 2 + (5 - 3) ** 2
    assert line["val_loss_error"] == pytest.approx(math.sqrt(squares / 5 / 2), rel=1e-12)
    assert line["val_loss"] == pytest.approx(3, rel=1e-12)
    assert (line["val_items"], line["val_is_whole"]) == (5, True)
    largest = (2 * 2 + 4 * 2 + 5 * 1) / 5
    assert line["val_largest"] == pytest.approx(largest, rel=1e-12)


def test_a_split_that_is_drawn_from_is_evaluated_in_a_number_of_batches(start):
    """And the record says so."""
    (line,) = evaluations(start(eval_steps=3))
    assert (line["val_items"], line["val_is_whole"]) == (3 * 4 * 16, False)


def test_measures_are_recorded_without_a_second_forward(points, shelf, start):
    """Those of training as the mean over micro-batches."""
    passes = []

    @define(eq=False)
    class Counts:
        @hookimpl
        def run_start(self, run):
            run.model.register_forward_hook(lambda *_: passes.append(run.step))

    shelf.install("intervention", "counts", Counts)
    keys = {"gradient_accumulation_steps": 2, "max_steps": 2, "learning_rate": 1e-30}
    engine = start.engine(["counts"], **OWN, **keys)
    engine.train()
    assert passes == 3 * [0] + [1, 1, 2, 2] + 3 * [2]
    lines = read_lines(engine.directory.path / "metrics.jsonl")
    batches = [engine.run.workload.batch("train", n, 0).max() for n in (1, 2)]
    assert lines[0]["largest"] == pytest.approx(float(sum(batches)) / 2)
    assert lines[0]["loss"] != lines[0]["largest"]
    assert "largest" in start(name="again", **OWN).metrics_history[0]


def test_measures_leave_no_graph_behind():
    """They are numbers for the record."""
    w = torch.ones(1, requires_grad=True)

    class Tells:
        def loss(self, model, batch):
            return w.sum(), {"accuracy": w.sum()}

    loss, measures = loss_and_measures(Tells(), None, None)
    assert loss.requires_grad
    assert not measures["accuracy"].requires_grad


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (1.0, "returned float: a tensor is needed"),
        ((torch.ones(()),), "returned tuple: a tensor is needed"),
        ((torch.ones(()), torch.ones(())), "returned tuple: a tensor is needed"),
        ((torch.ones(()), {"a": torch.ones(2)}), r"the measure a .* is Tensor of shape \(2,\)"),
        ((torch.ones(()), {"a": 0.5}), "the measure a .* is float, not a tensor"),
        ((torch.ones(()), {3: torch.ones(())}), "cannot be called 3"),
        ((torch.ones(()), {"a/b": torch.ones(())}), "cannot be called 'a/b'"),
        ((torch.ones(()), {"loss": torch.ones(())}), "cannot be called 'loss'"),
    ],
)
def test_a_loss_of_another_form_is_refused(returned, words):
    class Tells:
        def loss(self, model, batch):
            return returned

    with pytest.raises(PluginError, match=words):
        loss_and_measures(Tells(), None, None)


def test_no_name_of_the_record_is_free_for_a_measure(start):
    """Of lines of training and of evaluation."""
    run = start(format="E3M4", recipe="pure", eval_interval=2)
    for line in read_lines(run.run_directory / "metrics.jsonl"):
        assert {key.removeprefix("val_") for key in line} <= RESERVED


def test_the_mean_over_micro_batches():
    """Of one it is the value itself."""
    one, two = {"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}
    assert means([one], [3])["a"] is one["a"]
    assert means([one, two], [3, 3])["a"] == 1.5
    assert means([one, two], [3, 1])["a"] == 1.25


def test_micro_batches_of_a_step_count_by_their_items(shelf, start):
    """A short one has no more weight than its items in one batch of them all."""
    plant(shelf, "regression")
    donor = start.engine(workload="regression").run.workload

    def split(split, step, micro):
        cut = slice(0, 56) if micro == 0 else slice(56, None)
        return tuple(part[cut] for part in donor.batch(split, step, 0))

    runs = [
        altcore.train(start.config(workload="regression", gradient_accumulation_steps=n), data=data)
        for n, data in ((2, split), (1, donor.batch))
    ]
    two, one = (run.metrics_history for run in runs)
    for key in ("loss", "grad_norm"):
        assert [x[key] for x in two] == pytest.approx([x[key] for x in one], rel=1e-4)


# ---------------------------------------------------------------------------------- what is best


def test_what_is_best_follows_the_monitor_and_its_direction(points, start):
    """The weight falls, and so do loss and measure: by the highest the first one is best."""
    for mode, best in (("min", 6), ("max", 2)):
        keys = {"max_steps": 6, "eval_interval": 2, "monitor": "val_largest", "name": mode}
        run = start(**OWN, **keys, monitor_mode=mode)
        folder = run.run_directory / "checkpoints"
        assert (folder / "best").read_text() == f"step-{best:08d}"
        found = evaluations(run)
        assert found[0]["val_largest"] > found[-1]["val_largest"]
        (of_best,) = [line for line in found if line["step"] == best]
        assert state(run.run_directory)["history"]["best"] == of_best
        assert run.summary["best_val_loss"] == of_best["val_loss"]


@pytest.mark.parametrize(
    ("mode", "now", "best", "is_now"),
    [
        ("min", 1.0, None, True),
        ("min", 1.0, 2.0, True),
        ("min", 2.0, 2.0, False),
        ("max", 2.0, 1.0, True),
        ("max", 1.0, 1.0, False),
        ("min", math.nan, None, False),
        ("max", math.nan, 1.0, False),
        ("max", math.inf, 1.0, False),
    ],
)
def test_the_first_of_equals_is_best_and_what_is_not_finite_never(mode, now, best, is_now):
    config = TrainConfig(monitor="val_a", monitor_mode=mode)
    before = {} if best is None else {"val_a": best}
    assert is_better(config, {"val_loss": 1.0, "val_a": now}, before) is is_now


@pytest.mark.parametrize("best", [{}, {"val_loss": 2.0, "val_a": 0.1}])
def test_an_evaluation_whose_loss_is_not_finite_is_never_best(best):
    """Whatever its measures are: of NaN logits the first is the largest."""
    config = TrainConfig(monitor="val_a", monitor_mode="max")
    assert not is_better(config, {"val_loss": math.nan, "val_a": 0.9}, best)


def test_what_is_no_loss_needs_a_direction(points, start):
    """The lowest accuracy would be kept as the best, in silence."""
    with pytest.raises(BadInput) as raised:
        start(**OWN, monitor="val_largest")
    assert str(raised.value).startswith("monitor_mode: monitor is val_largest, which is no loss")
    assert not start.runs.exists()
    assert start(**OWN, monitor="val_loss_float32").summary["best_step"] == 3


def test_the_validation_loss_at_the_best_measure_is_called_so(points, start):
    """It is not the best loss."""
    keys = {"max_steps": 4, "eval_interval": 2, "monitor": "val_largest"}
    text = dict(lines(start(**OWN, **keys, monitor_mode="max").summary))["validation loss"]
    assert " at the best val_largest, at step 2; " in text
    assert "(best " not in text


def test_a_monitor_that_evaluations_do_not_have_is_refused(points, start):
    """Before there is a directory, with what they have."""
    with pytest.raises(BadInput) as raised:
        start(**OWN, monitor="val_larges")
    assert str(raised.value) == (
        "monitor: evaluations have no 'val_larges' (did you mean val_largest?): "
        "they have val_loss, val_loss_float32, val_largest"
    )
    assert not start.runs.exists()


def test_an_evaluation_that_only_the_end_asks_for_is_no_evidence(start):
    """The detector judges a run that goes on as one that never paused."""
    engine = start.engine(max_steps=5, eval_interval=2)
    engine.train()
    assert [step for step, _ in engine.detector.evaluations] == [2, 4]
    assert engine.history.evaluation["step"] == 5


def test_a_validation_that_is_not_finite_is_warned_of_once(shelf, start):
    """If the training loss is finite; otherwise the run tells of that."""

    class Odd(BuiltPoints):
        def loss(self, model, batch):
            loss = model(batch).mean()
            return loss if model.training else loss / 0, {"odd": loss.detach()}

    @define(eq=False)
    class Settings(Points):
        def build(self, seed, device):
            return Odd(self.batch_size, self.measures, seed)

    shelf.install("workload", "points", Settings)
    with capture_logs() as logs:
        run = start(**OWN, name="a", max_steps=4, eval_interval=1)
    (warning,) = events(run.run_directory, "warning")
    told = [line["step"] for line in logs if line["event"] == warning["message"]]
    assert told == [1]
    names = "val_loss, val_loss_float32"
    assert warning["message"] == f"not finite, although the training loss is: {names}"
    assert warning["step"] == 1
