"""Epochs: counted in steps before the run, and each example once in each of them."""

import pytest
import torch
from attrs import define
from helpers import metrics_bytes, state, weights_sha256
from helpers_epochs import Points
from planted import check_same, plant

import altcore
from altcore import BadInput, hookimpl, setting
from altcore.config import IN_STEPS, load_config
from altcore.engine import build_workload
from altcore.errors import PluginError
from altcore.hooks import describe_settings, step_settings
from altcore.registry import HOOK_KINDS, entries
from altcore.runs import read_lines

OWN = {"workload": "points", "compute": "float32"}


@pytest.fixture
def points(shelf):
    """The workload of 20 numbers, two in a batch: ten batches an epoch."""
    shelf.install("workload", "points", Points)


def in_epochs(start, plugins=(), **keys):
    """Return a configuration of the workload, without the steps that `start` would give."""
    left_out = {IN_STEPS[key]: None for key in keys if key in IN_STEPS}
    return start.config(plugins, **{**OWN, **left_out, **keys})


def evaluated(run):
    """Return the steps of a run's evaluations."""
    lines = read_lines(run.run_directory / "metrics.jsonl")
    return [line["step"] for line in lines if "val_loss" in line]


def test_epochs_become_steps_before_the_run(points, start):
    """The record has both; halves are counted, too."""
    keys = {"epochs": 2.5, "warmup_epochs": 0.5, "evals_per_epoch": 2}
    run = altcore.train(in_epochs(start, **keys))
    assert run.steps_completed == 25
    assert evaluated(run) == [5, 10, 15, 20, 25]
    kept = load_config(run.run_directory / "config.yaml")
    assert (kept.epochs, kept.warmup_epochs, kept.evals_per_epoch) == (2.5, 0.5, 2)
    assert (kept.max_steps, kept.warmup_steps, kept.eval_interval) == (25, 5, 5)
    assert kept.steps_per_epoch == 10


def test_evaluations_come_at_the_steps_nearest_to_their_part(points, start):
    """Four in an epoch of ten steps: 2.5 and 7.5 have no step of their own."""
    run = altcore.train(in_epochs(start, epochs=2, evals_per_epoch=4))
    assert evaluated(run) == [3, 5, 8, 10, 13, 15, 18, 20]


def test_each_example_comes_once_an_epoch(points, start):
    """Micro-batches are numbered through all epochs, from 1, whatever the accumulation."""
    for accumulation in (1, 5):
        keys = {"gradient_accumulation_steps": accumulation, "name": f"a{accumulation}"}
        engine = altcore.engine.prepare(in_epochs(start, epochs=2, **keys))
        engine.run.workload.asked.clear()
        engine.train()
        asked = [x for x in engine.run.workload.asked if x[0] == "train"]
        assert engine.run.step == 20 / accumulation
        assert asked == [("train", n, 0) for n in range(1, 21)]


def test_a_workload_without_epochs_is_asked_as_before(shelf, start):
    """By step and micro-batch; its steps have no epoch."""

    @define(eq=False)
    class Endless(Points):
        def build(self, seed, device):
            built = super().build(seed, device)
            built.steps_per_epoch = None
            return built

    shelf.install("workload", "points", Endless)
    engine = start.engine(**OWN, max_steps=2, gradient_accumulation_steps=2)
    engine.run.workload.asked.clear()
    engine.train()
    asked = [x for x in engine.run.workload.asked if x[0] == "train"]
    assert asked == [("train", 1, 0), ("train", 1, 1), ("train", 2, 0), ("train", 2, 1)]
    assert "epoch" not in metrics_bytes(engine.directory.path).decode()


def test_a_step_knows_its_epoch(points, shelf, start):
    """Fractional, the same in hooks and in the record: 1.0 when the first one is complete."""
    seen = []

    @define(eq=False)
    class Listens:
        @hookimpl
        def pre_backward(self, step):
            seen.append((step.index, step.epoch))

        @hookimpl
        def on_record(self, step, metrics):
            assert step.epoch == metrics["epoch"]

    shelf.install("diagnostic", "listens", Listens)
    run = altcore.train(in_epochs(start, ["listens"], epochs=1.2))
    assert seen == [(s, s / 10) for s in range(1, 13)]
    lines = read_lines(run.run_directory / "metrics.jsonl")
    assert all(line["epoch"] == line["step"] / 10 for line in lines)


# ------------------------------------------------------------------------ intervals of plugins


def timed(shelf, steps):
    """Install a diagnostic that notes the steps on which it is due."""

    @define(eq=False)
    class Timed:
        interval: int = setting(1, help="steps between measurements")

        @hookimpl
        def post_step(self, step):
            steps.append((step.index, self.interval))

    shelf.install("diagnostic", "timed", Timed)


@pytest.mark.parametrize(
    ("interval", "due", "nearest"),
    [
        (3, [3, 6, 9, 12, 15, 18], 3),
        ("3 steps", [3, 6, 9, 12, 15, 18], 3),
        ("1 epoch", [10, 20], 10),
        ("0.25 epoch", [3, 5, 8, 10, 13, 15, 18, 20], 2),
        ("1/3 epochs", [3, 7, 10, 13, 17, 20], 3),
    ],
)
def test_an_interval_of_a_plugin_may_be_in_epochs(points, shelf, start, interval, due, nearest):
    """It is due on the nearest steps, and finds the nearest number of steps in its setting.

    Like every diagnostic it also takes a sample at the first step.
    """
    steps = []
    timed(shelf, steps)
    run = altcore.train(in_epochs(start, ["timed"], epochs=2, timed__interval=interval))
    assert steps == [(step, nearest) for step in [1, *due]]
    kept = load_config(run.run_directory / "config.yaml")
    assert kept.settings["timed"] == {"interval": interval}


STEPS = [
    ("flips", "report_interval"),
    ("flips", "window"),
    ("grad-stats", "dead_window"),
    ("loss-scale", "growth_interval"),
    ("noise", "report_interval"),
    ("partition-clip", "check_interval"),
    ("rollback", "steps"),
]
"""The settings of the first-party plugins that count steps, besides ``interval``."""


@pytest.mark.parametrize(("plugin", "key"), STEPS)
def test_other_settings_that_count_steps_may_be_in_epochs(points, start, plugin, key):
    """The plugin is made of the nearest number of steps, and what it derives from it is right."""
    given = {f"{plugin}.{key}": "1.27 epochs"}
    engine = altcore.engine.prepare(in_epochs(start, [plugin], epochs=2, **given))
    (made,) = engine.dispatch.plugins
    assert getattr(made.instance, key) == 13
    assert key != "check_interval" or made.interval == 13
    # The hooks are those of the plugin that knows its steps.
    called = [f.__self__ for calls in engine.dispatch._calls.values() for _, f, _ in calls]
    assert {id(x) for x in called} == {id(made.instance)}


def test_every_setting_that_counts_steps_is_known_to():
    """Whatever its help calls a number of steps."""
    classes = {e.name: e.load() for e in entries() if e.kind in HOOK_KINDS}
    found = {
        (name, s["name"])
        for name, cls in classes.items()
        for s in describe_settings(cls)
        if s["help"].startswith("steps ") or " in steps" in s["help"]
    }
    marked = {(name, key) for name, cls in classes.items() for key in step_settings(cls)}
    assert found == marked
    assert {pair for pair in marked if pair[1] != "interval"} == set(STEPS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0.1 epoch", "partition-clip.check_interval: must be >= 2"),
        ("0.05 epoch", "partition-clip.check_interval: 0.05 epoch is less than a step"),
        ("2 epoch s", "partition-clip.check_interval: '2 epoch s' is not an interval"),
    ],
)
def test_steps_that_a_plugin_refuses_are_refused_in_epochs(points, start, value, words):
    given = {"partition-clip.check_interval": value}
    with pytest.raises(BadInput, match=words):
        altcore.train(in_epochs(start, ["partition-clip"], epochs=1, **given))
    assert not start.runs.exists()


def test_a_required_setting_may_be_in_epochs(points, shelf, start):
    """It has no default that stands in until the workload is there."""
    seen = []

    @define(eq=False)
    class Timed:
        every: int = setting(help="steps between looks", counts_steps=True)
        count: int = setting(1, help="looks")

        @hookimpl
        def run_start(self):
            seen.append(self.every)

    shelf.install("diagnostic", "timed", Timed)
    altcore.train(in_epochs(start, ["timed"], epochs=1, timed__every="0.5 epoch"))
    assert seen == [5]
    with pytest.raises(BadInput, match=r"^timed.count: '1 epoch' is not a whole number"):
        altcore.train(in_epochs(start, ["timed"], timed__every=5, timed__count="1 epoch"))


# ------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("key", ["epochs", "warmup_epochs", "evals_per_epoch", "timed__interval"])
def test_a_workload_that_counts_no_epochs_says_so(shelf, start, key):
    """Before there is a directory."""
    timed(shelf, [])
    value = "1 epoch" if key == "timed__interval" else 1
    keys = {IN_STEPS.get(key, "name"): None, key: value}
    dotted = key.replace("__", r"\.")
    with pytest.raises(BadInput, match=rf"^{dotted}: the workload gpt .* does not count epochs"):
        altcore.train(start.config(["timed"], **keys))
    assert not start.runs.exists()


def test_an_accumulation_that_does_not_divide_the_epoch_is_refused(points, start):
    """The message says which would; without anything in epochs it does not matter."""
    words = r"^gradient_accumulation_steps: 3 does not divide the 10 micro-batches .*: 1 or 2 or 5"
    with pytest.raises(BadInput, match=words):
        altcore.train(in_epochs(start, epochs=1, gradient_accumulation_steps=3))
    run = start(**OWN, gradient_accumulation_steps=3, max_steps=5)
    assert [line["epoch"] for line in run.metrics_history][-1] == 1.5


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"evals_per_epoch": 11}, "evals_per_epoch: 11 is more than the 10 steps of an epoch"),
        ({"timed__interval": "0.05 epoch"}, "timed.interval: 0.05 epoch is less than a step"),
    ],
)
def test_more_often_than_every_step_is_refused(points, shelf, start, keys, words):
    timed(shelf, [])
    with pytest.raises(BadInput, match=words):
        altcore.train(in_epochs(start, ["timed"], epochs=1, **keys))


@pytest.mark.parametrize("key", ["epochs", "warmup_epochs", "timed__interval"])
def test_more_steps_than_can_be_counted_are_refused(points, shelf, start, key):
    """Such a run would never end, and its record could not be read."""
    timed(shelf, [])
    value = "1e300 epochs" if key == "timed__interval" else 1e300
    says = rf"^{key.replace('__', '.')}: 1e\+300 epochs: their number of steps is beyond 64 bits"
    with pytest.raises(BadInput, match=says):
        altcore.train(in_epochs(start, ["timed"], **{"epochs": 1, key: value}))
    assert not start.runs.exists()


def test_batches_of_the_callers_own_have_no_epochs(points, start):
    """They are asked for by step and micro-batch, and evaluations draw from them."""
    asked = []

    def draw(split, step, micro):
        asked.append((split, step, micro))
        return torch.ones(2, 1)

    config = start.config(**OWN, max_steps=2, eval_steps=3, gradient_accumulation_steps=2)
    engine = altcore.engine.prepare(config, batch=draw)
    asked.clear()
    engine.train()
    evaluation = [("val", i, 0) for i in range(3)]
    steps = [("train", 1, 0), ("train", 1, 1), ("train", 2, 0), ("train", 2, 1)]
    assert asked == [*evaluation, *steps, *evaluation]
    assert "epoch" not in metrics_bytes(engine.directory.path).decode()
    with pytest.raises(BadInput, match="does not count epochs"):
        altcore.train(in_epochs(start, epochs=1), data=draw)


# ------------------------------------------------------------------------------------- resuming


def test_a_run_resumed_in_the_middle_of_an_epoch_is_the_same(points, shelf, start):
    """Bit for bit: batches, evaluations and weights."""
    plant(shelf, "crash")
    keys = {"epochs": 2, "evals_per_epoch": 4, "checkpoint_interval": 4}
    whole = altcore.train(in_epochs(start, name="whole", **keys))
    with pytest.raises(PluginError, match="planted"):
        altcore.train(in_epochs(start, ["crash"], name="r", crash__at=7, **keys))
    resumed = start.resume("r")
    assert metrics_bytes(resumed.run_directory) == metrics_bytes(whole.run_directory)
    assert weights_sha256(resumed.run_directory) == weights_sha256(whole.run_directory)
    check_same(state(resumed.run_directory), state(whole.run_directory), ("model", "history"))


def test_a_run_may_be_resumed_to_more_epochs_or_steps(points, start):
    """More steps take the place of its epochs."""
    altcore.train(in_epochs(start, name="r", epochs=1))
    with pytest.raises(
        BadInput, match=r"step 10 of 10; give --steps or --set epochs=\.\.\. a larger"
    ):
        start.resume("r")
    with pytest.raises(BadInput, match="epochs: max_steps is given, too"):
        start.resume("r", epochs=2.0, max_steps=20)
    assert start.resume("r", epochs=2.0).steps_completed == 20
    assert start.resume("r", max_steps=23).steps_completed == 23
    kept = load_config(start.runs / "r" / "config.yaml")
    assert (kept.epochs, kept.max_steps) == (None, 23)
    assert start.resume("r", epochs=2.5).steps_completed == 25


def test_the_record_of_a_run_in_epochs_repeats_it(points, start):
    """Also with another batch size: then the steps are counted anew."""
    run = altcore.train(in_epochs(start, name="one", epochs=2, evals_per_epoch=3))
    file = run.run_directory / "config.yaml"
    again = altcore.train(load_config(file))
    assert metrics_bytes(again.run_directory) == metrics_bytes(run.run_directory)
    larger = altcore.train(load_config(file, [("points.batch_size", 4, None)]))
    assert larger.steps_completed == 10


# ---------------------------------------------------------------------------------- batch_size


@pytest.mark.parametrize(
    ("workload", "keys"),
    [
        ("gpt", {"gpt.batch_size": None}),  # which `start` gives
        ("resnet18-cifar", {"resnet18-cifar.data": "generated", "resnet18-cifar.image_size": 16}),
        ("points", {}),
    ],
)
def test_batch_size_is_the_number_of_examples_in_a_micro_batch(points, start, workload, keys):
    """Of every workload, whatever its items are; the flat key belongs to the active one."""
    config = start.config(workload=workload, batch_size=3, **keys)
    batch = build_workload(config, torch.device("cpu"), None, None).batch("train", 1, 0)
    assert len(batch[0] if isinstance(batch, tuple) else batch) == 3
