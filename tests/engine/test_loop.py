"""The step: the exact trace of its events, and what happens when a plugin breaks."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from attrs import define, field
from helpers import checkpoints, events, metrics_bytes, state, tracer, weights_sha256
from helpers_plugins import make
from torch import nn

import altcore
from altcore import BadInput, Format, ScaleLearningRate, SkipStep, Stop, hookimpl, setting
from altcore.cli import main
from altcore.config import TrainConfig
from altcore.engine import Step
from altcore.engine.custom_workload import CustomWorkload
from altcore.engine.schedule import learning_rate
from altcore.errors import AltcoreError, ConflictingActions, Interrupted, PluginError
from altcore.plugin import ShiftFormat
from altcore.runs import read_lines
from altcore.runs.log_file import LogFile


def lines(text):
    """The trace in a literal, a hook a line."""
    return [line.strip() for line in text.strip().splitlines()]


@pytest.fixture
def trace(shelf):
    """Install a reporter that writes every hook to the list that is returned."""
    log = []
    shelf.install("reporter", "trace", tracer(log))
    return log


def poison(shelf, *, loss=(), final=(), raw=(), name="poison", scale=math.nan):
    """Install an intervention that makes something non-finite in the steps that are named."""

    @define(eq=False)
    class Poison:
        @hookimpl
        def pre_backward(self, run, step):
            if step.index in loss:
                step.loss = step.loss * scale
            if step.index in raw:
                # The loss stays finite: a hook on one parameter alone spoils its gradient.
                weight = run.model.get_parameter("transformer.h.0.mlp.c_fc.weight")
                handle = weight.register_hook(lambda g: (handle.remove(), g * scale)[1])

        @hookimpl
        def pre_step(self, run, step):
            if step.index in final:
                run.model.get_parameter("transformer.h.0.attn.c_proj.weight").grad[0, 0] = scale

    return shelf.install("intervention", name, Poison)


def test_a_norm_that_overflows_names_the_largest_gradient(shelf, start):
    """Its elements are finite, and the sum of their squares is not."""
    run = start([poison(shelf, raw=[2], scale=1e30)])
    (nan,) = events(run.run_directory, "nan")
    assert (nan["what"], nan["value"]) == ("gradient", math.inf)
    assert nan["layer"] == "transformer.h.0.mlp.c_fc.weight"


# ------------------------------------------------------------------------------ the trace


def test_trace_of_a_plain_run(trace, start):
    """Every hook of three steps, with an evaluation at 2 and at the end, and a checkpoint at 3.

    A line is recorded in the step after, or at once where the engine waits for the device anyway.
    """
    start(["trace"], eval_interval=2, checkpoint_interval=3)
    assert trace == lines(
        """
        run_start
        on_event 0: start
        on_event 0: checkpoint
        pre_backward 1.0
        post_backward 1
        pre_step 1
        post_step 1
        pre_backward 2.0
        post_backward 2
        pre_step 2
        post_step 2
        on_record 1
        on_record 2
        on_eval 2
        on_event 2: checkpoint
        pre_backward 3.0
        post_backward 3
        pre_step 3
        post_step 3
        on_record 3
        on_event 3: checkpoint
        on_eval 3
        on_event 3: end
        run_end: finished
        """
    )


def test_trace_with_accumulation(trace, start):
    """pre_backward comes once a micro-batch, everything else once a step."""
    start(["trace"], gradient_accumulation_steps=2, max_steps=2)
    assert trace == lines(
        """
        run_start
        on_event 0: start
        on_event 0: checkpoint
        pre_backward 1.0
        pre_backward 1.1
        post_backward 1
        pre_step 1
        post_step 1
        pre_backward 2.0
        pre_backward 2.1
        post_backward 2
        pre_step 2
        post_step 2
        on_record 1
        on_record 2
        on_event 2: checkpoint
        on_eval 2
        on_event 2: end
        run_end: finished
        """
    )


def test_trace_of_a_nan_loss(trace, shelf, start):
    """A step whose loss is NaN asks on_nan before the optimizer, and has no post_step."""
    poison(shelf, loss=[2])
    start(["trace", "poison"])
    assert trace == lines(
        """
        run_start
        on_event 0: start
        on_event 0: checkpoint
        pre_backward 1.0
        post_backward 1
        pre_step 1
        post_step 1
        pre_backward 2.0
        post_backward 2
        pre_step 2
        on_event 2: nan
        on_event 2: checkpoint
        on_nan 2: loss of None
        on_record 1
        pre_backward 3.0
        post_backward 3
        pre_step 3
        post_step 3
        on_record 2
        on_record 3
        on_event 3: checkpoint
        on_eval 3
        on_event 3: end
        run_end: finished
        """
    )


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
@pytest.mark.parametrize(
    ("where", "what", "layer"),
    [
        ("raw", "gradient", "transformer.h.0.mlp.c_fc.weight"),
        ("final", "final gradient", "transformer.h.0.attn.c_proj.weight"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_trace_of_a_bad_gradient(trace, shelf, start, where, what, layer, value, grad_clip):
    """A gradient is named by its parameter, whether it came so or a clipper made it so.

    The engine's own clipping must not spoil the others before they are looked at.
    """
    poison(shelf, **{where: [1]}, scale=value)
    run = start(["trace", "poison"], max_steps=1, grad_clip=grad_clip)
    assert trace == lines(
        f"""
        run_start
        on_event 0: start
        on_event 0: checkpoint
        pre_backward 1.0
        post_backward 1
        pre_step 1
        on_event 1: nan
        on_event 1: checkpoint
        on_nan 1: {what} of {layer}
        on_record 1
        on_event 1: checkpoint
        on_eval 1
        on_event 1: end
        run_end: finished
        """
    )
    (nan,) = events(run.run_directory, "nan")
    assert not math.isfinite(nan["value"])
    assert math.isnan(nan["value"]) == math.isnan(value)


def test_trace_of_a_bad_raw_gradient_by_way_of_the_loss_scale(trace, shelf, start):
    """A loss scale that overflows is found in the raw gradients, and the loss stays finite."""

    @define(eq=False)
    class Scale:
        @hookimpl
        def pre_backward(self, run, step):
            step.loss_scale = 1e300

    shelf.install("intervention", "scale", Scale)
    run = start(["trace", "scale"], max_steps=1)
    (nan,) = events(run.run_directory, "nan")
    assert nan["what"] == "gradient"
    assert math.isfinite(run.metrics_history[0]["loss"])
    assert "post_step 1" not in trace


def test_trace_of_a_collapse(trace, shelf, start):
    """Spent NaN patience asks on_collapse; with no opinion the run stops there."""
    poison(shelf, loss=[2, 3, 4])
    run = start(["trace", "poison"], nan_patience=2, max_steps=9)
    assert trace == lines(
        """
        run_start
        on_event 0: start
        on_event 0: checkpoint
        pre_backward 1.0
        post_backward 1
        pre_step 1
        post_step 1
        pre_backward 2.0
        post_backward 2
        pre_step 2
        on_event 2: nan
        on_event 2: checkpoint
        on_nan 2: loss of None
        on_record 1
        pre_backward 3.0
        post_backward 3
        pre_step 3
        on_event 3: nan
        on_nan 3: loss of None
        on_record 2
        on_record 3
        on_event 3: collapse
        on_collapse 3: nan_patience
        on_event 3: verdict
        on_event 3: checkpoint
        on_eval 3
        on_event 3: end
        run_end: collapsed
        """
    )
    assert (run.status, run.failure_step) == ("collapsed", 3)
    assert "nan_patience 2" in run.failure_reason


@pytest.mark.parametrize(("fallback", "failure"), [("E5M2", 4), ("E4M3", 3)])
def test_a_fallback_to_the_format_in_force_spends_patience(shelf, start, fallback, failure):
    """It changes nothing, however often it is proposed: a run of bad steps alone has an end."""

    @define(eq=False)
    class Fallback:
        to: Format = setting(fallback, help="the format to shift to")

        @hookimpl
        def on_nan(self):
            return ShiftFormat(self.to, reason="not finite")

    shelf.install("intervention", "fallback", Fallback)
    poison(shelf, loss=[2, 3, 4, 5, 6])
    run = start(["poison", "fallback"], format="E4M3", nan_patience=2, max_steps=6)
    # A step after which the format changes is forgiven.
    assert (run.status, run.failure_step) == ("collapsed", failure)


def proposer(shelf, name, hook, action):
    """Install an intervention that proposes an action in step 1."""

    @define(eq=False)
    class Proposer:
        pass

    def method(self, run, step):
        return action if step.index == 1 else None

    setattr(Proposer, hook, hookimpl(method))
    return shelf.install("intervention", name, Proposer)


def test_trace_of_conflicting_proposals(trace, shelf, start):
    """Two values for one thing end the run in an error that names both; run_end still comes."""
    proposer(shelf, "half", "pre_step", ScaleLearningRate(factor=0.5, reason="a"))
    proposer(shelf, "third", "pre_backward", ScaleLearningRate(factor=1 / 3, reason="b"))
    with pytest.raises(ConflictingActions, match=r"(?=.*\bhalf\b)(?=.*\bthird\b)") as caught:
        start(["trace", "half", "third"])
    assert caught.value.exit_code == 1
    assert trace == lines(
        """
        run_start
        on_event 0: start
        on_event 0: checkpoint
        pre_backward 1.0
        post_backward 1
        pre_step 1
        on_record 1
        on_event 1: end
        run_end: failed
        """
    )


def test_order_of_plugins(shelf, start):
    """Interventions, diagnostics, reporters; within a kind as the user listed them."""
    log = []
    for kind, name in [
        ("reporter", "r1"),
        ("diagnostic", "d2"),
        ("diagnostic", "d1"),
        ("intervention", "i1"),
        ("intervention", "i2"),
        ("reporter", "r2"),
    ]:
        shelf.install(kind, name, tracer(log, f"{name} "))
    start(["r2", "d2", "i2", "r1", "i1", "d1"], max_steps=3, eval_interval=1)
    acting, looking = ["i2", "i1"], ["d2", "d1", "r2", "r1"]
    for hook in ("run_start", "pre_backward 1.0", "post_step 1", "on_eval 1"):
        assert [x.split()[0] for x in log if x.endswith(hook)] == [*acting, *looking]
    # Interventions hear of a record at a fixed delay, when others know it already.
    assert [x.split()[0] for x in log if x.endswith("on_record 1")] == [*looking, *acting]


def test_interval_is_honoured(shelf, start):
    """A plugin with ``interval`` is called on its steps, and told everything that happened.

    What it needs is captured on those steps alone. A diagnostic's steps include the first.
    """
    seen, told, captured = [], [], []

    @define(eq=False)
    class Sparse:
        needs = ("gradients",)
        interval: int = setting(1, help="steps between calls")

        @hookimpl
        def pre_backward(self, step):
            seen.append(("pre_backward", step.index))

        @hookimpl
        def post_step(self, step):
            seen.append(("post_step", step.index))
            captured.append(step.gradients)

        @hookimpl
        def on_record(self, metrics):
            told.append((metrics["step"], metrics.get("always")))

    @define(eq=False)
    class Always:
        @hookimpl
        def post_backward(self, step):
            captured.append(step.gradients if step.index in (3, 5) else None)

    shelf.install("diagnostic", "sparse", Sparse)
    shelf.install("diagnostic", "always", Always)
    start(["sparse", "always"], sparse__interval=2, max_steps=5)
    assert seen == [(h, s) for s in (1, 2, 4) for h in ("pre_backward", "post_step")]
    assert [s for s, _ in told] == [1, 2, 3, 4, 5]
    assert sum(x is not None for x in captured) == 3


def test_needs_are_what_they_say(shelf, start):
    """Weights before, proposed and after; gradients raw and final; what the layers saw."""
    found = []

    @define(eq=False)
    class Sees:
        needs = (
            "weights_before", "weights_proposed", "gradients", "gradients_final",
            "activations", "output_gradients",
        )  # fmt: skip

        @hookimpl
        def post_step(self, run, step):
            name = "transformer.h.0.mlp.c_fc"
            weight = run.model.get_parameter(f"{name}.weight")
            found.append(step)
            scale = run.quantization.stored[f"{name}.weight"].scale
            assert torch.equal(step.weights_before[f"{name}.weight"], before.pop())
            assert not torch.equal(step.weights_proposed[f"{name}.weight"], weight)
            stored = altcore.fake_quantize(
                step.weights_proposed[f"{name}.weight"], "E3M4", scale=scale
            )
            assert torch.equal(stored, weight)
            norm = torch.stack([g.norm() for g in step.gradients.values()]).norm()
            assert torch.allclose(norm, step.grad_norm)
            factor = (0.5 / (norm + 1e-6)).clamp(max=1)
            assert factor < 1
            for key, gradient in step.gradients.items():
                torch.testing.assert_close(step.gradients_final[key], gradient * factor)
            x, dy = step.activations[name], step.output_gradients[name]
            assert (x.shape, dy.shape) == ((4, 16, 32), (4, 16, 128))
            # The bias's gradient is the plain sum of the output's, over the last micro-batch.
            torch.testing.assert_close(dy.sum((0, 1)), step.gradients[f"{name}.bias"])

    before = []

    @define(eq=False)
    class Keeps:
        @hookimpl
        def pre_step(self, run):
            before.append(
                run.model.get_parameter("transformer.h.0.mlp.c_fc.weight").detach().clone()
            )

    shelf.install("diagnostic", "sees", Sees)
    shelf.install("diagnostic", "keeps", Keeps)
    start(["sees", "keeps"], format="E3M4", recipe="pure", grad_clip=0.5, strict=True)
    assert len(found) == 3


def test_the_record_says_what_plugins_left_of_the_gradients(shelf, start):
    """Their norm before `grad_clip`, beside the raw one; not where no plugin works on them."""

    @define(eq=False)
    class Halves:
        @hookimpl
        def pre_step(self, run):
            for parameter in run.model.parameters():
                parameter.grad.mul_(0.5)

    shelf.install("intervention", "halves", Halves)
    lines = start(["halves"], max_steps=2, grad_clip=0.01).metrics_history
    found = [(x["grad_norm_after_plugins"], x["grad_norm"]) for x in lines]
    assert [after for after, _ in found] == pytest.approx([raw / 2 for _, raw in found])
    assert "grad_norm_after_plugins" not in start(max_steps=1).metrics_history[0]


@pytest.mark.parametrize("scale", [1024.0, torch.tensor(1024.0)])
@pytest.mark.parametrize("fmt", ["none", "E4M3"])
def test_a_loss_scale_is_taken_out_again(shelf, start, scale, fmt):
    """A power of two changes no bit of the weights, nor of what is recorded."""

    @define(eq=False)
    class Scale:
        @hookimpl
        def pre_backward(self, step):
            if step.micro == 0:
                step.loss_scale = scale

    shelf.install("intervention", "scale", Scale)
    keys = {"format": fmt, "gradient_accumulation_steps": 2}
    plain, scaled = start(name="plain", **keys), start(["scale"], name="scaled", **keys)
    assert weights_sha256(plain.run_directory) == weights_sha256(scaled.run_directory)
    assert metrics_bytes(plain.run_directory) == metrics_bytes(scaled.run_directory)


def test_a_clip_that_is_not_reached_changes_nothing(start):
    """Gradients are never scaled up, and 0 is off."""
    ends = [
        weights_sha256(start(name=f"c{i}", grad_clip=limit).run_directory)
        for i, limit in enumerate((0.0, 1e6, 0.5))
    ]
    assert ends[0] == ends[1] != ends[2]


def test_the_schedule():
    """Linear warm-up that reaches the peak after its last step, then half a cosine to the end."""
    config = TrainConfig(max_steps=110, warmup_steps=10, learning_rate=1.1, min_lr_ratio=0.1)
    rates = [learning_rate(config, step) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[59] == pytest.approx(1.1 * 0.55), "half way down"
    assert rates[109] == pytest.approx(0.11)
    assert max(rates) < 1.1
    assert sorted(rates[10:], reverse=True) == rates[10:]


# ---------------------------------------------------------------- what is told of trouble


def test_a_nan_is_traced_to_the_layer_that_met_it_first(shelf, start):
    """A loss is NaN for a reason: the first quantizer that saw one is named."""

    @define(eq=False)
    class Spoil:
        @hookimpl
        def pre_step(self, run):
            norm = run.model.get_submodule("transformer.h.0.ln_2")
            norm.register_forward_hook(lambda *given: given[-1] * math.nan)

    shelf.install("intervention", "spoil", Spoil)
    run = start(["spoil"], format="E4M3", max_steps=2)
    (nan,) = events(run.run_directory, "nan")
    assert (nan["step"], nan["what"], nan["arose"]) == (2, "loss", None)
    assert (nan["layer"], nan["operand"]) == ("transformer.h.0.mlp.c_fc", "activation@fwd")


class Infinite(nn.Module):
    """An activation that is infinite, which a saturating format makes a number of."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(256, 4), nn.Linear(4, 4), nn.Linear(4, 256)

    def forward(self, ids):
        x = self.embed(ids)
        hot = torch.where(ids == ids[0, 0], math.inf, 0.0)[..., None]
        return self.head(self.inner(x.detach() + hot) + x)


def test_what_a_quantizer_hides_is_not_finite_all_the_same(start):
    """Saturated to a number, the infinity reaches neither loss nor gradient: it is told of."""
    cast = {"format": "E4M3", "scaling": "none"}
    config = start.config(recipe={"activation": cast, "skip": ["<head>"]}, max_steps=1)
    run = altcore.train(config, model=Infinite())
    assert math.isfinite(run.metrics_history[0]["loss"])
    assert math.isfinite(run.metrics_history[0]["grad_norm"])
    (nan,) = events(run.run_directory, "nan")
    assert (nan["what"], nan["layer"], nan["operand"]) == ("quantizer", "inner", "activation@fwd")
    assert run.metrics_history[0]["discarded"]


@pytest.mark.parametrize(("rate", "kind"), [(1e-7, "collapse"), (1e-2, "warning")])
def test_dead_gradients_are_recorded_and_the_run_goes_on(shelf, start, rate, kind):
    """The parameter is named, once; with no opinion a collapse other than NaN does not stop.

    Where the rest of the model learns it is no collapse.
    """

    @define(eq=False)
    class Kill:
        @hookimpl
        def run_start(self, run):
            run.model.get_parameter("transformer.h.0.mlp.c_fc.weight").register_hook(
                lambda g: g * 0
            )

    shelf.install("intervention", "kill", Kill)
    keys = {"max_steps": 30, "warmup_steps": 0, "dead_neuron_window": 20}
    run = start(["kill"], learning_rate=rate, **keys)
    assert run.status == "finished"
    (told,) = events(run.run_directory, "collapse", "warning")
    assert (told["event"], told["step"], told["cause"]) == (kind, 20, "dead_gradients")
    assert told["dead_layers"] == ["transformer.h.0.mlp.c_fc.weight"]
    assert "transformer.h.0.mlp.c_fc.weight" in told["reason" if kind == "collapse" else "message"]
    verdicts = events(run.run_directory, "verdict")
    if kind == "collapse":
        assert told["gradients"]["transformer.h.0.mlp.c_fc.weight"]["zero_share"] == 1.0
        assert [v["outcome"] for v in verdicts] == ["recorded; the run goes on"]
    else:
        assert verdicts == run.summary["collapses"] == []


class Normed(nn.Module):
    """A model whose first bias is taken out again by the batch norm behind it."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Embedding(256, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 256)

    def forward(self, ids):
        x = self.inner(self.embed(ids))
        return self.head(self.norm(x.flatten(0, 1)).view(x.shape).relu())


@pytest.mark.parametrize("eval_interval", [0, 50])
def test_a_bias_before_a_batch_norm_is_no_collapse(start, eval_interval):
    """Its gradient is zero by construction, in a run without any format too."""
    keys = {"format": "none", "max_steps": 200, "dead_neuron_threshold": 1e-6}
    config = start.config(dead_neuron_window=30, eval_interval=eval_interval, **keys)
    run = altcore.train(config, model=Normed())
    assert run.metrics_history[-1]["loss"] < run.metrics_history[0]["loss"] - 1
    assert run.summary["collapses"] == []
    (warning,) = events(run.run_directory, "warning")
    assert warning["dead_layers"] == ["inner.bias"]


# ----------------------------------------------------------------------- stalled updates


def test_a_stall_of_views_is_no_collapse(start):
    """Masters move on, whatever the noise of single batches says: told once, as a warning."""
    keys = {"format": "E4M3", "max_steps": 120, "stall_window": 10, "bit_stall_threshold": 0.2}
    run = start(recipe="master", learning_rate=1e-3, min_lr_ratio=1.0, **keys)
    assert run.metrics_history[-1]["loss"] < run.metrics_history[0]["loss"] - 0.5
    assert run.summary["collapses"] == []
    (warning,) = events(run.run_directory, "warning")
    assert (warning["cause"], warning["stall_of"]) == ("stalled", "view")
    assert "of view weight updates stalled over 10 recorded steps" in warning["message"]


def stored(rounding, layers="<any>"):
    """A recipe that stores weights in E7M0, by a rounding in some layers."""
    cast = {"format": "E7M0", "rounding": rounding}
    return {"stored_weight": "E7M0", "layers": {layers: {"stored_weight": cast}}}


STUCK = {"learning_rate": 1e-6, "min_lr_ratio": 1.0, "warmup_steps": 0, "stall_window": 6}
"""Updates that are far below the grid's interval, judged quickly."""


def test_a_stall_under_stochastic_rounding_is_expected(start):
    """Updates get through in the mean: neither a collapse nor a warning, at any loss."""
    run = start(recipe=stored("stochastic"), max_steps=20, **STUCK)
    assert run.summary["stored_stall_rate"] > 0.9
    assert events(run.run_directory, "collapse", "warning") == []
    lost = start(recipe=stored("nearest-even"), max_steps=20, **STUCK)
    assert {c["cause"] for c in lost.summary["collapses"]} == {"stalled"}


def test_only_weights_that_lose_updates_are_judged(start):
    """Where some are rounded stochastically, the rate is that of the others."""
    run = start(recipe=stored("stochastic", "transformer.h.*"), max_steps=20, **STUCK)
    assert run.metrics_history[-2]["lost_stall_rate"] > 0.9
    assert {c["cause"] for c in run.summary["collapses"]} == {"stalled"}
    moving = {"layers": {"<any>": {"stored_weight": {"format": "E5M10"}}}}
    moving["layers"]["transformer.h.*"] = stored("stochastic")["layers"]["<any>"]
    run = start(recipe=moving, max_steps=20, **{**STUCK, "learning_rate": 1e-3})
    line = run.metrics_history[-2]
    assert line["stored_stall_rate"] > 0.5 > line["lost_stall_rate"]
    assert run.summary["collapses"] == []
    plain = start(recipe=stored("nearest-even"), max_steps=3)
    assert "lost_stall_rate" not in plain.metrics_history[0]


def test_a_stall_of_stored_weights_waits_for_validation(start):
    """It is a collapse where two evaluations, too, say that nothing is learned."""
    keys = {"recipe": stored("nearest-even"), "max_steps": 24, **STUCK}
    run = start(eval_interval=8, **keys)
    (warning,) = events(run.run_directory, "warning")
    assert "validation has not been measured yet" in warning["message"]
    assert (warning["val_loss_before"], warning["step"] < 8) == (None, True)
    (collapse,) = events(run.run_directory, "collapse")
    assert (collapse["step"], collapse["stall_of"]) == (17, "stored")
    assert collapse["val_loss_since"] == pytest.approx(collapse["val_loss_before"], rel=1e-4)
    assert {r["rounding"] for r in collapse["layers"] if r["operand"] == "stored_weight"} == {
        "nearest-even"
    }
    # It is the value that is monitored which is judged.
    quantized = {**keys, "recipe": {**stored("nearest-even"), "activation": "E4M3"}}
    monitored = start(eval_interval=8, monitor="val_loss_float32", **quantized)
    (collapse,) = events(monitored.run_directory, "collapse")
    written = read_lines(monitored.run_directory / "metrics.jsonl")
    first = next(x for x in written if "val_loss" in x)
    assert collapse["val_loss_float32_before"] == first["val_loss_float32"] != first["val_loss"]
    # Between evaluations that are too rare to tell, it stays a warning.
    rare = start(eval_interval=20, **keys)
    assert rare.summary["collapses"] == []
    assert len(events(rare.run_directory, "warning")) == 1


def test_overflow_is_warned_of_once_until_it_clears(start):
    """Without a scale, E0M7 holds nothing above 1; under amax scaling the rate is not a number."""
    cast = {"format": "E0M7", "scaling": "none"}
    run = start(recipe={"activation": cast}, max_steps=4)
    assert all(x["overflow_rate"] > 0.01 for x in run.metrics_history)
    (warning,) = events(run.run_directory, "warning")
    assert "overflow_threshold 0.01" in warning["message"]
    assert (warning["cause"], warning["overflow_rate"] > 0.01) == ("overflow", True)
    amax = start(format="E0M7")
    assert all(x["overflow_rate"] is None for x in amax.metrics_history)
    assert not events(amax.run_directory, "warning")


# ------------------------------------------------------------------------- broken plugins


def breaking(shelf, kind, hook, error, name="broken"):
    """Install a plugin that raises in a hook."""

    @define(eq=False)
    class Broken:
        pass

    def method(self, run):
        raise error

    setattr(Broken, hook, hookimpl(method))
    return shelf.install(kind, name, Broken, "acme-fragile", "4.5.6")


def skips(self, step):
    """Propose an action at step 2, of which interventions are told."""
    return SkipStep(reason="?") if step.index == 2 else None


HOOKS_MET = ("run_start", "pre_backward", "post_backward", "pre_step", "post_step", "on_event")


@pytest.mark.parametrize("hook", HOOKS_MET)
def test_a_broken_intervention_stops_the_run(trace, shelf, start, hook):
    """What can change numbers fails closed: plugin, distribution, version and error are named."""
    breaking(shelf, "intervention", hook, KeyError("nothing here"))
    shelf.install("intervention", "skips", make({"pre_step": skips}))
    with pytest.raises(
        PluginError,
        match=rf"intervention broken \(acme-fragile 4\.5\.6\) failed in {hook}: KeyError: "
        "'nothing here'",
    ) as caught:
        start(["trace", "broken", "skips"], max_steps=2)
    assert caught.value.exit_code == 1
    assert trace[-1] == "run_end: failed"
    (path,) = start.runs.iterdir()
    (end,) = events(path, "end")
    assert end["status"] == "failed"
    assert "acme-fragile" in end["error"]


@pytest.mark.parametrize("kind", ["diagnostic", "reporter"])
@pytest.mark.parametrize("hook", [*HOOKS_MET, "on_record", "on_eval", "run_end"])
def test_a_broken_observer_is_disabled(shelf, start, kind, hook):
    """What only looks is told of once, and the run goes on, marked as degraded."""
    breaking(shelf, kind, hook, ZeroDivisionError("oh"))
    run = start(["broken"])
    assert run.status == "finished"
    assert run.steps_completed == 3
    assert run.summary["degraded"] == ["broken"]
    (told,) = events(run.run_directory, "degraded")
    assert told["plugin"] == "broken"
    assert f"{kind} broken (acme-fragile 4.5.6) failed in {hook}" in told["message"]


@pytest.mark.parametrize("kind", ["diagnostic", "reporter"])
def test_strict_stops_for_a_broken_observer(shelf, start, kind):
    """With --strict a diagnostic or reporter fails like an intervention."""
    breaking(shelf, kind, "post_step", ZeroDivisionError("oh"))
    with pytest.raises(PluginError, match=f"{kind} broken .acme-fragile 4.5.6."):
        start(["broken"], strict=True)


def test_an_observer_changes_nothing_by_breaking(shelf, start):
    """The run with a diagnostic that breaks ends with the weights of the run without it."""
    breaking(shelf, "diagnostic", "post_step", ZeroDivisionError("oh"))
    alone, with_it = start(name="a"), start(["broken"], name="b")
    assert weights_sha256(alone.run_directory) == weights_sha256(with_it.run_directory)


@pytest.mark.parametrize("kind", ["diagnostic", "reporter"])
def test_an_action_of_an_observer_is_refused(shelf, start, kind):
    """Only an intervention may ask for an action: the stop is not obeyed."""

    @define(eq=False)
    class Looks:
        @hookimpl
        def pre_step(self):
            return Stop(reason="I say so")

    shelf.install(kind, "looks", Looks)
    run = start(["looks"])
    assert (run.status, run.steps_completed) == ("finished", 3)
    (told,) = events(run.run_directory, "degraded")
    assert f"a {kind} looks" in told["message"]
    assert not events(run.run_directory, "verdict")


WRONG = [
    ("run_start", "x", "returns nothing"),
    ("pre_step", 1.0, "float, not an Action or None"),
    ("pre_backward", {"a": 1}, "dict, not an Action or None"),
    ("post_step", [1.0], "list, not measures or None"),
    ("post_step", SkipStep(reason="?"), "SkipStep, not measures or None"),
    ("post_backward", {1: 1.0}, "name 1 is not text"),
    ("post_backward", {"": 1.0}, "name '' is not text"),
    ("post_backward", {"a": "b"}, "measure a is str, not a number or tensor"),
    ("post_backward", {"a": torch.zeros(2, 2)}, r"shape \(2, 2\)"),
    ("post_backward", {"a": torch.zeros(257)}, r"shape \(257,\)"),
    ("post_backward", {"a": torch.zeros((), dtype=torch.complex64)}, "measure a"),
    ("on_record", False, "returns nothing"),
    ("on_event", 0, "returns nothing"),
]


@pytest.mark.parametrize(("hook", "value", "says"), WRONG)
def test_wrong_returns_are_refused(shelf, start, hook, value, says):
    """A hook returns what it may and nothing else, even what is false."""

    @define(eq=False)
    class Wrong:
        pass

    setattr(Wrong, hook, hookimpl(lambda self: value))
    shelf.install("intervention", "wrong", Wrong)
    shelf.install("intervention", "skips", make({"pre_step": skips}))
    with pytest.raises(PluginError, match=f"intervention wrong .* failed in {hook}: .*{says}"):
        start(["wrong", "skips"], max_steps=3)


def test_measures_reach_the_record(shelf, start):
    """Scalars and short vectors arrive as host numbers in the line of their own step."""

    @define(eq=False)
    class Measure:
        @hookimpl
        def post_backward(self, step):
            return {"index": step.index, "count/layer": torch.tensor(step.index * 2)}

        @hookimpl
        def post_step(self, step):
            return {"histogram": torch.tensor([step.index, math.nan, math.inf])}

    shelf.install("diagnostic", "m", Measure)
    run = start(["m"], max_steps=2)
    assert [x["step"] for x in run.diagnostics_history] == [1, 2]
    for x in run.diagnostics_history:
        assert (x["m/index"], x["m/count/layer"]) == (x["step"], 2 * x["step"])
        assert isinstance(x["m/count/layer"], int)
        first, nan, inf = x["m/histogram"]
        assert first == x["step"]
        assert math.isnan(nan)
        assert inf == math.inf


def test_a_measure_is_recorded_as_it_was_when_it_was_returned(shelf, start):
    """Views of gradients, which are clipped later, and a sum that the plugin goes on with."""

    @define(eq=False)
    class Live:
        total: torch.Tensor = field(factory=lambda: torch.zeros(()))

        @hookimpl
        def post_backward(self, run, step):
            first = next(run.model.parameters()).grad.view(-1)[0]
            return {"view": first, "copy": first.clone()}

        @hookimpl
        def post_step(self, step):
            self.total += 1
            return {"total": self.total}

    shelf.install("diagnostic", "live", Live)
    run = start(["live"], max_steps=3, grad_clip=1e-3)
    lines = run.diagnostics_history
    assert [x["live/total"] for x in lines] == [1, 2, 3]
    assert [x["live/view"] for x in lines] == [x["live/copy"] for x in lines]


# --------------------------------------------------------------------------- leaving


def signaller(shelf, number, step_of):
    """Install a reporter that sends this process a signal in a step."""

    @define(eq=False)
    class Signaller:
        @hookimpl
        def post_step(self, step):
            if step.index == step_of:
                signal.raise_signal(number)

    return shelf.install("reporter", "signaller", Signaller)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_after_the_step(trace, shelf, start, number):
    """The step is finished and saved; the exit code is 128 + signal; handlers are put back."""
    before = signal.getsignal(number)
    signaller(shelf, number, 2)
    with pytest.raises(Interrupted, match=number.name) as caught:
        start(["trace", "signaller"], name="r", max_steps=5)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert trace[-4:] == [
        "on_record 2",
        "on_event 2: checkpoint",
        "on_event 2: end",
        "run_end: interrupted",
    ]
    assert state(start.runs / "r")["step"] == 2


def test_a_second_interrupt_does_not_wait(shelf, start):
    """SIGINT twice within a step is KeyboardInterrupt at once."""

    @define(eq=False)
    class Twice:
        @hookimpl
        def post_backward(self):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    shelf.install("diagnostic", "twice", Twice)
    with pytest.raises(KeyboardInterrupt):
        start(["twice"], name="r")
    assert summary_status(start.runs / "r") == "interrupted"


def summary_status(path):
    """The status that the run's events end with."""
    return events(path, "end")[-1]["status"]


def test_exit_codes_of_the_command(shelf, start, monkeypatch, capsys):
    """0 for a stop and for a collapse, 1 for a conflict, 2 for bad input."""
    proposer(shelf, "stop", "pre_step", Stop(reason="enough"))
    proposer(shelf, "half", "pre_step", ScaleLearningRate(factor=0.5, reason="a"))
    proposer(shelf, "third", "pre_step", ScaleLearningRate(factor=1 / 3, reason="b"))
    poison(shelf, loss=[1])
    sets = {
        "gpt.size": "tiny", "gpt.n_layer": 1, "gpt.block_size": 8, "gpt.batch_size": 2,
        "gpt.data": start.corpus, "max_steps": 1, "eval_steps": 1, "nan_patience": 1,
        "runs_dir": start.runs, "device": "cpu",
    }  # fmt: skip
    given = [f"--set={k}={v}" for k, v in sets.items()]

    def code(*plugins):
        with pytest.raises(SystemExit) as left:
            main(["train", *given, *(f"--plugin={p}" for p in plugins)])
        return left.value.code or 0

    assert code("stop") == 0
    assert "stopped" in capsys.readouterr().out
    assert code("poison") == 0
    assert "collapsed" in capsys.readouterr().out
    assert code("half", "third") == 1
    message = capsys.readouterr().err
    assert "half" in message
    assert "third" in message
    runs = len(list(start.runs.iterdir()))
    assert code("no-such-plugin") == 2
    assert len(list(start.runs.iterdir())) == runs, "bad input writes nothing"


# --------------------------------------------------------------------- failing cleanly


def full_disk():
    """Return a log whose disk is full."""
    return LogFile(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY))


def test_a_full_disk_still_ends_the_run(trace, start):
    """No space for a line is exit code 3, and run_end is called although no line can be written."""
    engine = start.engine(["trace"], name="r")
    for file in ("metrics.jsonl", "events.jsonl"):
        engine.directory._logs[file] = full_disk()
    with pytest.raises(AltcoreError, match=r"no space left to write /dev/full") as caught:
        engine.train()
    assert caught.value.exit_code == 3
    assert trace[-1] == "run_end: failed"


def test_nothing_is_written_for_a_workload_that_fails(start):
    """The first product is tried before the directory exists: the name stays free."""
    config = start.config(format="E4M3", name="r")
    model = nn.Sequential(nn.Embedding(256, 5), nn.Linear(4, 7), nn.Linear(7, 256))
    with pytest.raises(PluginError, match=r"gpt .*with a model of your own failed in loss: Runt"):
        altcore.train(config, model=model)
    assert not (start.runs / "r").exists()


def test_a_model_of_ones_own_is_given_back_plain(start):
    """Training leaves no stand-in behind: the same model can be trained again, or used."""
    model = start.engine(name="donor", format="none").run.workload.model
    for name in ("a", "b"):
        run = altcore.train(start.config(format="E4M3", name=name), model=model)
        assert all("forward" not in vars(m) for m in model.modules())
        assert run.summary["val_loss"] != run.summary["val_loss_float32"]


def test_an_unexpected_error_is_recorded(trace, start):
    """A failure of the workload ends the run as failed, with the error in the events."""
    engine = start.engine(["trace"], name="r")
    own = engine.run.workload

    def fail(split, step, micro):
        if split == "train":
            raise OSError("the data went away")
        return own.batch(split, step, micro)

    engine.run.workload = CustomWorkload(own, engine.run.model, fail)
    with pytest.raises(PluginError, match=r"failed in batch .*: OSError: the data went away"):
        engine.train()
    assert trace == [
        "run_start",
        "on_event 0: start",
        "on_event 0: checkpoint",
        "on_event 1: end",
        "run_end: failed",
    ]
    assert "the data went away" in events(start.runs / "r", "end")[0]["error"]


# -------------------------------------------------------------------------- the record


def test_one_line_a_recorded_step(start):
    """metrics.jsonl has the steps of log_interval, once each, and no time of day."""
    run = start(max_steps=6, log_interval=2, eval_interval=3, format="E4M3")
    found = read_lines(run.run_directory / "metrics.jsonl")
    assert [x["step"] for x in found if "loss" in x] == [2, 4, 6]
    assert [x["step"] for x in found if "val_loss" in x] == [3, 6]
    assert not any("second" in k or "time" in k for x in found for k in x)
    assert [x["step"] for x in read_lines(run.run_directory / "timings.jsonl")] == [2, 4, 6]


def test_the_same_run_again_from_its_own_config(start):
    """config.yaml is resolved: training from the file repeats the run bit for bit."""
    first = start(format="E3M4", recipe="pure", name="first")
    again = altcore.train(first.run_directory / "config.yaml")
    assert again.run_directory != first.run_directory
    assert metrics_bytes(again.run_directory) == metrics_bytes(first.run_directory)
    assert weights_sha256(again.run_directory) == weights_sha256(first.run_directory)


def test_checkpoints_are_pruned(start):
    """At most max_checkpoints regular ones stay, the best and the last among them.

    Step 0 is a manifest alone, and always stays.
    """
    run = start(max_steps=8, checkpoint_interval=1, max_checkpoints=2, eval_interval=3)
    kept = checkpoints(run.run_directory)
    best = (run.run_directory / "checkpoints" / "best").read_text()
    assert best == "step-00000008"
    # The best when the last one was written, and the next best without what only a resume needs.
    assert kept == ["step-00000000", "step-00000006", "step-00000008", "weights-00000003"]


def test_the_last_checkpoint_knows_the_last_evaluation(start):
    """Also where the interval saved the last step before it was evaluated."""
    run = start(max_steps=3, checkpoint_interval=3, eval_interval=0)
    history = state(run.run_directory)["history"]
    assert history["evaluation"]["step"] == 3
    assert history["best"]["val_loss"] == run.summary["best_val_loss"]


def test_bad_input_writes_nothing(start):
    """A recipe that cannot be built leaves no directory behind."""
    with pytest.raises(BadInput):
        start(recipe={"activation": "E4M3", "layers": {"transformer.wte": {"activation": "E4M3"}}})
    assert not start.runs.exists() or not list(start.runs.iterdir())


def test_a_part_that_was_left_in_evaluation_trains_in_the_next_step(start):
    """The model as a whole says that it trains."""
    engine = start.engine(max_steps=1)
    engine.run.model.train()
    part = list(engine.run.model.modules())[-1].eval()
    engine.begin(Step(1))
    engine.directory.close()
    assert part.training


def test_the_mean_loss_is_the_recorded_one(shelf, start):
    """That of all micro-batches, where ``step.loss`` is that of the last."""
    found = []

    @define(eq=False)
    class Sees:
        @hookimpl
        def post_backward(self, step):
            found.append((float(step.mean_loss), float(step.loss.detach())))

    shelf.install("diagnostic", "sees", Sees)
    run = start(["sees"], gradient_accumulation_steps=2, max_steps=2)
    assert [mean for mean, _ in found] == [line["loss"] for line in run.metrics_history]
    assert all(mean != last for mean, last in found)
