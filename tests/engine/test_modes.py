"""A part of a model that was put into evaluation stays in it while a run trains."""

from types import SimpleNamespace

import pytest
import torch
from helpers import weights_sha256
from torch import nn

import altcore
from altcore.engine.modes import Modes


class Normed(nn.Module):
    """Predicts bytes, with a batch norm and a dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.drop = nn.Embedding(256, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.head = nn.Linear(8, 256)

    def forward(self, ids):
        return self.head(self.drop(self.norm(self.embed(ids).mT).mT))


class Freezing(Normed):
    """Keeps its batch norm in evaluation by itself."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


def made(kind=Normed, *evaluated):
    model = kind()
    for name in evaluated:
        model.get_submodule(name).eval()
    return model


@pytest.mark.parametrize(
    ("kind", "evaluated", "stays"),
    [
        (Normed, (), []),
        (Normed, ("norm", "drop"), ["norm", "drop"]),
        (Normed, ("",), []),  # as a library returns one: it is trained as a whole
        (Freezing, (), ["norm"]),
        (Freezing, ("drop",), ["norm", "drop"]),
    ],
)
def test_modules_keep_the_mode_that_they_were_given(kind, evaluated, stays):
    """However they were left since."""
    model = made(kind, *evaluated)
    modes = Modes(model, SimpleNamespace(layers={}))
    modes.note()
    for leave in (lambda: None, model.eval, lambda: nn.Module.train(model)):
        leave()
        modes.put()
        assert [name for name, m in model.named_modules() if not m.training] == stays


def test_a_frozen_batch_norm_stays_as_it_is_and_a_resume_keeps_it(start):
    """Also if the model is not frozen when it goes on; an evaluation changes no mode."""
    keys = {"min_lr_ratio": 1.0, "warmup_steps": 0, "eval_interval": 1}

    def train(name, steps, model, **resume):
        config = start.config(name=name, max_steps=steps, format="E4M3", recipe="original", **keys)
        altcore.train(config, model=model, **resume)
        return weights_sha256(start.runs / name)

    model = made(Normed, "norm", "drop", "embed")
    whole = train("whole", 4, model)
    assert model.norm.num_batches_tracked == 0
    train("part", 2, made(Normed, "norm", "drop", "embed"))
    assert train("part", 4, made(), resume="part") == whole


def test_a_layer_that_is_quantized_trains_all_the_same():
    """Torch computes it alike in both modes, and its scales have to move."""
    model = made(Normed, "norm", "head")
    with altcore.quantize_model(model, "E4M3", head=None) as q:
        Modes(model, q)
    assert model.head.training
    assert not model.norm.training
