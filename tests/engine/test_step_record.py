"""What interventions hear of the record: the same, in one order, whatever the engine waits for."""

from typing import ClassVar

import pytest
from attrs import define, field
from helpers import metrics_bytes, weights_sha256

from altcore import hookimpl, setting
from altcore.errors import Interrupted
from altcore.plugin import ScaleLearningRate


def follower(heard):
    """An intervention that lowers the learning rate by what it read, and notes when it read it."""

    @define(eq=False)
    class Follower:
        last: float = field(init=False, default=0.0)
        now: int = field(init=False, default=0)

        @hookimpl
        def on_record(self, run, metrics):
            heard.append((run.step, metrics["step"]))
            self.last = metrics["loss"]

        @hookimpl
        def pre_step(self, step):
            if not self.last:
                return None
            factor, self.last = 1 - self.last / 100, 0.0
            return ScaleLearningRate(factor=factor, reason="as the last record says")

        def state_dict(self):
            return {"last": self.last}

        def load_state_dict(self, state):
            self.last = state["last"]

    return Follower


@pytest.fixture
def heard(shelf):
    """When the intervention ``follower`` heard of which step."""
    log = []
    shelf.install("intervention", "follower", follower(log))
    return log


@pytest.mark.parametrize("intervals", [(3, 0), (7, 5), (100, 0), (1, 1)])
def test_what_an_intervention_decides_depends_on_no_interval(heard, start, intervals):
    """Each record comes as the second step after it begins; the bits are the same for all."""
    checkpoint, evaluation = intervals
    plain = start(["follower"], max_steps=10, log_interval=1, name="plain")
    assert heard == [(n + 2, n) for n in range(1, 9)]
    expected = list(heard)
    heard.clear()
    run = start(
        ["follower"],
        max_steps=10,
        log_interval=1,
        checkpoint_interval=checkpoint,
        eval_interval=evaluation,
    )
    assert heard == expected
    assert weights_sha256(run.run_directory) == weights_sha256(plain.run_directory)
    if not evaluation:
        assert metrics_bytes(run.run_directory) == metrics_bytes(plain.run_directory)


@pytest.mark.parametrize("interval", [3, 7, 100])
@pytest.mark.parametrize("left", [1, 2, 3, 8])
def test_what_an_intervention_decides_depends_on_no_resume(
    heard, shelf, start, monkeypatch, interval, left
):
    """Records that were not handed on yet are in the checkpoint, and come when their time comes."""
    keys = {"max_steps": 10, "log_interval": 1, "checkpoint_interval": interval}
    plain = start(["follower"], name="plain", **keys)
    engine = start.engine(["follower"], name="left", **keys)
    train_step = engine.train_step

    def leave(step):
        train_step(step)
        if step.index == left:
            engine.saving.save()
            raise Interrupted("left", 2)

    with monkeypatch.context() as patch:
        patch.setattr(type(engine), "train_step", lambda self, step: leave(step))
        with pytest.raises(Interrupted):
            engine.train()
    heard.clear()
    resumed = start.resume("left")
    assert weights_sha256(resumed.run_directory) == weights_sha256(plain.run_directory)
    assert metrics_bytes(resumed.run_directory) == metrics_bytes(plain.run_directory)
    assert heard[0] == (max(left + 1, 3), max(left - 1, 1))


@pytest.mark.parametrize("ends", [(5,), (1, 2, 7)])
def test_each_record_is_heard_once_however_often_a_run_goes_on(heard, start, ends):
    """The last two of a run that is over come in the next session, when their time comes."""
    keys = {"log_interval": 1, "schedule": "constant", "warmup_steps": 0}
    plain = start(["follower"], max_steps=10, name="plain", **keys)
    expected = list(heard)
    heard.clear()
    start(["follower"], max_steps=ends[0], name="parts", **keys)
    for end in (*ends[1:], 10):
        run = start.resume("parts", max_steps=end)
    assert heard == expected == [(n + 2, n) for n in range(1, 9)]
    assert weights_sha256(run.run_directory) == weights_sha256(plain.run_directory)


@pytest.mark.parametrize("requires", [(), ("looker",)])
def test_a_diagnostic_adds_no_record_for_interventions(heard, shelf, start, requires):
    """Lines that only a diagnostic gave rise to are not handed on, unless it is required."""

    @define(eq=False)
    class Looker:
        interval: int = setting(2)

        @hookimpl
        def post_step(self, step):
            return {"value": 1.0}

    follows = follower(heard)
    follows.requires = requires
    shelf.install("diagnostic", "looker", Looker)
    shelf.install("intervention", "follows", follows)
    start(["looker", "follows"], max_steps=11, log_interval=3)
    assert [step for _, step in heard] == ([3, 6, 9] if not requires else [1, 2, 3, 4, 6, 8, 9])


@pytest.fixture
def heeding(shelf):
    """What the intervention ``heeding`` was told in `on_event` and `on_eval`; it acts by all."""
    log = []

    @define(eq=False)
    class Heeding:
        count: int = field(init=False, default=0)

        @hookimpl
        def on_event(self, run, event):
            log.append((run.step, event["event"]))
            self.count += 1

        @hookimpl
        def on_eval(self, step):
            log.append((step.index, "eval"))
            self.count += 1

        @hookimpl
        def pre_step(self, step):
            factor = 1 / (1 + self.count) if step.index != 3 else 1.0
            return ScaleLearningRate(factor=factor, reason="as it was told")

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    shelf.install("intervention", "heeding", Heeding)
    return log


@pytest.mark.parametrize("interval", [3, 7, 100])
@pytest.mark.parametrize("ends", [(), (2, 5)])
def test_what_an_intervention_is_told_depends_on_no_checkpoint_and_no_resume(
    heeding, shelf, start, interval, ends
):
    """Events and evaluations: the bits are the same, whatever looks on."""
    keys = {"log_interval": 1, "eval_interval": 4, "schedule": "constant", "warmup_steps": 0}
    keys |= {"format": "E3M4", "recipe": "pure"}
    plain = start(["heeding"], max_steps=10, name="plain", **keys)
    expected = list(heeding)
    assert expected == sorted([(n, "verdict") for n in range(1, 11)] + [(4, "eval"), (8, "eval")],
                              key=lambda told: (told[0], told[1] == "eval"))  # fmt: skip
    heeding.clear()

    @define(eq=False)
    class Emits:
        @hookimpl
        def post_step(self, run):
            run.emit("mine")
            assert run.step < 4, "broken"

    shelf.install("diagnostic", "emits", Emits)
    keys |= {"checkpoint_interval": interval}
    first, *more = (*ends, 10)
    run = start(["heeding", "emits"], max_steps=first, name="parts", **keys)
    for end in more:
        run = start.resume("parts", max_steps=end)
    assert heeding == expected
    assert weights_sha256(run.run_directory) == weights_sha256(plain.run_directory)


def test_one_hook_proposes_several_actions(shelf, start):
    """All are arbitrated: changes of different layers are carried out together."""
    from altcore.plugin import ChangeRecipe, get_format

    @define(eq=False)
    class Both:
        needs: ClassVar = ()

        @hookimpl
        def pre_step(self, run, step):
            first, *rest = (
                name for name, casts in run.quantization.plan.items() if any(casts.values())
            )
            if step.index > 1:
                return []
            to = get_format("E5M2")
            return [
                ChangeRecipe(layers=first, format=to, reason="first"),
                ChangeRecipe(layers=rest, format=to, reason="rest"),
                ScaleLearningRate(factor=0.5, reason="outranked"),
            ]

    shelf.install("intervention", "both", Both)
    engine = start.engine(["both"], format="E4M3")
    engine.train()
    assert {
        cast.format.name
        for layer in engine.run.quantization.plan.values()
        for cast in layer.values()
        if cast
    } == {"E5M2"}
    assert engine.run.lr_scale == 1.0
    assert [shift["reason"] for shift in engine.run.shifts] == ["first", "rest"]
