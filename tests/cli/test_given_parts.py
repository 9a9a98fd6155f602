"""Runs of models, data and losses of one's own, on the command line: what differs is named."""

import math

import pytest
import torch
from helpers_cli import call
from torch import nn

import altcore
from altcore.cli.run_comparison import compared
from altcore.runs import read_run
from altcore_reporters.run_facts import versions_of


def model(act=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), act(), nn.Linear(4, 1))


def data(split, step, micro):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(step + 1000 * (split == "val")))
    return x, x.sum(1, keepdim=True)


def doubled(split, step, micro):
    x, y = data(split, step, micro)
    return 2 * x, y


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def absolute(model, batch):
    return nn.functional.l1_loss(model(batch[0]), batch[1])


def times(factor):
    return lambda model, batch: factor * loss(model, batch)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Reports are written below the working directory."""
    monkeypatch.chdir(tmp_path)


def train(start, name, model_=None, data=data, loss=loss, **keys):
    keys = {"name": name, "max_steps": 2, "runs_dir": str(start.runs), **keys}
    return altcore.train(keys, model_ or model(), data, loss=loss)


@pytest.mark.parametrize(
    ("own", "part", "row", "said"),
    [
        ({"model_": nn.GELU}, "given", "model.modules.1", "b has model Sequential, given from"),
        ({"loss": absolute}, "code", "given loss", "b has loss absolute, given from Python"),
        ({"data": doubled}, "code", "given data", "b has data "),
        ({"loss": times(3)}, "given", "loss.values.factor", "with factor=3 instead of"),
    ],
    ids=["model", "loss", "data", "variable"],
)
def test_another_part_from_python_is_named(start, capsys, own, part, row, said):
    """By the comparison of runs and by a report; nothing says that the runs do not differ."""
    own = {**own, "model_": model(own["model_"])} if "model_" in own else own
    train(start, "a", **({"loss": times(2)} if row.startswith("loss.values") else {}))
    train(start, "b", **own)
    found = compared([read_run(start.runs / name) for name in "ab"])
    assert row in found[part]
    assert (found["data"][0] != found["data"][1]) == ("data" in own)
    a, b = versions_of([read_run(start.runs / name) for name in "ab"], ())
    assert (a != b) == (part == "code" or "model_" in own)  # other values are seeds of a condition
    where = ("a", "b", "--runs-dir", start.runs)
    told = call(capsys, "runs", "compare", *where).out.splitlines()[-1]
    assert "parts given from Python do" in told or "code" not in told
    assert said in " ".join(call(capsys, "report", "page", *where).err.split())


def test_the_same_parts_from_python_do_not_differ(start, capsys):
    """Functions that are the same are so in every run."""
    for name in "ab":
        train(start, name, loss=times(2))
    where = ("a", "b", "--runs-dir", start.runs)
    told = call(capsys, "runs", "compare", *where).out
    assert told.endswith("\nconfiguration, code and environment do not differ\n")
    assert "not all runs" not in call(capsys, "report", "page", *where).err


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("runs", "list"), "r "),
        (("runs", "show", "r"), "not finite (best not available"),
        (("runs", "compare", "r", "r"), "final_loss"),
        (("checkpoints", "list", "r"), "step-00000002"),
        (("checkpoints", "verify", "r"), "valid"),
        (("checkpoints", "path", "r", "--best"), "step-00000002"),
        (("report", "page", "r"), "page.html"),
    ],
    ids=lambda x: " ".join(x[:2]) if isinstance(x, tuple) else "",
)
def test_a_validation_that_is_never_finite_can_be_read(start, capsys, value, command, told):
    """By every command; that none is the best is said where the best is asked for."""

    def broken(model, batch):
        return loss(model, batch) * (1.0 if model.training else value)

    train(start, "r", loss=broken)
    found = call(capsys, *command, "--runs-dir", start.runs)
    assert (found.code, told in found.out) == (0, True), found
    is_unclear = "no checkpoint is known for a finite val_loss: the newest is taken" in found.err
    assert is_unclear == ("--best" in command)
