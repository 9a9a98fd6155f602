"""States of what a loop keeps besides come back as they were, to their types."""

from pathlib import Path

import numpy
import pytest
import torch
from torch.utils._pytree import tree_map_only

from altcore import CheckpointManager
from altcore.engine import OwnLoop

VALUES = [
    numpy.float32(0.1),
    numpy.float16(0.1),
    numpy.float64(0.1),
    numpy.int8(-3),
    numpy.uint64(2**63),
    numpy.bool_(True),
    numpy.complex64(1 + 2j),
    numpy.longdouble(1) / 3,
    numpy.datetime64("2026-01-02"),
    Path("data"),
    0.1,
    True,
    None,
    "text",
]


class Keeps:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"one": self.value, "many": [self.value, (self.value, {"in": self.value})]}

    def load_state_dict(self, state):
        self.value = state["one"]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_with_its_type(tmp_path, value):
    """A loop that computes with a float of Python's in the place of a float32 is another one."""
    model, kept = torch.nn.Linear(2, 2), Keeps(value)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    manager = CheckpointManager(tmp_path, model, optimizer, also={"kept": kept})
    manager.save(1)
    stated = kept.state_dict()
    kept.value = None
    assert manager.restore() == 1
    assert kept.state_dict() == stated
    assert type(kept.value) is type(value)
    assert kept.value == value
    if isinstance(value, numpy.generic):
        assert kept.value.dtype == value.dtype


def test_tensors_come_back_on_the_device_that_they_were_on(monkeypatch, tmp_path):
    """A device that every machine has stands for a GPU; files are read into the CPU's memory."""
    gpu = torch.device("meta")
    monkeypatch.setattr(OwnLoop, "device", gpu)
    model, average = torch.nn.Linear(2, 2), Keeps(None)
    loop = OwnLoop.of(model, torch.optim.SGD(model.parameters()), None, None, {"average": average})
    for read, expected in [(torch.ones(2, device=gpu), "meta"), (torch.ones(2), "cpu")]:
        average.value = {"sums": read, "generator": torch.Generator().get_state()}
        state = loop.state(1)
        as_read = tree_map_only(torch.Tensor, lambda x: torch.zeros_like(x, device="cpu"), state)
        loop.restore(as_read | {"random": state["random"]})
        assert average.value["sums"].device.type == expected
        assert average.value["generator"].device.type == "cpu"
    del as_read["left_on_cpu"]  # as of an earlier version
    loop.restore(as_read | {"random": state["random"]})
    assert average.value["sums"].device.type == "cpu"
