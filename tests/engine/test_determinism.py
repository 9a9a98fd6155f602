"""A run is a function of its configuration: repeated, looked at, interrupted or resumed."""

import math
import signal
from typing import ClassVar

import pytest
import torch
from attrs import define, field
from helpers import events, metrics_bytes, sha256, state, weights_sha256
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import BadInput, hookimpl, setting
from altcore.engine import Step
from altcore.errors import Interrupted, PluginError
from altcore.runs import read_lines

STOCHASTIC = {"format": "E3M4", "rounding": "stochastic"}
EVERYTHING = {
    "weight": STOCHASTIC,
    "activation": STOCHASTIC,
    "gradient": {"format": "E5M2", "rounding": "stochastic"},
    "weight_gradient": STOCHASTIC,
    "stored_weight": STOCHASTIC,
    "optimizer_state": STOCHASTIC,
}
"""Every role, with random bits."""
RECIPES = [
    pytest.param({"format": fmt, "recipe": recipe}, id=f"{fmt}-{recipe}")
    for fmt in ("E3M4", "E7M0")
    for recipe in ("master", "pure", "original")
] + [pytest.param({"recipe": EVERYTHING}, id="everything")]
FEW = [RECIPES[1], RECIPES[2], RECIPES[-1]]


@pytest.fixture
def start(start):
    """Dropout draws from the random state, so that a state that is not put back shows."""
    start.keys = {"gpt.dropout": 0.1, "max_steps": 6}
    return start


# ------------------------------------------------------------------------- repeated


@pytest.mark.parametrize("keys", RECIPES)
def test_the_same_seed_gives_the_same_bits(start, keys):
    """Two runs of one configuration: the same weights, and the same metrics to the byte."""
    one, other = start(name="a", **keys), start(name="b", **keys)
    assert weights_sha256(one.run_directory) == weights_sha256(other.run_directory)
    assert metrics_bytes(one.run_directory) == metrics_bytes(other.run_directory)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_autocast_of_the_caller_changes_no_bit(start, compute):
    """Backward passes would be in it, and its cache of cast weights would never be cleared."""
    keys = {"compute": compute, "max_steps": 2, "eval_interval": 1}
    outside = start(name="outside", **keys)
    with torch.autocast("cpu", torch.bfloat16):
        within = start(name="within", **keys)
    assert weights_sha256(within.run_directory) == weights_sha256(outside.run_directory)
    assert metrics_bytes(within.run_directory) == metrics_bytes(outside.run_directory)


def test_another_seed_gives_others(start):
    """Weights, batches and random bits are functions of the seed."""
    one, other = start(name="a", seed=1), start(name="b", seed=2)
    assert weights_sha256(one.run_directory) != weights_sha256(other.run_directory)
    assert one.final_loss != other.final_loss


def test_the_seed_decides_the_random_bits_of_rounding(start):
    """From the same weights and batches, another seed's rounding ends elsewhere."""
    fixed = start.engine(name="donor").run.workload
    first = {k: v.clone() for k, v in fixed.model.state_dict().items()}
    ends = []
    for seed in (1, 2):
        fixed.model.load_state_dict(first)
        altcore.train(
            start.config(name=f"s{seed}", seed=seed, recipe=EVERYTHING, gpt__dropout=0.0),
            model=fixed.model,
            data=fixed.batch,
        )
        ends.append(sha256(fixed.model.state_dict()))
    assert ends[0] != ends[1]


@pytest.mark.parametrize("recipe", ["master", "pure"])
@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_e0m7_and_e1m6_are_one_format(start, recipe, rounding):
    """E1M6 is E0M7 times 4: under scales per tensor they train bit for bit alike."""
    runs = []
    for fmt in ("E0M7", "E1M6"):
        cast = {"format": fmt, "rounding": rounding}
        given = dict.fromkeys(("weight", "activation", "gradient"), cast)
        if recipe == "pure":
            given["stored_weight"] = cast
        runs.append(start(recipe=given, name=fmt).run_directory)
    assert weights_sha256(runs[0]) == weights_sha256(runs[1])
    assert metrics_bytes(runs[0]) == metrics_bytes(runs[1])


# ------------------------------------------------------------------------- looked at


def looking(shelf, hook):
    """Install a diagnostic that runs and differentiates the model in a probe, in ``hook``."""

    @define(eq=False)
    class Looks:
        pass

    def method(self, run, step):
        with run.probe():
            run.model.train()
            torch.rand(3)
            run.workload.loss(run.model, run.workload.batch("val", 0, 0)).backward()

    setattr(Looks, hook, hookimpl(method))
    return shelf.install("diagnostic", f"looks-{hook}", Looks)


@pytest.mark.parametrize("keys", FEW)
def test_looking_changes_no_weight(shelf, start, keys):
    """Evaluations, logging, checkpoints and diagnostics leave every bit of the weights alone."""
    hooks = ("pre_backward", "post_backward", "pre_step", "post_step")
    plain = start(name="plain", **keys)
    losses = {x["step"]: x["loss"] for x in plain.metrics_history}
    for i, changed in enumerate(
        [
            {"eval_interval": 1},
            {"log_interval": 4},
            {"checkpoint_interval": 2},
            {"plugins": ["ulp-stats"], "ulp-stats__interval": 1, "log_interval": 2},
            *({"plugins": [looking(shelf, hook)]} for hook in hooks),
        ]
    ):
        looked = start(name=f"looked-{i}", **{**keys, **changed})
        assert not looked.summary["degraded"]
        assert weights_sha256(looked.run_directory) == weights_sha256(plain.run_directory), changed
        assert all(losses[x["step"]] == x["loss"] for x in looked.metrics_history), changed


def test_looking_changes_no_verdict(start):
    """A collapse called stalled comes in the same step however often one looks."""
    keys = {
        "format": "E7M0", "recipe": "pure", "learning_rate": 1e-7, "min_lr_ratio": 1.0,
        "warmup_steps": 0, "stall_window": 4, "log_interval": 2, "max_steps": 16,
    }  # fmt: skip
    found = []
    for i, changed in enumerate(
        [
            {},
            {"eval_interval": 1},
            {"checkpoint_interval": 3},
            {"plugins": ["ulp-stats"], "ulp-stats__interval": 1},
        ]
    ):
        run = start(name=f"r{i}", **{**keys, **changed})
        found.append([(e["step"], e["cause"]) for e in events(run.run_directory, "collapse")])
    assert found[0], "the run must stall for this to say anything"
    assert found == [found[0]] * len(found)


class Buffered(nn.Module):
    """A model with dropout and with running statistics in buffers."""

    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Embedding(256, 8), nn.Linear(8, 12)
        self.norm, self.drop, self.head = nn.BatchNorm1d(12), nn.Dropout(0.2), nn.Linear(12, 256)

    def forward(self, x):
        y = self.norm(self.first(self.embed(x)).transpose(1, 2)).transpose(1, 2)
        return self.head(self.drop(y).relu())


@pytest.mark.parametrize("fails", [False, True])
def test_a_probe_puts_everything_back(start, fails):
    """Random state, gradients, buffers, counters, scales and modes, after an error too."""
    scaling = {"kind": "delayed", "history": 3}
    config = start.config(
        recipe={"weight": {"format": "E4M3", "scaling": scaling}, "activation": "E4M3"}
    )
    torch.manual_seed(0)
    from altcore.engine import setup

    engine = setup.prepare(config, model=Buffered())
    run, q = engine.run, engine.run.quantization
    engine.train_step(Step(1))
    run.model.embed.eval()
    delayed = [x for x in q.quantizers if x.cast.scaling.kind == "delayed"]

    def everything():
        return {
            "random": torch.get_rng_state(),
            "counts": q.counters.counts.clone(),
            **{f"history {x.site}": x.history.clone() for x in q.quantizers if x in delayed},
            **{f"scale {x.site}": x.last_scale.clone() for x in q.quantizers},
            **{f"buffer {n}": b.clone() for n, b in run.model.named_buffers()},
            **{f"gradient {n}": p.grad.clone() for n, p in run.model.named_parameters()},
            **{f"mode {n}": torch.tensor(m.training) for n, m in run.model.named_modules()},
        }  # fmt: skip

    before, grads = everything(), [p.grad for p in run.model.parameters()]
    assert any("history" in k for k in before)
    assert any("running_mean" in k for k in before)

    def look():
        with run.probe():
            assert all(p.grad is None for p in run.model.parameters())
            run.model.train()
            run.workload.loss(run.model, run.workload.batch("val", 3, 0)).backward()
            run.model.norm.running_mean += 1
            run.model.eval()
            torch.rand(5)
            if fails:
                raise KeyError("in the middle")

    if fails:
        with pytest.raises(KeyError, match="in the middle"):
            look()
    else:
        look()
    after = everything()
    assert before.keys() == after.keys()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert all(p.grad is g for p, g in zip(run.model.parameters(), grads, strict=True))
    engine.directory.close()


class Masked(nn.Module):
    """A model whose backward pass needs a buffer, like a causal mask."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.head = nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256)
        self.register_buffer("mask", torch.linspace(0, 1, 8))

    def forward(self, x):
        return self.head(self.first(self.embed(x)).relu() * self.mask)


def test_a_probe_between_forward_and_backward(shelf, start):
    """Putting buffers back does not spoil a backward pass that needs them."""
    name = looking(shelf, "pre_backward")
    torch.manual_seed(0)
    run = altcore.train(start.config([name], max_steps=2), model=Masked())
    assert not run.summary["degraded"]
    assert run.status == "finished"


def test_the_float32_loss_is_that_of_the_plain_model(start):
    """val_loss_float32 is the forward of the same weights without casts, in float32."""
    for compute in ("float32", "bfloat16"):
        engine = start.engine(format="E4M3", compute=compute, name=compute, eval_steps=2)
        engine.train()
        model, workload = engine.run.model, engine.run.workload
        engine.run.quantization.remove()
        model.eval()
        with torch.no_grad():
            losses = [workload.loss(model, workload.batch("val", i, 0)).double() for i in (0, 1)]
        assert engine.history.evaluation["val_loss_float32"] == float(torch.stack(losses).mean())
        assert engine.history.evaluation["val_loss"] != float(torch.stack(losses).mean())


# ---------------------------------------------------------------------- accumulation


def test_two_micro_batches_are_one_batch_of_both(start):
    """The gradients are those of the mean over both, to float tolerance."""
    donor = start.engine(name="donor", gpt__dropout=0.0).run.workload
    first = {k: v.clone() for k, v in donor.model.state_dict().items()}

    def both(split, step, micro):
        pairs = [donor.batch(split, step, m) for m in (0, 1)]
        return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))

    ends, losses = [], []
    for name, data, accumulation in (("two", donor.batch, 2), ("one", both, 1)):
        donor.model.load_state_dict(first)
        run = altcore.train(
            start.config(name=name, gradient_accumulation_steps=accumulation, gpt__dropout=0.0),
            model=donor.model,
            data=data,
        )
        ends.append({k: v.clone() for k, v in donor.model.state_dict().items()})
        losses.append([x["loss"] for x in run.metrics_history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, end in ends[0].items():
        torch.testing.assert_close(end, ends[1][name], rtol=1e-3, atol=1e-4)
        assert not torch.equal(end, first[name]), "the tolerance must be far below what was learned"


# --------------------------------------------------------------------------- resumed


def stateful(shelf):
    """Install an intervention whose effect depends on all the steps before."""

    @define(eq=False)
    class Stateful:
        strength: float = setting(0.1, help="how much")
        mean: float = field(default=0.0, init=False)
        seen: list = field(factory=list, init=False)

        @hookimpl
        def pre_step(self, run, step):
            norm = float(step.grad_norm)
            self.mean = 0.5 * self.mean + 0.5 * norm
            self.seen.append(step.index)
            for p in run.model.parameters():
                p.grad *= 1 + self.strength * math.tanh(norm - self.mean) * len(self.seen)

        def state_dict(self):
            return {"mean": self.mean, "seen": list(self.seen)}

        def load_state_dict(self, state):
            self.mean, self.seen = state["mean"], state["seen"]

    return shelf.install("intervention", "stateful", Stateful)


class Crash(Exception):
    """What the test's crash raises."""


def crashing(shelf, *steps):
    """Install an intervention that raises the first time it meets each of the steps."""
    left = set(steps)

    @define(eq=False)
    class Crashing:
        @hookimpl
        def post_step(self, step):
            if step.index in left:
                left.remove(step.index)
                raise Crash

    return shelf.install("intervention", "crashing", Crashing)


def same(one, other):
    """Assert that two runs ended alike: weights, optimizer, plugins and metrics."""
    assert weights_sha256(one) == weights_sha256(other)
    assert metrics_bytes(one) == metrics_bytes(other)
    first, second = state(one), state(other)
    for key in ("detector", "lr_scale", "step", "history"):
        assert first[key] == second[key], key
    for i, moments in first["optimizer"]["state"].items():
        assert sha256(moments) == sha256(second["optimizer"]["state"][i])
    assert torch.equal(first["dead_steps"], second["dead_steps"])
    (first,), (second,) = first["ranks"], second["ranks"]
    assert first["plugins"] == second["plugins"]
    assert torch.equal(first["random"]["cpu"], second["random"]["cpu"])


@pytest.mark.parametrize("keys", RECIPES)
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(shelf, start, keys):
    """After a crash at step 6: back to the checkpoint of 4, and no step is lost or doubled.

    An intervention that remembers all steps remembers the right ones.
    """
    stateful(shelf)
    crashing(shelf, 6)
    keys = {**keys, "max_steps": 8, "checkpoint_interval": 2, "eval_interval": 4}
    with pytest.raises(PluginError, match="Crash"):
        start(["stateful", "crashing"], name="r", **keys)
    assert state(start.runs / "r")["step"] == 4
    resumed = start.resume("r")
    whole = start(["stateful", "crashing"], name="whole", **keys)
    same(resumed.run_directory, whole.run_directory)
    steps = [x["step"] for x in read_lines(start.runs / "r" / "metrics.jsonl") if "loss" in x]
    assert steps == list(range(1, 9))
    # What the run is now, its configuration says: another resume needs no --steps to see it.
    with pytest.raises(BadInput, match="the run is at step 8 of 8; give --steps"):
        start.resume("r")
    assert state(start.runs / "r")["ranks"][0]["plugins"]["stateful"]["seen"] == list(range(1, 9))
    (event,) = events(start.runs / "r", "resume")
    assert event["checkpoint"] == "step-00000004"


def test_resumed_after_a_change_of_recipe(shelf, start):
    """The formats and scales in force are part of the state, not those of the configuration."""

    @define(eq=False)
    class Shift:
        needs = ("snapshots",)
        to: altcore.Format = setting("E5M2", help="the later format")

        @hookimpl
        def pre_step(self, step):
            if step.index == 2:
                return altcore.ShiftFormat(self.to, reason="time")
            if step.index == 3:
                return altcore.ScaleLearningRate(factor=0.5, reason="time")
            return None

    shelf.install("intervention", "shift", Shift)
    crashing(shelf, 6)
    keys = {"format": "E3M4", "recipe": "pure", "max_steps": 8, "checkpoint_interval": 4}
    with pytest.raises(PluginError, match="Crash"):
        start(["shift", "crashing"], name="r", **keys)
    resumed = start.resume("r")
    whole = start(["shift", "crashing"], name="whole", **keys)
    same(resumed.run_directory, whole.run_directory)
    assert resumed.format_shifted_to == whole.format_shifted_to == "E5M2"
    stored = state(resumed.run_directory)["quantization"]
    assert stored["plan"]["transformer.wte"]["stored_weight"]["format"] == "E5M2"


@pytest.mark.parametrize("keys", FEW[1:])
def test_resumed_after_a_signal_at_any_step(shelf, start, keys):
    """A run that was asked to leave goes on from that very step."""
    stateful(shelf)
    asked = []

    @define(eq=False)
    class Leave:
        @hookimpl
        def pre_step(self, step):
            if step.index in (1, 3, 4) and step.index not in asked:
                asked.append(step.index)
                signal.raise_signal(signal.SIGUSR1)

    shelf.install("intervention", "leave", Leave)
    with pytest.raises(Interrupted):
        start(["stateful", "leave"], name="r", **keys)
    for _ in range(2):
        with pytest.raises(Interrupted):
            start.resume("r")
    resumed = start.resume("r")
    assert asked == [1, 3, 4]
    whole = start(["stateful", "leave"], name="whole", **keys)
    same(resumed.run_directory, whole.run_directory)


def test_counts_go_on_over_an_interruption(shelf, start):
    """Dead gradients and NaN patience are counted over all steps, not over those of a process."""
    asked = []

    @define(eq=False)
    class Trouble:
        not_state: ClassVar = ("asked",)

        @hookimpl
        def run_start(self, run):
            run.model.get_parameter("transformer.h.0.mlp.c_fc.weight").register_hook(
                lambda g: 0 * g
            )

        @hookimpl
        def pre_backward(self, step):
            if step.index >= 5:
                step.loss = step.loss * math.nan

        @hookimpl
        def pre_step(self, step):
            if step.index in (2, 6) and step.index not in asked:
                asked.append(step.index)
                signal.raise_signal(signal.SIGUSR1)

    shelf.install("intervention", "trouble", Trouble)
    keys = {"dead_neuron_window": 4, "nan_patience": 3, "max_steps": 20}
    with pytest.raises(Interrupted):
        start(["trouble"], name="r", **keys)
    with pytest.raises(Interrupted):
        start.resume("r")
    resumed = start.resume("r")
    assert (resumed.status, resumed.steps_completed) == ("collapsed", 7)
    told = events(resumed.run_directory, "collapse", "warning")
    # The loss was finite for too short a time to say whether it stood still.
    assert [(e["step"], e["event"], e["cause"]) for e in told] == [
        (4, "warning", "dead_gradients"),
        (7, "collapse", "nan_patience"),
    ]
    assert [e["consecutive"] for e in events(resumed.run_directory, "nan")] == [1, 2, 3]


def interrupted(shelf, start):
    """A run that crashed at step 5, with checkpoints of 2 and 4; returns its folder."""
    crashing(shelf, 5)
    with pytest.raises(PluginError):
        start(["crashing"], name="r", format="E3M4", recipe="pure", checkpoint_interval=2)
    return start.runs / "r"


def flip(path, position=None):
    """Flip one bit of a file, in the middle if no position is given."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_serves(shelf, start):
    """torch.load would not notice; the digest does, loudly, and nothing of the result differs."""
    path = interrupted(shelf, start)
    flip(path / "checkpoints" / "step-00000004" / "state.pt")
    with capture_logs() as logs:
        resumed = start.resume("r")
    assert any(
        x["log_level"] == "warning" and "step-00000004" in x["error"] and "sha256" in x["error"]
        for x in logs
    )
    assert events(path, "resume")[0]["checkpoint"] == "step-00000002"
    whole = start(["crashing"], name="w", format="E3M4", recipe="pure", checkpoint_interval=2)
    same(resumed.run_directory, whole.run_directory)


def test_without_a_valid_checkpoint_nothing_is_touched(shelf, start):
    """If none is left whole, that is said, and the record stays as it was."""
    path = interrupted(shelf, start)
    for name in ("step-00000002", "step-00000004"):
        flip(path / "checkpoints" / name / "state.pt")
    flip(path / "checkpoints" / "step-00000000" / "manifest.json")
    before = {p.name: p.read_bytes() for p in path.glob("*.jsonl")}
    with pytest.raises(BadInput, match="no valid checkpoint"):
        start.resume("r")
    assert {p.name: p.read_bytes() for p in path.glob("*.jsonl")} == before


def test_torn_last_lines_are_tolerated(shelf, start):
    """A line that was half written when the machine stopped costs nothing but itself."""
    path = interrupted(shelf, start)
    for file in ("metrics.jsonl", "timings.jsonl", "events.jsonl"):
        with (path / file).open("a") as torn:
            torn.write('{"step": 5, "lo')
    resumed = start.resume("r")
    whole = start(["crashing"], name="w", format="E3M4", recipe="pure", checkpoint_interval=2)
    same(resumed.run_directory, whole.run_directory)
    assert [e["checkpoint"] for e in events(path, "resume")] == ["step-00000004"]
    assert events(path)[-1]["event"] == "end"


def test_a_finished_run_cannot_be_resumed_without_more_steps(start):
    """The message says where the run is and what to give; more steps are kept for next time."""
    start(name="r")
    with pytest.raises(BadInput, match="the run is at step 6 of 6; give --steps"):
        start.resume("r")
    longer = start.resume("r", max_steps=8)
    assert longer.steps_completed == 8
    steps = [x["step"] for x in read_lines(start.runs / "r" / "metrics.jsonl") if "loss" in x]
    assert steps == list(range(1, 9))
