"""Out of memory: who asked for how much."""

import pytest
import torch
from helpers_cli import TINY, call
from torch import nn

import altcore
from altcore.engine.memory import memory_named
from altcore.errors import AltcoreError, OutOfMemory
from altcore.quantization import linear

TOO_MUCH = 1 << 50


def exhaust(*_, **__):
    return torch.empty(TOO_MUCH, dtype=torch.uint8)


class Greedy(nn.Module):
    def forward(self, x):
        return x + exhaust().sum()


def test_the_layer_and_the_bytes():
    """The innermost layer that was called, by its name in the model."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Greedy()))
    says = rf"^out of memory: layer 1\.0 \(Greedy\) asked for {TOO_MUCH} bytes; "
    with pytest.raises(OutOfMemory, match=says), memory_named(model):
        model(torch.ones(2))


def test_in_the_backward_pass(monkeypatch):
    """A quantized layer is known there, too; of others only the pass is."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with altcore.quantize_model(model, "E4M3", head=None):
        loss = model(torch.ones(2, 2)).sum()
        monkeypatch.setattr(linear, "product", exhaust)
        with pytest.raises(OutOfMemory, match=r"memory: layer 1 \(Linear\)"), memory_named(model):
            loss.backward()
    x = torch.ones(2, requires_grad=True)
    x.register_hook(exhaust)
    with pytest.raises(OutOfMemory, match=r"memory: the backward pass"), memory_named(model):
        x.sum().backward()


def test_a_gpus_error_is_one(monkeypatch):
    """CUDA's has a type of its own, and its sizes have units."""

    class Step(torch.optim.SGD):
        def step(self):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model = nn.Linear(2, 2)
    says = r"^out of memory: the step of Step asked for 2.00 GiB; "
    with pytest.raises(OutOfMemory, match=says), memory_named(model):
        Step(model.parameters()).step()


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match=r"^something else$"), memory_named():
        raise RuntimeError("something else")


def test_a_run_says_it_in_a_line(start, capsys, tmp_path, monkeypatch, corpus):
    """In a step, and before the first; the exit code is that of a failure."""
    model = nn.Sequential(nn.Embedding(256, 8), Greedy())
    with pytest.raises(AltcoreError, match=r"out of memory: layer 1 \(Greedy\)"):
        altcore.train(start.config(), model=model)
    monkeypatch.chdir(tmp_path)
    outcome = call(
        capsys, "train", *TINY, "--data", corpus, "--set", f"gpt.vocab_size={TOO_MUCH >> 6}"
    )
    assert outcome.code == 1
    assert outcome.message.startswith("altcore: out of memory: an Embedding asked for ")
