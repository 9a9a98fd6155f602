"""What the tests of diagnostics share: a model whose updates are written by hand."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import altcore
from altcore.engine import Step
from altcore.engine.capture import LayerCaptures


class NoHostRead(TorchDispatchMode):
    """Fails on whatever brings a tensor's value to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), "a host read in the hot path"
        return func(*args, **(kwargs or {}))


def linear(*weights):
    """A Linear of one output with these weights."""
    layer = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    return layer


def square(weight):
    """A Linear of two outputs and two inputs, all weights the same."""
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


class Bench:
    """A run, as far as a diagnostic sees one; each step is made by hand."""

    def __init__(self, model, recipe, optimizer=None, learning_rate=1e-2):
        self.model = model
        self.q = altcore.quantize_model(model, recipe)
        self.run = SimpleNamespace(
            model=model,
            quantization=self.q,
            optimizer=optimizer or torch.optim.AdamW(model.parameters()),
            config=SimpleNamespace(learning_rate=learning_rate),
            step=0,
        )

    def forward(self, x=None, grads=None):
        """Begin a step: run forward and backward, or set the gradients that are given."""
        self.run.step += 1
        self.q.begin_step(self.run.step, tracking=True, errors=True)
        width = next(self.model.parameters()).shape[1]
        step, captures = Step(self.run.step), LayerCaptures(self.q.modules)
        captures.attach(step, ("activations", "output_gradients"))
        y = self.model(torch.ones(1, width) if x is None else x)
        self.model.zero_grad()
        y.sum().backward()
        captures.detach()
        for name, grad in (grads or {}).items():
            given = None if grad is None else torch.tensor(grad)
            self.model.get_parameter(name).grad = given
        return step

    def update(self, step, after):
        """Move parameters to the values in ``after``, and put what is stored on its grid."""
        step.weights_before = self.weights()
        with torch.no_grad():
            for name, values in after.items():
                self.model.get_parameter(name).copy_(torch.tensor(values))
        step.weights_proposed = self.weights()
        self.q.store()
        self.q.measure_views()
        return step

    def weights(self):
        """Return a copy of every parameter."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def measure(self, plugin, step, hook="post_step"):
        """Call a hook, without a host read; returns host numbers and lists."""
        method = getattr(plugin, hook)
        known = {"run": self.run, "step": step}
        with NoHostRead():
            measures = method(**{name: known[name] for name in signature(method).parameters})
        return {key: value.tolist() for key, value in (measures or {}).items()}

    def gradients(self, plugin, grads=None, x=None):
        """Make a step and call post_backward."""
        return self.measure(plugin, self.forward(x, grads), "post_backward")

    def step(self, plugin, after):
        """Make a step with an update and call post_step."""
        return self.measure(plugin, self.update(self.begin(plugin, self.forward()), after))

    def begin(self, plugin, step):
        """Call pre_backward, where a plugin has it."""
        if hasattr(plugin, "pre_backward"):
            self.measure(plugin, step, "pre_backward")
        return step
