"""Watching the passes of the model from within."""

from contextlib import ExitStack, contextmanager
from functools import partial, partialmethod
from types import FunctionType

import pytest
import torch
from attrs import define, field
from helpers import events
from helpers_plugins import load, make
from torch import nn

from altcore import BadInput, DeferredErrors, hookimpl
from altcore.errors import PluginError


def test_a_plugin_may_watch_the_forward_pass(shelf, start):
    """Every one of a step on which it is due; what it enters is left, whatever happens within."""
    seen = []

    @define(eq=False)
    class Watcher:
        interval: int = 2

        @hookimpl
        @contextmanager
        def watch_forward(self, run, step):
            handle = run.model.register_forward_hook(
                lambda *_: seen.append((step.index, step.micro, step.loss is None))
            )
            yield
            handle.remove()
            seen.append("left")

    shelf.install("diagnostic", "watcher", Watcher)
    start(["watcher"], max_steps=2, gradient_accumulation_steps=2, eval_interval=1)
    passes = [(step, micro, micro == 0) for step in (1, 2) for micro in (0, 1)]
    assert seen == [x for one in passes for x in (one, "left")]


def raising(wrap):
    """A diagnostic whose forward hook raises."""

    @define(eq=False)
    class Hooked:
        @hookimpl
        @contextmanager
        def watch_forward(self, run):
            with DeferredErrors() as errors:
                look = errors.guard(self.look) if wrap else self.look
                handle = run.model.register_forward_hook(look)
                try:
                    yield
                finally:
                    handle.remove()

        def look(self, *_):
            raise ValueError("no")

    return Hooked


def test_an_error_inside_the_model_names_the_plugin(shelf, start):
    """The pass cannot be finished then."""
    shelf.install("diagnostic", "hooked", raising(wrap=False))
    message = r"diagnostic hooked \(acme-hooked .*\) failed in the forward pass: ValueError: no"
    with pytest.raises(PluginError, match=message):
        start(["hooked"], max_steps=1)


def test_an_error_that_is_deferred_disables_the_plugin(shelf, start):
    """What looks on with care harms nobody; the model's own errors stay what they are."""
    shelf.install("diagnostic", "hooked", raising(wrap=True))
    result = start(["hooked"], max_steps=2)
    assert result.summary["degraded"] == ["hooked"]
    assert result.metrics_history[-1]["step"] == 2


def test_a_watcher_is_told_of_the_models_error(shelf, start, monkeypatch):
    """It does not go on as if the pass was over, and takes no error's place."""
    told = []

    def fail(self, model, batch):
        raise ValueError("of the model")

    @define(eq=False)
    class Watcher:
        @hookimpl
        @contextmanager
        def watch_forward(self):
            try:
                yield
            except ValueError as error:
                told.append(str(error))
                raise KeyError("of its own") from error
            told.append("over")

    monkeypatch.setattr("altcore_workloads.gpt.BuiltGpt.loss", fail)
    shelf.install("intervention", "watcher", Watcher)
    with pytest.raises(
        PluginError, match=r"workload gpt .* failed in loss: ValueError: of the mod"
    ):
        start(["watcher"], max_steps=1)
    assert told == ["of the model"]


def test_the_models_own_error_is_no_plugins(shelf, start, monkeypatch):
    def fail(self, model, batch):
        raise ValueError("of the model")

    monkeypatch.setattr("altcore_workloads.gpt.BuiltGpt.loss", fail)
    shelf.install("diagnostic", "hooked", raising(wrap=True))
    with pytest.raises(
        PluginError, match=r"workload gpt .* failed in loss: ValueError: of the mod"
    ):
        start(["hooked"], max_steps=1)


WATCHES = {
    "unmarked": (
        define(eq=False)(type("Unmarked", (), {"watch_forward": lambda self, run: None})),
        "watch_forward is a hook's name but not marked with @hookimpl",
    ),
    "asks for more": (
        make({"watch_backward": lambda self, run, stop: None}),
        r"watch_backward has no argument 'stop' \(did you mean step\?\)",
    ),
    "is due": (
        define(eq=False)(type("Due", (), {"is_due": lambda self, step: True})),
        "is_due is a hook's name but not marked with @hookimpl",
    ),
}


@pytest.mark.parametrize(("cls", "message"), WATCHES.values(), ids=WATCHES)
def test_watches_are_checked_like_every_hook(shelf, start, cls, message):
    """They are rows of the same contract."""
    with pytest.raises(BadInput, match=message):
        load(shelf, start, cls)


@pytest.mark.parametrize(
    ("hook", "returned", "says"),
    [
        ("watch_forward", 3, "it returned int, not a context manager or None"),
        ("watch_backward", {}, "it returned dict, not a context manager or None"),
        ("is_due", None, "it returned NoneType, not True or False"),
        ("is_due", 1, "it returned int, not True or False"),
    ],
)
def test_watches_and_is_due_return_what_they_must(shelf, start, hook, returned, says):
    """A return of another type disables a diagnostic, as that of any hook does."""

    @define(eq=False)
    class Wrong:
        pass

    setattr(Wrong, hook, hookimpl(FunctionType((lambda self: returned).__code__, {}, hook, None,
                                               (lambda: returned).__closure__)))  # fmt: skip
    shelf.install("diagnostic", "wrong", Wrong)
    result = start(["wrong"], max_steps=1)
    (said,) = events(result.run_directory, "degraded")
    assert f"failed in {hook}: {says}" in said["message"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_watcher_that_raises_is_disabled(shelf, start, when):
    """It is a diagnostic like any other: the run goes on, and says so."""

    @define(eq=False)
    class Broken:
        @hookimpl
        @contextmanager
        def watch_forward(self, run, step):
            if when == "before":
                raise ValueError("no")
            yield
            raise ValueError("no")

    shelf.install("diagnostic", "broken", Broken)
    result = start(["broken"], max_steps=3)
    assert result.metrics_history[-1]["step"] == 3
    assert result.summary["degraded"] == ["broken"]
    (said,) = events(result.run_directory, "degraded")
    assert "failed in watch_forward: ValueError: no" in said["message"]


# ------------------------------------------------------------------------------ backward


def output_gradients(seen):
    """A diagnostic: the norm of the gradient of each block's output, by a full backward hook."""

    @define(eq=False)
    class OutputGradients:
        interval: int = 2
        norms: dict = field(init=False, factory=dict)

        @hookimpl
        @contextmanager
        def watch_backward(self, run, step):
            self.norms = {}
            with DeferredErrors() as errors, ExitStack() as hooks:
                for name, block in self.blocks(run):
                    look = errors.guard(partial(self.look, name))
                    hooks.callback(block.register_full_backward_hook(look).remove)
                yield
            seen.append((step.index, step.micro, len(self.norms)))

        def blocks(self, run):
            return [(n, m) for n, m in run.model.named_modules() if type(m).__name__ == "Block"]

        def look(self, name, module, grad_inputs, grad_outputs):
            self.norms[name] = grad_outputs[0].norm()

        @hookimpl
        def post_backward(self):
            return {f"norm/{name}": norm for name, norm in self.norms.items()}

    return OutputGradients


def test_a_plugin_may_watch_the_backward_pass(shelf, start):
    """A full backward hook is called, on the steps that are due, with the pass's own gradients."""
    seen = []
    shelf.install("diagnostic", "outputs", output_gradients(seen))
    keys = {"max_steps": 4, "log_interval": 1, "gradient_accumulation_steps": 2}
    watched = start(["outputs"], name="watched", eval_interval=1, **keys)
    blocks = {n for n, m in start.engine(**keys).run.model.named_modules()
              if type(m).__name__ == "Block"}  # fmt: skip
    assert seen == [(s, m, len(blocks)) for s in (1, 2, 4) for m in (0, 1)]
    assert [x["step"] for x in watched.diagnostics_history] == [1, 2, 4]
    for line in watched.diagnostics_history:
        norms = {n: line[f"outputs/norm/{n}"] for n in blocks}
        assert all(0 < norm < 100 for norm in norms.values())
    plain = start(name="plain", eval_interval=1, **keys)
    loss = [[x["loss"] for x in r.metrics_history if "loss" in x] for r in (watched, plain)]
    assert loss[0] == loss[1], "looking changes no number"


def test_the_watched_gradient_is_that_of_the_output(shelf, start):
    """By hand: the gradient that arrives is that of a tensor hook on the same output."""
    pairs = []

    @define(eq=False)
    class Both:
        @hookimpl
        @contextmanager
        def watch_backward(self, run):
            last = list(run.model.modules())[-1]
            found = {}

            def forward(module, args, output):
                output.register_hook(lambda g: found.update(tensor=g.clone()))

            def backward(module, grad_inputs, grad_outputs):
                found.update(module=grad_outputs[0].clone())

            handles = [last.register_forward_hook(forward),
                       last.register_full_backward_hook(backward)]  # fmt: skip
            yield
            for handle in handles:
                handle.remove()
            pairs.append(found)

    shelf.install("diagnostic", "both", Both)
    start(["both"], max_steps=2)
    assert len(pairs) == 2
    assert all(torch.equal(p["tensor"], p["module"]) for p in pairs)


def test_watch_forward_is_over_before_the_backward_pass(shelf, start):
    """Why there are two: a parameter's hook that it removes sees nothing."""
    seen = []

    @define(eq=False)
    class Watcher:
        @contextmanager
        def watch(self, run, hook):
            with DeferredErrors() as errors:
                weight = next(p for p in run.model.parameters() if p.requires_grad)
                look = errors.guard(lambda gradient: seen.append((hook, gradient.norm() > 0)))
                handle = weight.register_hook(look)
                yield
                handle.remove()

        @hookimpl
        def watch_forward(self, run):
            return self.watch(run, "forward")

        @hookimpl
        def watch_backward(self, run):
            return self.watch(run, "backward")

    shelf.install("diagnostic", "watcher", Watcher)
    start(["watcher"], max_steps=2)
    assert seen == [("backward", True)] * 2


def test_the_watches_span_their_passes(shelf, start):
    """Backward around forward; pre_backward between the passes, post_backward after both."""
    trace = []

    @define(eq=False)
    class Spans:
        @hookimpl
        @contextmanager
        def watch_forward(self, step):
            trace.append(f"forward {step.micro}")
            yield
            trace.append("forward over")

        @hookimpl
        @contextmanager
        def watch_backward(self, step):
            trace.append(f"backward {step.micro}")
            yield
            trace.append("backward over")

        @hookimpl
        def pre_backward(self):
            trace.append("pre_backward")

        @hookimpl
        def post_backward(self):
            trace.append("post_backward")

    shelf.install("diagnostic", "spans", Spans)
    start(["spans"], max_steps=1, gradient_accumulation_steps=2)
    micro = ["forward {}", "forward over", "pre_backward", "backward over"]
    expected = [x.format(m) for m in (0, 1) for x in ("backward {}", *micro)]
    assert trace == [*expected, "post_backward"]


def test_an_error_in_the_backward_pass_names_the_plugin(shelf, start):
    """As in the forward pass; an observer that defers it is only disabled."""

    def hooked(wrap):
        @define(eq=False)
        class Hooked:
            @hookimpl
            @contextmanager
            def watch_backward(self, run):
                with DeferredErrors() as errors:
                    look = errors.guard(self.look) if wrap else self.look
                    handle = run.model.register_full_backward_hook(look)
                    try:
                        yield
                    finally:
                        handle.remove()

            def look(self, *_):
                raise ValueError("no")

        return Hooked

    shelf.install("diagnostic", "rash", hooked(wrap=False))
    shelf.install("diagnostic", "careful", hooked(wrap=True))
    message = r"diagnostic rash \(acme-rash .*\) failed in the backward pass: ValueError: no"
    with pytest.raises(PluginError, match=message):
        start(["rash"], max_steps=1)
    result = start(["careful"], name="careful", max_steps=2)
    assert result.summary["degraded"] == ["careful"]
    assert result.metrics_history[-1]["step"] == 2


def test_a_compiled_model_shows_its_quantized_layers(shelf, start, monkeypatch):
    """Graphs leave these out; hooks on them are called, and nothing is changed.

    Whatever compiles the graphs: here it is no C compiler.
    """
    compiled = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", compiled)
    seen = []

    @define(eq=False)
    class Layers:
        interval: int = 2

        @hookimpl
        @contextmanager
        def watch_backward(self, run, step):
            layer = next(iter(run.quantization.modules.values()))
            handle = layer.register_full_backward_hook(lambda *_: seen.append(step.index))
            yield
            handle.remove()

    shelf.install("diagnostic", "layers", Layers)
    keys = {"max_steps": 4, "compile": True, "log_interval": 1, "format": "E4M3"}
    watched = start(["layers"], name="watched", **keys)
    assert seen == [1, 2, 4]
    plain = start(name="plain", **keys)
    losses = [[x["loss"] for x in r.metrics_history if "loss" in x] for r in (watched, plain)]
    assert losses[0] == losses[1]
