"""When a run writes checkpoints, what they hold, and how a run goes on from each phase."""

import math
import os
import shutil
import signal

import pytest
import torch
from attrs import define, field
from helpers import as_killed, checkpoints, events, metrics_bytes, state, weights_sha256
from helpers_checkpoints import without_resumes
from helpers_epochs import Points
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import BadInput, Stop, hookimpl, setting
from altcore.engine.weights import WeightCheck
from altcore.errors import AltcoreError, Interrupted, PluginError
from altcore.runs import lost_since, read_lines, summary_of
from altcore.runs.manifest import read_manifest


def manifest(run, name="step-00000003"):
    """Return what a checkpoint says of itself."""
    return read_manifest(run / "checkpoints" / name)


def once(shelf, **methods):
    """Install a diagnostic whose hooks fail once, when it is due; the runs are strict."""
    left = set(methods)

    def failing(hook, is_due):
        def method(self, run, step=None):
            if hook in left and is_due(run):
                left.remove(hook)
                raise Crash

        if hook == "run_end":
            return hookimpl(lambda self, run, summary: method(self, run))
        return hookimpl(lambda self, run, step, metrics: method(self, run))

    hooks = {hook: failing(hook, is_due) for hook, is_due in methods.items()}
    return shelf.install("diagnostic", "once", define(eq=False)(type("Once", (), hooks)))


class Crash(Exception):
    """What the test's crash raises."""


def same(one, other):
    """Assert that two runs left the same, but for the events that tell of going on."""
    assert weights_sha256(one) == weights_sha256(other)
    assert metrics_bytes(one) == metrics_bytes(other)
    assert without_resumes(one) == without_resumes(other)
    assert len(read_lines(one / "timings.jsonl")) == len(read_lines(other / "timings.jsonl"))


@define(eq=False)
class Overflowed:
    """An intervention after which a moment is infinite, as that of a gradient above 1e19."""

    @hookimpl
    def post_step(self, run, step):
        if step.index == 2:
            p = run.model.get_parameter("transformer.wpe.weight")
            run.optimizer.state[p]["exp_avg_sq"][0] = math.inf


def test_a_moment_that_is_not_finite_is_told_once(start, shelf):
    """Its weight is finite, and may never move again. A resume does not tell it anew."""
    shelf.install("intervention", "overflowed", Overflowed)
    keys = {"format": "none", "max_steps": 4, "checkpoint_interval": 1}
    run = start(["overflowed"], name="run", **keys).run_directory
    (told,) = events(run, "warning")
    assert (told["step"], told["cause"]) == (2, "moments")
    assert told["message"].startswith("exp_avg_sq of transformer.wpe.weight of the optimizer is")
    start.resume("run", max_steps=5)
    assert sum(event.get("cause") == "moments" for event in events(run, "warning")) == 1


@define(eq=False)
class Replaced:
    """An intervention that puts another parameter in the place of one, or takes it away."""

    gone: bool = setting(False, help="whether there is none afterwards")

    @hookimpl
    def post_step(self, run, step):
        if step.index == 3:
            layer = run.model.get_submodule("transformer.wpe")
            layer.weight = None if self.gone else torch.nn.Parameter(layer.weight.detach().clone())


def test_a_parameter_that_was_replaced_is_named(start, shelf):
    """The optimizer has another one: it would stand still, and go on after a resume."""
    shelf.install("intervention", "replaced", Replaced)
    keys = {"format": "none", "max_steps": 4, "checkpoint_interval": 2}
    with pytest.raises(AltcoreError, match=r"^transformer\.wpe\.weight: something put another"):
        start(["replaced"], name="run", **keys)
    assert checkpoints(start.runs / "run")[-1] == "step-00000002"


@define(eq=False)
class Removing:
    """Removes all checkpoints, and lets the run go back by a snapshot to step 3."""

    needs = ("snapshots",)

    @hookimpl
    def post_step(self, run, step):
        if step.index == 4:
            shutil.rmtree(run.directory / "checkpoints")


def test_checkpoints_that_disappear_are_named_once(start, shelf):
    """The next one is whole, with its snapshots, and the run can go on from it."""
    shelf.install("diagnostic", "removing", Removing)
    keys = {"format": "none", "max_steps": 7, "checkpoint_interval": 2}
    run = start(["removing"], name="run", **keys).run_directory
    (told,) = events(run, "warning")
    assert (told["step"], told["cause"]) == (4, "checkpoints")
    assert "are gone (step-00000000, step-00000002): something removed" in told["message"]
    assert checkpoints(run)[0] == "step-00000004"
    assert start.resume("run", max_steps=8).steps_completed == 8
    assert len(events(run, "warning")) == 2


# --------------------------------------------------------------------------------- step 0


def test_step_0_is_a_manifest_alone(start):
    """The seed gives everything; the record begins before it."""
    run = start(name="r").run_directory
    folder = run / "checkpoints" / "step-00000000"
    assert [p.name for p in folder.iterdir()] == ["manifest.json"]
    said = manifest(run, "step-00000000")
    assert (said["kind"], said["phase"], said["evaluation"]) == ("regular", "training", None)
    assert [e["event"] for e in events(run)[:2]] == ["start", "checkpoint"]
    logged = (run / "events.jsonl").read_bytes()[: said["logs"]["events.jsonl"]["bytes"]]
    assert logged.count(b"\n") == 2
    assert said["identity"]["world_size"] == 1


def test_a_run_that_dies_in_its_first_step_goes_on(shelf, start):
    """From the manifest alone, and as if nothing had happened; the start is told once."""
    shelf.install("diagnostic", "teller", teller())
    once(shelf, on_record=lambda run: True)
    with pytest.raises(PluginError, match="Crash"):
        start(["once", "teller"], strict=True, name="r")
    assert checkpoints(start.runs / "r") == ["step-00000000"]
    run = start.resume("r")
    whole = start(["once", "teller"], strict=True, name="whole")
    same(run.run_directory, whole.run_directory)
    kinds = [e["event"] for e in events(run.run_directory)]
    assert kinds[:4] == ["warning", "start", "checkpoint", "resume"]
    assert kinds.count("warning") == 1


def teller():
    """Return a diagnostic that warns of something whenever a run starts."""

    @define(eq=False)
    class Teller:
        @hookimpl
        def run_start(self, run):
            run.emit("warning", message="told at the start")

    return Teller


def test_a_model_that_was_passed_in_is_saved_before_the_first_step(shelf, start):
    """No seed gives it."""
    once(shelf, on_record=lambda run: True)
    model = start.engine(name="donor").run.workload.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    first = {name: weight.to("cpu", copy=True) for name, weight in model.state_dict().items()}
    with pytest.raises(PluginError, match="Crash"):
        altcore.train(start.config(["once"], strict=True, name="r"), model=model)
    saved = state(start.runs / "r", "step-00000000")["model"]
    assert all(torch.equal(saved[name].cpu(), weight) for name, weight in first.items())


def test_a_run_that_fails_before_its_first_checkpoint_begins_anew(shelf, start):
    """Under its own name; resuming says so."""

    @define(eq=False)
    class Broken:
        @hookimpl
        def run_start(self, run):
            if left:
                left.pop()
                raise Crash

    left = [1]
    shelf.install("intervention", "broken", Broken)
    with pytest.raises(PluginError, match="Crash"):
        start(["broken"], name="r")
    given = {"data": lambda *_: None, "model": torch.nn.Linear(2, 2)}
    for own in ({}, given):  # nothing tells what it was given
        with pytest.raises(BadInput, match="begin it anew under its --name"):
            altcore.train({"runs_dir": str(start.runs)}, resume="r", **own)
    with capture_logs() as logs:
        run = start(["broken"], name="r")
    assert any("begins anew" in entry["event"] for entry in logs)
    assert run.status == "finished"
    assert [e["event"] for e in events(run.run_directory)].count("start") == 1


@pytest.mark.parametrize("what", ["checkpoints", "checkpoints/step-*"])
def test_a_run_whose_checkpoints_are_gone_can_only_be_begun_under_another_name(start, what):
    """No message sends you to a command that sends you back; the records stay."""
    run = start(name="r").run_directory
    for path in [*run.glob(what)]:
        shutil.rmtree(path)
    record = metrics_bytes(run)
    with pytest.raises(BadInput, match=r"no checkpoint in .* are gone, .* under another --name"):
        start.resume("r", max_steps=6)
    with pytest.raises(BadInput, match="no checkpoint to go on from; choose another name") as said:
        start(name="r")
    assert "--resume" not in str(said.value)
    assert metrics_bytes(run) == record


def test_a_run_that_was_killed_in_its_first_checkpoint_is_told_to_begin_anew(start):
    """What it left of that is no checkpoint."""
    run = start(name="r", max_steps=2).run_directory
    for path in (run / "checkpoints").glob("step-*"):
        shutil.rmtree(path)
    (run / "checkpoints/step-00000000.tmp").mkdir()
    for file in ("metrics.jsonl", "timings.jsonl"):
        (run / file).write_bytes(b"")
    told = "no checkpoint in .*: it ended before its first one: begin it anew under its --name"
    with pytest.raises(BadInput, match=told):
        start.resume("r")


# ---------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("interval", [0, 1, 3])
@pytest.mark.parametrize("where", ["on_eval", "on_record", "run_end"])
def test_a_run_that_ended_its_last_step_resumes_into_its_end(shelf, start, where, interval):
    """No step is made again, and what it leaves is what it would have left."""
    keys = {"gpt__dropout": 0.1, "checkpoint_interval": interval, "max_steps": 3}
    once(shelf, **{where: lambda run: run.step == 3})
    with pytest.raises(PluginError, match="Crash"):
        start(["once"], strict=True, name="r", **keys)
    if where != "on_record":  # that comes before the last checkpoint
        assert manifest(start.runs / "r")["phase"] == "trained"
    run = start.resume("r").run_directory
    whole = start(["once"], strict=True, name="whole", **keys).run_directory
    same(run, whole)
    assert manifest(run)["phase"] == "ended"
    assert events(run, "resume")[0]["step"] == (3 if where != "on_record" else 2 * (interval == 1))


def test_a_finished_run_is_refused(start):
    """The message says that it is, and what would be left to do."""
    run = start(name="r").run_directory
    assert manifest(run)["phase"] == "ended"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match="--resume r is finished: the run is at step 3 of 3; give"):
        start.resume("r")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_fewer_steps_than_the_run_has_made_are_refused(start):
    """The message does not count beyond what was asked for."""
    start(name="r")
    with pytest.raises(
        BadInput, match="the run has made 3 steps, and 2 are asked for in all; give"
    ):
        start.resume("r", max_steps=2)


def test_a_run_that_was_stopped_stays_stopped_until_it_has_ended(shelf, start):
    """Its end is made up for; only then may it go on."""

    @define(eq=False)
    class Stopper:
        @hookimpl
        def pre_step(self, step):
            return Stop(reason="enough") if step.index == 2 and not done else None

    done = []
    shelf.install("intervention", "stopper", Stopper)
    once(shelf, run_end=lambda run: True)
    with pytest.raises(PluginError, match="Crash"):
        start(["stopper", "once"], strict=True, name="r", max_steps=4)
    ended = start.resume("r")
    assert (ended.status, ended.steps_completed) == ("stopped", 2)
    done.append(1)
    again = start.resume("r")
    assert (again.status, again.steps_completed) == ("finished", 4)


def test_logs_are_whole_after_a_signal(shelf, start):
    """The end that was no end is not in the record of the run that goes on."""

    @define(eq=False)
    class Leave:
        @hookimpl
        def post_backward(self, step):
            if step.index == 2 and left:
                left.pop()
                os.kill(os.getpid(), signal.SIGTERM)

    left = [1]
    shelf.install("diagnostic", "leave", Leave)
    with pytest.raises(Interrupted):
        start(["leave"], name="r")
    run = start.resume("r").run_directory
    whole = start(["leave"], name="whole").run_directory
    assert weights_sha256(run) == weights_sha256(whole)
    assert metrics_bytes(run) == metrics_bytes(whole)
    kinds = [e["event"] for e in events(run)]
    # It has the checkpoint of the signal, which the other lacks.
    assert kinds == ["start", "checkpoint", "checkpoint", "resume", "checkpoint", "end"]


@pytest.mark.parametrize("torn", ["", "step-00000099", None])
def test_a_resume_rebuilds_the_pointers(shelf, start, torn):
    """Also one that has only the end of the run to make up for."""
    keys = {"strict": True, "eval_interval": 1, "max_steps": 3, "max_checkpoints": 2}
    once(shelf, run_end=lambda run: True)
    with pytest.raises(PluginError, match="Crash"):
        start(["once"], name="r", **keys)
    folder = start.runs / "r" / "checkpoints"
    told = {name: (folder / name).read_text() for name in ("best", "last")}
    for name in told:
        (folder / name).unlink()
        if torn is not None:
            (folder / name).write_text(torn)
    (folder / "step-00000004.tmp").mkdir()
    start.resume("r")
    assert {name: (folder / name).read_text() for name in told} == told
    assert told["last"] == "step-00000003"
    assert not list(folder.glob("*.tmp"))


def test_a_damaged_checkpoint_is_set_aside(shelf, start):
    """The one before serves, and the damaged one is there to be looked at."""
    once(shelf, on_record=lambda run: run.step == 3)
    with pytest.raises(PluginError, match="Crash"):
        start(["once"], strict=True, name="r", checkpoint_interval=1)
    folder = start.runs / "r" / "checkpoints"
    (folder / "step-00000002" / "state.pt").write_bytes(b"torn")
    run = start.resume("r").run_directory
    whole = start(["once"], strict=True, name="whole", checkpoint_interval=1).run_directory
    same(run, whole)
    assert events(run, "resume")[0]["checkpoint"] == "step-00000001"
    assert (folder / "damaged_step-00000002" / "state.pt").read_bytes() == b"torn"


def test_a_newest_checkpoint_that_is_gone_is_named(start):
    """And the step from which the run goes on instead, in the log and in the record."""
    run = start(name="r", checkpoint_interval=1, max_steps=4).run_directory
    folder = run / "checkpoints"
    assert lost_since(run, 3) is None
    shutil.rmtree(folder / "step-00000004")
    assert lost_since(run, 3) == folder / "step-00000004"
    as_killed(run)
    assert lost_since(run, 3) is None  # it may have died before it wrote that of step 4
    shutil.rmtree(folder / "step-00000003")
    with capture_logs() as logs:
        start.resume("r", max_steps=5)
    missing = "checkpoint step-00000003, the newest that the run wrote, is missing"
    told = f"{missing}: the run goes on from step 2"
    assert [x["event"] for x in logs if "missing" in x["event"]] == [told]
    assert [e["message"] for e in events(run, "warning") if "missing" in e["message"]] == [told]


# -------------------------------------------------------------------------------- plugins


def test_a_plugin_that_was_disabled_stays_so_and_keeps_its_state(shelf, start):
    """The run is degraded after a resume, too."""

    @define(eq=False)
    class Broken:
        seen: int = field(default=0, init=False)

        @hookimpl
        def post_backward(self, step):
            self.seen += 1
            calls.append(step.index)
            if step.index == 2:
                raise Crash

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, given):
            self.seen = given["seen"]

    calls = []
    shelf.install("diagnostic", "broken", Broken)
    start(["broken"], name="r")
    run = start.resume("r", max_steps=6)
    assert calls == [1, 2]
    assert run.summary["degraded"] == ["broken"]
    assert state(run.run_directory)["ranks"][0]["plugins"]["broken"] == {"seen": 2}
    assert len(events(run.run_directory, "degraded")) == 1
    engine = start.engine(["broken"])
    engine.run.rank = 1  # one that is new
    engine.saving.state.load_state_dict(state(run.run_directory), [])
    assert [p.is_disabled for p in engine.dispatch.plugins] == [True]


@pytest.mark.parametrize("kind", ["diagnostic", "intervention"])
def test_a_state_that_no_checkpoint_can_hold_is_told_at_step_0(shelf, start, kind):
    """Not when the first checkpoint after a step is to be written."""

    @define(eq=False)
    class Keeping:
        @hookimpl
        def post_step(self, step):
            calls.append(step.index)

        def state_dict(self):
            return {"held": object()}

        def load_state_dict(self, given):
            raise NotImplementedError

    calls = []
    shelf.install(kind, "keeping", Keeping)
    if kind == "intervention":
        with pytest.raises(PluginError, match=r"keeping .* failed in state_dict"):
            start(["keeping"])
    else:
        assert start(["keeping"]).summary["degraded"] == ["keeping"]
    assert calls == []


# ------------------------------------------------------------------------ weights not finite


def spoiling(shelf, *steps):
    """Install an intervention that makes a weight NaN in these steps, unseen by the gradients."""

    @define(eq=False)
    class Spoil:
        @hookimpl
        def post_step(self, run, step):
            if step.index in steps:
                with torch.no_grad():
                    run.model.get_parameter("transformer.wpe.weight")[-1, 0] = math.nan

    return shelf.install("intervention", "spoil", Spoil)


def nans(run):
    """Return the events of weights that are not finite."""
    found = events(run, "nan")
    assert {e["what"] for e in found} <= {"weights"}
    return [(e["step"], e["arose"], e["layer"], math.isnan(e["value"])) for e in found]


def test_weights_that_are_not_finite_are_found_before_the_next_optimizer(shelf, start):
    """The event names the step whose update made them so, and the parameter."""
    spoiling(shelf, 2)
    run = start(["spoil"], max_steps=4, nan_patience=9)
    name = "transformer.wpe.weight"
    assert nans(run.run_directory) == [(3, 2, name, True), (4, 2, name, True)]
    assert [x.get("discarded", False) for x in run.metrics_history] == [False, False, True, True]


@pytest.mark.parametrize("keys", [{"checkpoint_interval": 1}, {"eval_interval": 1}, {}])
def test_weights_that_are_not_finite_are_in_no_regular_checkpoint(shelf, start, keys):
    """A checkpoint, an evaluation and the end look at once; the last healthy one stays."""
    spoiling(shelf, 3)
    run = start(["spoil"], max_steps=3, **keys).run_directory
    assert nans(run) == [(3, 3, "transformer.wpe.weight", True)]
    assert manifest(run, "anomaly_00000003")["kind"] == "anomaly"
    assert math.isnan(state(run, "anomaly_00000003")["model"]["transformer.wpe.weight"][-1, 0])
    regular = [name for name in checkpoints(run) if name.startswith("step")]
    assert regular[-1] == ("step-00000002" if keys else "step-00000000")
    for name in regular[1:]:
        assert all(torch.isfinite(w).all() for w in state(run, name)["model"].values())


def test_a_frozen_weight_that_is_not_finite_is_in_no_regular_checkpoint(shelf, start):
    """It is frozen since the run was built, and tied to the last layer."""

    @define(eq=False)
    class Freezing:
        @hookimpl
        def run_start(self, run):
            run.model.get_parameter("transformer.wte.weight").requires_grad_(False)

        @hookimpl
        def post_step(self, run, step):
            if step.index == 2:
                with torch.no_grad():
                    run.model.get_parameter("transformer.wte.weight").fill_(math.nan)

    shelf.install("intervention", "freezing", Freezing)
    keys = {"checkpoint_interval": 1, "nan_patience": 9}
    run = start(["freezing"], max_steps=4, **keys).run_directory
    assert nans(run)[0] == (2, 2, "transformer.wte.weight", True)
    assert checkpoints(run)[:2] == ["anomaly_00000002", "anomaly_00000004"]
    assert max(name for name in checkpoints(run)) == "step-00000001"


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_a_weight_that_is_frozen_from_the_start_is_watched_if_it_is_finite(value):
    """An attention mask may be such a weight."""
    model = nn.Linear(2, 1)
    model.mask = nn.Parameter(torch.full((2,), value), requires_grad=False)
    weights = WeightCheck(model)
    assert weights.judge(float(weights.norm()), 1) is None
    model.mask.data.fill_(math.nan)
    found = weights.judge(float(weights.norm()), 2)
    assert (found and (found.layer, found.arose)) == (("mask", 2) if value == 0 else None)


@pytest.mark.parametrize("interval", [0, 1])
def test_interventions_hear_of_weights_in_the_next_step(shelf, start, interval):
    """Whether a checkpoint looked before or not."""

    @define(eq=False)
    class Listener:
        @hookimpl
        def on_event(self, event):
            heard.append((event["step"], event["event"]))

    heard = []
    shelf.install("intervention", "listener", Listener)
    spoiling(shelf, 2)
    start(["spoil", "listener"], max_steps=3, checkpoint_interval=interval)
    assert heard == [(3, "nan")]


def test_large_weights_are_not_taken_for_infinite(shelf, start):
    """Their norm overflows, and no element does."""

    @define(eq=False)
    class Large:
        @hookimpl
        def post_step(self, run):
            with torch.no_grad():
                run.model.get_parameter("transformer.wpe.weight")[-1, :2] = 1e30

    shelf.install("intervention", "large", Large)
    run = start(["large"], max_steps=2).run_directory
    assert not [e for e in events(run, "nan") if e["what"] == "weights"]
    assert "step-00000002" in checkpoints(run)


# -------------------------------------------------------- an end with weights that are not finite


@pytest.fixture
def ended(shelf, start):
    """A run that finished with a weight that its last update but one made NaN."""
    spoiling(shelf, 5)
    return start(["spoil"], name="r", max_steps=6, checkpoint_interval=2).run_directory


def test_a_run_that_finished_with_nonfinite_weights_has_ended(ended, start):
    """It makes no step again: its end is on record, in a checkpoint that nothing goes on from."""
    assert [name for name in checkpoints(ended) if name.startswith("step")][-1] == "step-00000004"
    assert manifest(ended, "anomaly_00000006")["phase"] == "ended"
    before = {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match="--resume r is finished: the run is at step 6 of 6; give"):
        start.resume("r")
    with pytest.raises(BadInput, match="the run has made 6 steps, and 5 are asked for in all"):
        start.resume("r", max_steps=5)
    assert {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()} == before


def test_its_lost_summary_is_written_again(ended, start):
    """As it was; the record has another end, and nothing else."""
    file = ended / "summary.json"
    before, told = (summary_of(ended), metrics_bytes(ended)), without_resumes(ended)
    file.unlink()
    assert start.resume("r").status == "finished"
    assert (summary_of(ended), metrics_bytes(ended)) == before
    assert without_resumes(ended) == [*told, told[-1]]
    with pytest.raises(BadInput, match="is finished"):
        start.resume("r")


def test_with_more_steps_it_goes_on_from_the_last_finite_weights(ended, start):
    """And says so; the old end is none any more."""
    with capture_logs() as logs:
        start.resume("r", max_steps=8)
    told = "it ended as anomaly_00000006, whose weights are not finite, and goes on from before"
    assert any(told in entry["event"] for entry in logs)
    assert events(ended, "resume")[0]["checkpoint"] == "step-00000004"
    assert manifest(ended, "anomaly_00000006")["phase"] == "training"
    assert manifest(ended, "anomaly_00000008")["phase"] == "ended"


def test_a_run_that_collapsed_with_such_weights_goes_on_from_before(shelf, start):
    """And says so: all between is made again, and ends in the same collapse."""
    spoiling(shelf, 3)
    keys = {"max_steps": 9, "checkpoint_interval": 2, "nan_patience": 2}
    first = start(["spoil"], name="r", **keys)
    assert (first.status, first.steps_completed) == ("collapsed", 5)
    assert manifest(first.run_directory, "anomaly_00000005")["phase"] == "ended"
    lines = metrics_bytes(first.run_directory)
    with capture_logs() as logs:
        again = start.resume("r")
    told = "it ended as anomaly_00000005, whose weights are not finite, and goes on from before"
    assert [e["log_level"] for e in logs if told in e["event"]] == ["warning"]
    assert events(again.run_directory, "resume")[0]["checkpoint"] == "step-00000002"
    assert (again.status, metrics_bytes(again.run_directory)) == ("collapsed", lines)


def test_a_run_that_dies_in_such_an_end_resumes_into_it(shelf, start):
    """As one with finite weights does."""
    spoiling(shelf, 3)
    once(shelf, run_end=lambda run: True)
    with pytest.raises(PluginError, match="Crash"):
        start(["spoil", "once"], strict=True, name="r", max_steps=3)
    assert manifest(start.runs / "r", "anomaly_00000003")["phase"] == "trained"
    run = start.resume("r").run_directory
    whole = start(["spoil", "once"], strict=True, name="whole", max_steps=3).run_directory
    assert metrics_bytes(run) == metrics_bytes(whole)
    assert without_resumes(run) == without_resumes(whole)
    assert events(run, "resume")[0]["checkpoint"] == "anomaly_00000003"


@define(eq=False)
class Listed(Points):
    """Has files in a mapping of lists."""

    files: dict[str, list[str]] = setting(factory=dict, help="by split")


@pytest.mark.parametrize("workload", ["gpt", "listed"])
def test_data_that_change_while_the_run_trains_end_it(workload, shelf, start):
    """With the file named, and no checkpoint of what was learned from it."""
    shelf.install("workload", "listed", Listed)
    keys = {"listed__files": {"train": ["none", str(start.corpus)]}} if workload != "gpt" else {}

    @define(eq=False)
    class Spoils:
        @hookimpl
        def pre_step(self, run, step):
            if step.index == 3:
                start.corpus.write_text(start.corpus.read_text() + "more")

    shelf.install("intervention", "spoils", Spoils)
    with pytest.raises(AltcoreError, match=f"data changed while the run trained: {start.corpus}"):
        start(["spoils"], name="r", max_steps=6, checkpoint_interval=2, workload=workload, **keys)
    assert checkpoints(start.runs / "r")[-1] == "step-00000002"
    assert events(start.runs / "r", "end")[0]["status"] == "failed"
