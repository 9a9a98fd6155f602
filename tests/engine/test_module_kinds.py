"""What modules are known by: all that they say, and of torch's what they do not say."""

import inspect

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

import altcore
from altcore import BadInput
from altcore.engine.module_kinds import kinds_of, options_of

LONG = {"in_channels": 32, "out_channels": 32, "kernel_size": 3, "padding": 2, "dilation": 2}
LONG |= {"groups": 4, "bias": False}
POOL, RNN = {"kernel_size": 2}, {"input_size": 3, "hidden_size": 3}
OTHERS = [
    (nn.RNN, RNN, {"nonlinearity": "relu"}),
    (nn.AvgPool2d, POOL, {"ceil_mode": True}),
    (nn.AvgPool2d, POOL, {"count_include_pad": False}),
    (nn.FractionalMaxPool2d, POOL | {"output_size": 4}, {"output_size": 5}),
    (nn.Conv2d, LONG, {"padding_mode": "reflect"}),
]


@pytest.mark.parametrize(("kind", "options", "other"), OTHERS)
def test_another_option_makes_another_module(kind, options, other):
    def known(**more):
        model = nn.Sequential(kind(**(options | more)))
        return {**kinds_of(model), **options_of(model)}

    one, two = known(), known(**other)
    assert one == known()
    assert f"{next(iter(other))} of 0" in {k for k in {*one, *two} if one.get(k) != two.get(k)}


class Long(nn.Linear):
    """Says much of itself."""

    def __init__(self, end):
        torch.manual_seed(0)
        super().__init__(3, 1)
        self.end = end

    def extra_repr(self):
        return "x" * 100 + self.end


def data(split, step, micro):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def loss(model, batch):
    return (model(batch) - 1).square().mean()


def test_a_resume_compares_what_is_said_beyond_100_letters(start):
    def train(steps, end, **more):
        keys = {"warmup_steps": 0, "min_lr_ratio": 1.0}
        config = start.config(name="r", max_steps=steps, **keys)
        return altcore.train(config, model=Long(end), data=data, loss=loss, **more)

    train(2, "a")
    with pytest.raises(BadInput, match=r"with extra_repr of the model=.* with extra_repr"):
        train(3, "b", resume="r")
    assert not train(3, "a", resume="r").summary["changes"]


def test_a_loop_is_told_of_them_but_not_by_an_earlier_checkpoint(tmp_path, monkeypatch):
    def save(end):
        model = Long(end)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return altcore.save_checkpoint(tmp_path / end, model, optimizer, None, 1)

    def load(end):
        with capture_logs() as logs:
            altcore.load_checkpoint(tmp_path / end, Long("c"), None, None)
        return logs

    save("a")
    assert "extra_repr of the model was" in load("a")[0]["modules"]
    monkeypatch.setattr("altcore.engine.kept_module.options_of", lambda _: None)
    save("b")
    assert not load("b")


ARGUMENTS = [(), (4,), (4, 4), (4, 4, 3), (nn.TransformerEncoderLayer(4, 2, 8), 1)]
ARGUMENTS += [(nn.TransformerDecoderLayer(4, 2, 8), 1), (8, 10, [4])]


def built():
    """Yield each of torch's modules that can be built of a few numbers."""
    for name, kind in inspect.getmembers(nn, inspect.isclass):
        if issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.modules."):
            for given in ARGUMENTS:
                try:
                    yield name, kind(*given)
                except Exception:
                    continue
                break


INPUTS = [(4, 4), (2, 4, 8), (2, 4, 8, 8), (2, 4, 8, 8, 8), (4,)]


@pytest.mark.filterwarnings("ignore")
def test_no_module_of_torch_changes_as_it_runs():
    """Else a healthy loop that goes on would be told that it is another one."""
    ran = 0
    for name, module in built():
        before = options_of(module)
        for shape in INPUTS:
            for count in (1, 2, 3):
                try:
                    module(*(torch.rand(shape) for _ in range(count)))
                except Exception:
                    continue
                ran += 1
        if "Lazy" not in name:
            assert options_of(module) == before, name
    assert ran > 100
