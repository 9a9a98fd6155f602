"""torch.compile around quantized layers: the same numbers, and twelve shifts stay compiled."""

import logging

import attrs
import pytest
import torch
import torch._dynamo
from helpers import events
from torch import nn

import altcore
from altcore import ChangeRecipe, hookimpl
from altcore.engine.compiling import tell_recompiles
from altcore.recipes import change

SHIFTS = (
    *("E5M2", "E3M4", "MXFP4", "E2M5", "E7M0", "E0M7", "NVFP4", "INT8"),
    *("posit8_1", "E1M6", "BF16", "E4M1"),
)
"""Twelve formats of every kind; torch gives a function up after eight recompilations."""


class Model(nn.Module):
    """Two quantized layers with operations between them that a compiler computes as torch does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (nn.Linear(32, n) for n in (32, 32, 8))

    def forward(self, x):
        return self.head((self.second((self.first(x) * 2 + 1).relu()) - 1).relu())


def losses(compiled):
    """Two steps in each of thirteen formats, stochastic rounding in them; and the graphs made."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = Model()
    weight = {"format": "E4M3", "rounding": "stochastic"}
    q = altcore.quantize_model(model, {"weight": weight, "activation": "E4M3", "gradient": "E5M2"})
    if compiled:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, found, graphs = torch.randn(16, 32), [], []
    for fmt in ("E4M3", *SHIFTS):
        q.change(change(q.plan, ["*"], [], format=altcore.get_format(fmt)))
        for _ in range(2):
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            q.store(optimizer)
            found.append(loss.item())
        graphs.append(counters["stats"]["unique_graphs"])
    return found, graphs


@pytest.mark.slow
def test_twelve_shifts_stay_compiled():
    """Compiled and eager are equal bit for bit, and no shift makes torch compile again."""
    eager, _ = losses(compiled=False)
    compiled, graphs = losses(compiled=True)
    assert compiled == eager
    assert len(set(eager)) == len(eager)
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}


def test_a_fall_to_eager_is_told():
    """When torch gives a function up, what it logs becomes an event with function and reason."""
    torch._dynamo.reset()
    told = []

    @torch.compile(backend="eager", dynamic=False)
    def doubled(x, n):
        return x * n

    logger = logging.getLogger("torch._dynamo.convert_frame")
    before = list(logger.handlers)
    with tell_recompiles(lambda event, **data: told.append((event, data))):
        for n in range(12):
            doubled(torch.ones(n + 2), float(n))
    assert logger.handlers == before
    assert told
    event, data = told[0]
    assert event == "eager"
    assert data["function"] == "doubled"
    assert data["limit"] == "recompile_limit"
    assert data["reason"]


@pytest.mark.slow
def test_a_compiled_run(start, shelf):
    """``compile: true`` from the command line's configuration: twelve shifts, no event eager."""

    @attrs.define(eq=False)
    class EveryStep:
        """Shift the format at every step."""

        @hookimpl
        def pre_step(self, run, step):
            fmt = altcore.get_format(SHIFTS[step.index % len(SHIFTS)])
            return ChangeRecipe(format=fmt, reason="by turns")

    name = shelf.install("intervention", "every-step", EveryStep)
    torch._dynamo.reset()
    result = start([name], format="E4M3", max_steps=14, compile=True)
    kinds = [e["event"] for e in events(result.run_directory)]
    assert result.status == "finished"
    assert kinds.count("recipe") == 14
    assert "eager" not in kinds
